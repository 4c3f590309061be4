"""Commands on executions: status, watch, ls, cancel, logs; and tail, which shows what goes by."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected
from infinity_matrix.cli.failure import WORKFLOW_FAILED, UsageProblem

if TYPE_CHECKING:
    from infinity_matrix.logs import LogLine

app = typer.Typer()

LIST_LIMIT = 20
#: Messages that may wait to be written; a reader that is slower loses the newest, and is told how many.
TAIL_QUEUE_MAX = 100_000

ExecutionId = Annotated[str, typer.Argument(metavar="ID", help="The execution's id.")]


@command(app, "status")
async def status(settings: Settings, id: ExecutionId) -> None:
    """Show where an execution and its tasks stand."""
    from infinity_matrix.cli.view import View

    async with connected(settings) as client:
        found = await client.get_status(id, is_whole=settings.as_json)
    if settings.as_json:
        output.write_json(found)
    else:
        console = output.console()
        console.print(View.of(found).render(is_marked=console.is_terminal))


@command(app, "watch")
async def watch(settings: Settings, id: ExecutionId) -> int:
    """Follow an execution to its end. The exit code is 1 unless it completed."""
    from infinity_matrix.cli.view import follow

    async with connected(settings) as client:
        last = await follow(client, id, sys.stdout, as_json=settings.as_json)
    return 0 if last.state == "completed" else WORKFLOW_FAILED


@command(app, "ls")
async def ls(
    settings: Settings,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only those of this workflow.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = LIST_LIMIT,
) -> None:
    """List executions, newest first."""
    from infinity_matrix_actors.state import ExecutionState

    if state is not None and state not in set(ExecutionState):
        raise UsageProblem(f"{state!r} is no state of an execution", f"one of {', '.join(ExecutionState)}")
    async with connected(settings) as client:
        found = await client.list(workflow, state)
    shown = found[:limit]
    if settings.as_json:
        output.write_json(shown)
        return
    console = output.console()
    rows = [
        (
            output.state_text(item.state, is_marked=console.is_terminal),
            item.workflow,
            item.execution_id,
            output.date(item.started_at),
            output.span(None if item.finished_at is None else item.finished_at - item.started_at),
        )
        for item in shown
    ]
    console.print(output.table(("state", "workflow", "execution", "started", "took"), rows, right=("took",)))
    if len(found) > limit:
        output.note(f"{limit} of {len(found):,}; --limit shows more")


@command(app, "cancel")
async def cancel(
    settings: Settings,
    id: ExecutionId,
    reason: Annotated[str, typer.Option("--reason", help="Told to the agents, and kept in the log.")] = "",
) -> None:
    """Cancel an execution. Its agents are told, then it ends."""
    async with connected(settings) as client:
        await client.cancel(id, reason)
    if settings.as_json:
        output.write_json({"execution_id": id, "cancel": "asked"})
    else:
        output.write_line(f"asked {id} to stop; 'imx watch {id}' shows its end")


@command(app, "logs")
async def logs(
    settings: Settings,
    id: ExecutionId,
    task: Annotated[str | None, typer.Option("--task", help="Only those of this task.")] = None,
) -> None:
    """Print the log lines of an execution's agents."""
    async with connected(settings) as client:
        found = await client.get_status(id, is_whole=False)
        if task is not None and task not in found.tasks:
            raise UsageProblem(f"no task {task!r} in {found.workflow}", f"it has: {', '.join(found.tasks)}")
        lines = await client.get_logs(id, task)
    for line in lines:
        if settings.as_json:
            output.write_json(line)
        else:
            output.write_line(_log_text(line))


@command(app, "tail")
async def tail(
    settings: Settings,
    subject: Annotated[
        str | None, typer.Argument(metavar="[SUBJECT]", help="Wildcards allowed; all status messages if not given.")
    ] = None,
) -> None:
    """Print messages as they go by. Each is a line of JSON with its subject."""
    import asyncio

    from infinity_matrix_bus.session import SessionLost

    if subject is not None and (not subject or any(character.isspace() for character in subject)):
        raise UsageProblem(f"{subject!r} is no subject", "tokens with dots between them; * is one token, > is the rest")
    queue: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue(TAIL_QUEUE_MAX + 1)
    dropped = 0

    def take(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        nonlocal dropped
        if queue.qsize() < TAIL_QUEUE_MAX:
            queue.put_nowait((subject, data))
        else:
            dropped += 1

    def lose() -> None:
        queue.put_nowait(None)

    async with connected(settings) as client:
        while True:
            try:
                session = await client.operations.session()
                tailed = subject or client.operations.subjects.all_status
                await session.subscribe(tailed, take)
                session.when_lost(lose)
                output.note(f"tailing {tailed}")
                while (item := await queue.get()) is not None:
                    output.write_line(_message_text(*item))
                    if dropped:
                        output.note(f"{dropped:,} messages were lost: what reads this is too slow")
                        dropped = 0
            except SessionLost:
                pass
            output.note("the connection was lost; what goes by until it is back is not shown")


def _message_text(subject: str, data: bytes) -> str:
    """The payload's own fields beside its subject; one that is no object stands under `data`."""
    from infinity_matrix_bus.codec import Undecodable, decode

    try:
        value = decode(data)
    except Undecodable:
        value = data.decode(errors="replace")
    return output.to_json({"subject": subject, **(value if isinstance(value, dict) else {"data": value})})


def _log_text(line: "LogLine") -> str:
    attempt = f"#{line.attempt}" if line.attempt > 1 else ""
    fields = {key: value for key, value in line.fields.items() if key != "traceback"}
    facts = "".join(
        f" {key}={value if isinstance(value, str) else output.to_json(value)}" for key, value in fields.items()
    )
    text = f"{output.clock(line.at)}  {line.level:<7} {line.task_id}{attempt}  {line.event}{facts}"
    trace = line.fields.get("traceback")
    return output.printable(f"{text}\n{trace.rstrip()}" if isinstance(trace, str) else text)
