"""Commands that show executions: status, watch, ls, logs, metrics; and tail, which shows what goes by."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, duration
from infinity_matrix.cli.failure import WORKFLOW_FAILED, UsageProblem

if TYPE_CHECKING:
    from infinity_matrix_coordinator.lineage import Lineage
    from infinity_matrix_coordinator.log_lines import LogLine

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
        lineage = await client.lineage(id)
    if settings.as_json:
        output.write_json({**json.loads(output.to_json(found)), "lineage": lineage})
        return
    console = output.console()
    for line in _relations(lineage):
        output.write_line(line)
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
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="DURATION", help="Only those started so long ago, as 1h.")
    ] = None,
    newer_than: Annotated[
        str | None, typer.Option("--newer-than", metavar="DURATION", help="Only those started since then.")
    ] = None,
    needs_attention: Annotated[
        bool, typer.Option("--needs-attention", help="Only those that stand still, or were not all undone.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = LIST_LIMIT,
) -> None:
    """List executions, newest first."""
    import time

    from infinity_matrix_actors.duration import parse_duration
    from infinity_matrix_coordinator.listing import LISTED_STATES

    if state is not None and state not in LISTED_STATES:
        raise UsageProblem(f"{state!r} is no state of an execution", f"one of {', '.join(LISTED_STATES)}")
    now = time.time()
    async with connected(settings) as client:
        found = await client.list(
            workflow,
            state,
            started_before=None if older_than is None else now - parse_duration(duration(older_than), "--older-than"),
            started_after=None if newer_than is None else now - parse_duration(duration(newer_than), "--newer-than"),
            needs_attention=needs_attention,
        )
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
            *([output.printable(item.problem or "not all was undone")] if needs_attention else []),
        )
        for item in shown
    ]
    columns = ("state", "workflow", "execution", "started", "took", *(["why"] if needs_attention else []))
    console.print(output.table(columns, rows, right=("took",)))
    if len(found) > limit:
        output.note(f"{limit} of {len(found):,}; --limit shows more")


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


@command(app, "metrics")
async def metrics(settings: Settings, id: ExecutionId) -> None:
    """Show how long an execution's tasks waited and ran, and how many attempts they took."""
    async with connected(settings) as client:
        found = await client.get_metrics(id)
    if settings.as_json:
        output.write_json(found)
        return
    console = output.console()
    rows = [
        (
            output.printable(name),
            output.state_text(task.state, is_marked=console.is_terminal),
            f"{task.attempts:,}",
            output.span(task.queue_time),
            output.span(task.run_time),
        )
        for name, task in found.tasks.items()
    ]
    totals = output.span(found.total_queue_time), output.span(found.total_run_time)
    rows.append(("in all", f"took {output.span(found.duration)}", f"{found.total_attempts:,}", *totals))
    columns = ("task", "state", "attempts", "waited", "ran")
    console.print(output.table(columns, rows, right=("attempts", "waited", "ran")))


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


def _relations(lineage: "Lineage") -> Iterator[str]:
    """What an execution has to do with others, a line each; nothing for most."""
    if lineage.rerun_of is not None:
        yield f"run {lineage.run} of {lineage.rerun_of}"
    if lineage.latest_run != lineage.execution_id:
        yield f"run again: the last run is {lineage.latest_run}"
    if lineage.fork_of is not None:
        yield f"forked from {lineage.fork_of}" + (f", from {lineage.from_task} on" if lineage.from_task else "")
    if lineage.forks:
        yield f"forks: {', '.join(lineage.forks)}"
    for reopening in lineage.reopened:
        reason = f": {output.printable(reopening.reason)}" if reopening.reason else ""
        yield f"{reopening.kind} at {output.date(reopening.at)}{reason}"


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
