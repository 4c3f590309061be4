"""The command that forks an execution, and the changes as they are written on its command line."""

import copy
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected
from infinity_matrix.cli.failure import UsageProblem
from infinity_matrix.cli.source import read_json

if TYPE_CHECKING:
    from infinity_matrix.client import Client

app = typer.Typer()


@command(app, "fork")
async def fork(
    settings: Settings,
    id: Annotated[str, typer.Argument(metavar="ID", help="The execution's id.")],
    from_task: Annotated[
        str | None,
        typer.Option("--from", metavar="TASK", help="Do this task and all after it again; everything if not given."),
    ] = None,
    input: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="Another input: JSON, @file, or -.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="A change: input.KEY, results.TASK[.KEY] or config.TASK.KEY, to JSON or text; repeatable.",
        ),
    ] = None,
    new_id: Annotated[str | None, typer.Option("--id", help="The new execution's id.")] = None,
) -> None:
    """Start an execution from the middle of another.

    With what was changed; prints the new id.
    """
    changed_input = read_json(input, "--input")
    async with connected(settings) as client:
        changes = await _changes(client, id, input is not None, changed_input, set or [])
        execution_id = await client.fork(id, from_task, changes, new_id)
    if settings.as_json:
        output.write_json({"execution_id": execution_id, "fork_of": id, "from_task": from_task})
    else:
        output.write_line(execution_id)


async def _changes(client: "Client", id: str, has_input: bool, input: Any, sets: list[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {"input": input} if has_input else {}
    if not sets:
        return changes
    bases = await _bases(client, id)
    if has_input:
        bases["input"] = input
    for text in sets:
        path, separator, value = text.partition("=")
        tokens = path.split(".")
        least = {"input": 2, "results": 2, "config": 3}.get(tokens[0], 0)
        if not separator or not least or len(tokens) < least or not all(tokens):
            raise UsageProblem(
                f"--set {text!r} cannot be read",
                "as in --set input.customer=7, --set results.extract.rows=3, --set config.load.batch=10",
            )
        _set(bases, changes, tokens, _value(value), path)
    return changes


async def _bases(client: "Client", id: str) -> dict[str, Any]:
    """What changes are made to: the execution's input, results and configs."""
    from infinity_matrix_bus.references import resolved

    actor = await client.operations.fold(id)
    status = await client.get_status(id)
    tasks = (*actor.plan.definition.tasks, *actor.plan.definition.on_failure)
    return {
        "input": await resolved(actor.started.input, client.operations.artifacts),
        "results": {name: task.result for name, task in status.tasks.items()},
        "config": {task.id: task.config for task in tasks},
    }


def _set(bases: dict[str, Any], changes: dict[str, Any], tokens: list[str], value: Any, path: str) -> None:
    """Makes one change in `changes`, in a copy of what it is made to."""
    section = tokens[0]
    # What is replaced as a whole: the input, one task's result, one key of one task's config.
    whole = {"input": 1, "results": 2, "config": 3}[section]
    if len(tokens) == whole:
        _put(changes, tokens, value)
        return
    base = _get(changes, tokens[:whole])
    if base is None:
        base = copy.deepcopy(_get(bases, tokens[:whole]))
        base = {} if base is None else base
        _put(changes, tokens[:whole], base)
    for token in tokens[whole:-1]:
        if not isinstance(base, dict):
            break
        base = base.setdefault(token, {})
    if not isinstance(base, dict):
        raise UsageProblem(f"--set {path}: what it is part of is no object", "change the whole of it")
    base[tokens[-1]] = value


def _get(tree: dict[str, Any], tokens: list[str]) -> Any:
    found: Any = tree
    for token in tokens:
        found = found.get(token) if isinstance(found, dict) else None
    return found


def _put(tree: dict[str, Any], tokens: list[str], value: Any) -> None:
    for token in tokens[:-1]:
        tree = tree.setdefault(token, {})
    tree[tokens[-1]] = value


def _value(text: str) -> Any:
    """JSON where it is some, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
