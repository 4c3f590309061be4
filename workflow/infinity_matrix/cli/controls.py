"""Commands that control executions, one by one or all of a kind: cancel, pause, resume, retry, compensate; signals."""

from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, duration
from infinity_matrix.cli.failure import UsageProblem, report
from infinity_matrix.cli.source import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infinity_matrix_coordinator.controls import Asked

    from infinity_matrix.client import Client

app = typer.Typer()

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="The executions' ids.")]
Workflow = Annotated[str | None, typer.Option("--workflow", help="Instead of ids: those of this workflow.")]
State = Annotated[str | None, typer.Option("--state", help="Instead of ids: those in this state.")]
OlderThan = Annotated[
    str | None,
    typer.Option("--older-than", metavar="DURATION", help="Instead of ids: started so long ago, as 90s, 1h."),
]
All = Annotated[bool, typer.Option("--all", help="Instead of ids: all it has a meaning for.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say which; ask none.")]


@command(app, "cancel")
async def cancel(
    settings: Settings,
    ids: Ids = None,
    reason: Annotated[str, typer.Option("--reason", help="Told to the agents, and kept in the log.")] = "",
    grace: Annotated[
        str | None, typer.Option("--grace", metavar="DURATION", help="How long agents have; the workflow's own else.")
    ] = None,
    workflow: Workflow = None,
    state: State = None,
    older_than: OlderThan = None,
    everything: All = False,
    dry_run: DryRun = False,
) -> int:
    """Cancel executions. Their agents are told, then they end."""
    return await _control(settings, "cancel", ids, reason, workflow, state, older_than, everything, dry_run, grace)


def _register(name: str, told: str) -> None:
    """Makes a command that takes executions, or says which; all but the cancel are alike."""

    async def run(
        settings: Settings,
        ids: Ids = None,
        reason: Annotated[str, typer.Option("--reason", help="Kept in the log.")] = "",
        workflow: Workflow = None,
        state: State = None,
        older_than: OlderThan = None,
        everything: All = False,
        dry_run: DryRun = False,
    ) -> int:
        return await _control(settings, name, ids, reason, workflow, state, older_than, everything, dry_run)

    run.__doc__ = told
    command(app, name)(run)


for _name, _told in (
    ("pause", "Hold executions: what runs goes on, nothing more is begun."),
    ("resume", "Let paused executions go on."),
    ("retry", "Run again what failed of executions, or was cancelled."),
    ("compensate", "Undo what could not be undone (ls --needs-attention)."),
):
    _register(_name, _told)


@command(app, "signal")
async def signal(
    settings: Settings,
    id: Annotated[str, typer.Argument(metavar="ID", help="The execution's id.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name.")],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="JSON, @file, or - for standard input.")] = None,
    signal_id: Annotated[str | None, typer.Option("--id", help="The signal's id; the same id counts once.")] = None,
) -> None:
    """Send a signal to an execution; it is kept for its waiter."""
    value = read_json(data, "DATA")
    async with connected(settings) as client:
        await client.signal(id, name, value, signal_id)
    if settings.as_json:
        output.write_json({"execution_id": id, "signal": name})
    else:
        output.write_line(f"sent {name} to {id}")


_WORDS = {
    "cancel": "asked {id} to stop; 'imx watch {id}' shows its end",
    "pause": "asked {id} to hold; 'imx resume {id}' lets it go on",
    "resume": "asked {id} to go on",
    "retry": "reopened {id}; 'imx watch {id}' shows it",
    "compensate": "asked {id} to undo what is left; 'imx watch {id}' shows it",
}


async def _control(
    settings: Settings,
    name: str,
    ids: list[str] | None,
    reason: str,
    workflow: str | None,
    state: str | None,
    older_than: str | None,
    everything: bool,
    dry_run: bool,
    grace: str | None = None,
) -> int:
    filters = [workflow, state, older_than, everything or None]
    is_filtered = any(each is not None for each in filters)
    if ids and (is_filtered or dry_run):
        raise UsageProblem("give either ids or a filter", "--dry-run goes with a filter")
    if not ids and not is_filtered:
        raise UsageProblem(
            f"which executions shall {name} be given to?", "give ids, or --workflow, --state, --older-than, or --all"
        )
    async with connected(settings) as client:
        if ids:
            return await _one_by_one(settings, client, name, ids, reason, grace)
        asked = await client.bulk(
            name,
            workflow=workflow,
            state=state,
            older_than=duration(older_than),
            reason=reason,
            grace=duration(grace),
            dry_run=dry_run,
        )
    _show(settings, name, asked, dry_run=dry_run)
    return 0


async def _one_by_one(
    settings: Settings, client: "Client", name: str, ids: list[str], reason: str, grace: str | None
) -> int:
    """Asks each; the exit code is that of the first that was refused."""
    from infinity_matrix_actors.errors import InfinityMatrixError

    code = 0
    for id in ids:
        try:
            if name == "cancel":
                await client.cancel(id, reason, duration(grace))
            else:
                await getattr(client, name)(id, reason)
        except InfinityMatrixError as error:
            if len(ids) == 1:
                raise
            refusal = report(error, as_json=settings.as_json)
            code = code or refusal
            continue
        if settings.as_json:
            output.write_json({"execution_id": id, name: "asked"})
        else:
            output.write_line(_WORDS[name].format(id=id))
    return code


def _show(settings: Settings, name: str, asked: "Sequence[Asked]", *, dry_run: bool) -> None:
    if settings.as_json:
        for each in asked:
            output.write_json({**_record(each), "asked": not dry_run and each.problem is None})
        return
    console = output.console()
    rows = [
        (
            output.state_text(each.state, is_marked=console.is_terminal),
            each.workflow,
            each.execution_id,
            each.problem or "",
        )
        for each in asked
    ]
    if rows:
        console.print(output.table(("was", "workflow", "execution", ""), rows))
    refused = sum(each.problem is not None for each in asked)
    count = f"{len(asked) - refused:,} execution" + ("" if len(asked) - refused == 1 else "s")
    if dry_run:
        output.note(f"{name} would be given to {count}")
    else:
        output.note(f"gave {name} to {count}" + (f", {refused:,} refused it" if refused else ""))


def _record(asked: "Asked") -> dict[str, object]:
    record: dict[str, object] = {
        "execution_id": asked.execution_id,
        "workflow": asked.workflow,
        "state": asked.state,
    }
    return record if asked.problem is None else {**record, "problem": asked.problem}
