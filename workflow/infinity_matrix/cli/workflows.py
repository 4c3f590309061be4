"""Commands on workflows: validate, graph, deploy, start, run; and the events that start them."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, find_target, opened
from infinity_matrix.cli.failure import WORKFLOW_FAILED
from infinity_matrix.cli.source import is_file, load_agents, load_definition, load_workflow, read_json

if TYPE_CHECKING:
    from infinity_matrix_actors.definition import WorkflowDefinition
    from infinity_matrix_coordinator.views import ExecutionResult

app = typer.Typer()

Source = Annotated[str, typer.Argument(metavar="FILE|MODULE:WORKFLOW", help="A definition, or a Workflow in a module.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="A .yaml or .json file, or module:workflow.")]
Input = Annotated[
    str | None, typer.Option("--input", metavar="JSON", help="The input: JSON, @file, or - for standard input.")
]
Id = Annotated[str | None, typer.Option("--id", help="The execution's id; the same id starts nothing twice.")]
IfExists = Annotated[
    str,
    typer.Option(
        "--if-exists",
        metavar="POLICY",
        help="When the id is there: reject other content, return its last run, cancel that, or rerun_failed.",
    ),
]
Priority = Annotated[str, typer.Option("--priority", help="Of its work: high, normal or low.")]


@command(app, "run")
async def run(
    settings: Settings,
    source: Source,
    input: Input = None,
    id: Id = None,
    if_exists: IfExists = "reject",
    priority: Priority = "normal",
    agents: Annotated[
        list[str] | None,
        typer.Option("--agents", metavar="MODULE", help="Serve the agents of this module meanwhile; may be repeated."),
    ] = None,
) -> int:
    """Run a workflow here and now, and print its result.

    Without a system it starts the local runtime. Against that, the agents of MODULE are served meanwhile.
    Functions of the workflow answer about failures.
    """
    import asyncio

    from infinity_matrix_agents import agents_of_this_process

    from infinity_matrix.cli.view import follow
    from infinity_matrix.host import all_hosted

    definition = load_definition(source)
    hosted = [] if is_file(source) else [load_workflow(source)]
    value = read_json(input, "--input")
    served = [agent for module in agents or [] for agent in load_agents(module)]
    target = await find_target(settings, starts_runtime=True)
    if target.is_runtime and not is_file(source):
        served += agents_of_this_process()
    execution_id = None
    try:
        async with opened(target) as client, all_hosted(hosted, client):
            await client.serve(served)
            client.names_untaken = True
            execution_id = await client.start_definition(definition, value, id, if_exists=if_exists, priority=priority)
            # Waiting beside following, not after it: it names the agents that nobody runs.
            waiting = asyncio.create_task(client.wait(execution_id))
            try:
                if not settings.as_json:
                    await follow(client, execution_id, sys.stderr)
                result = await waiting
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
    except BaseException:
        if execution_id is not None:
            with suppress(OSError):
                output.note(f"execution {execution_id} goes on; 'imx watch {execution_id}' shows it")
        raise
    if settings.as_json:
        output.write_json(result)
    else:
        _print_result(definition, result)
    return 0 if result.status == "completed" else WORKFLOW_FAILED


@command(app, "validate", connects=False)
def validate(settings: Settings, file: File) -> None:
    """Check a definition without running it."""
    definition = load_definition(file)
    record = {
        "workflow": definition.name,
        "version": definition.version,
        "tasks": len(definition.tasks),
        "definition": definition.digest(),
    }
    if settings.as_json:
        output.write_json({"ok": True, **record})
    else:
        output.write_line(f"ok  {definition.name} {definition.version}  {_tasks(definition)}  {record['definition']}")


@command(app, "graph", connects=False)
def graph(settings: Settings, file: File) -> None:
    """Print a definition as a Mermaid flowchart."""
    from infinity_matrix.cli.mermaid import flowchart

    text = flowchart(load_definition(file))
    if settings.as_json:
        output.write_json({"mermaid": text})
    else:
        output.write_line(text)


@command(app, "deploy")
async def deploy(settings: Settings, file: File) -> None:
    """Store a definition under its name and arm its triggers."""
    definition = load_definition(file)
    async with connected(settings) as client:
        digest = await client.deploy(definition)
    events = [trigger.event for trigger in definition.triggers]
    if settings.as_json:
        record = {"workflow": definition.name, "version": definition.version, "definition": digest, "triggers": events}
        output.write_json(record)
        return
    armed = f", starts on {', '.join(events)}" if events else ""
    output.write_line(f"deployed {definition.name} {definition.version}  {_tasks(definition)}{armed}  {digest}")


@command(app, "start")
async def start(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A deployed workflow.")],
    input: Input = None,
    id: Id = None,
    if_exists: IfExists = "reject",
    priority: Priority = "normal",
) -> None:
    """Start a deployed workflow, and print the execution's id."""
    value = read_json(input, "--input")
    async with connected(settings) as client:
        execution_id = await client.start(name, value, id, if_exists=if_exists, priority=priority)
    if settings.as_json:
        output.write_json({"execution_id": execution_id, "workflow": name})
    else:
        output.write_line(execution_id)


@command(app, "trigger")
async def trigger(
    settings: Settings,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Such as orders.created.")],
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="JSON, @file, or - for standard input.")] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="The event's id; the same id counts once in 10 minutes.")
    ] = None,
) -> None:
    """Publish an event that may start workflows."""
    value = read_json(data, "DATA")
    async with connected(settings) as client:
        await client.trigger(event, value, id)
        subject = client.operations.subjects.trigger(event)
    if settings.as_json:
        output.write_json({"event": event, "subject": subject})
    else:
        output.write_line(f"published {subject}")


def _tasks(definition: "WorkflowDefinition") -> str:
    count = len(definition.tasks)
    return f"{count:,} task" + ("" if count == 1 else "s")


def _print_result(definition: "WorkflowDefinition", result: "ExecutionResult") -> None:
    """The outputs of the tasks nothing depends on, as JSON on stdout; stderr has shown the rest already."""
    if result.status != "completed":
        return
    output.note("" if sys.stderr.isatty() else f"{result.execution_id} took {output.span(result.duration)}")
    inner = {upstream for task in definition.tasks for upstream in task.depends_on}
    outputs: dict[str, Any] = {task: value for task, value in result.outputs.items() if task not in inner}
    output.write_line(output.to_json(outputs, indent=2))
