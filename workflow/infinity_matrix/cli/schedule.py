"""Commands on schedules: create, ls, show, pause, resume, trigger, backfill, delete."""

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from infinity_matrix_actors.fact import Priority

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, duration
from infinity_matrix.cli.failure import UsageProblem
from infinity_matrix.cli.source import read_json

if TYPE_CHECKING:
    from infinity_matrix_actors.schedule import Overlap
    from infinity_matrix_coordinator.schedule_operations import ScheduleView

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Executions that begin by themselves.")

NEXT_SHOWN = 5
POLICIES = "skip, buffer_one, buffer_all, cancel_other, terminate_other or allow_all"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
OverlapOption = Annotated[str | None, typer.Option("--overlap", metavar="POLICY", help=f"While one runs: {POLICIES}.")]
RequestId = Annotated[str | None, typer.Option("--id", help="Of this request; the same id asks once.")]


@command(app, "create")
async def create(
    settings: Settings,
    name: Name,
    workflow: Annotated[str, typer.Option("--workflow", help="The deployed workflow it starts.")],
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="FIELDS", help="Five fields, or such as @daily.")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="Once, as in 2026-12-24T18:00.")] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="A name such as Europe/Berlin.")] = "UTC",
    overlap: OverlapOption = None,
    catch_up: Annotated[
        str | None, typer.Option("--catch-up", metavar="DURATION", help="How far back missed times are made up.")
    ] = None,
    jitter: Annotated[
        str | None, typer.Option("--jitter", metavar="DURATION", help="Fire up to so much later.")
    ] = None,
    start: Annotated[str | None, typer.Option("--start", metavar="TIME", help="Not before.")] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="TIME", help="Not after.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many executions.")] = None,
    input: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="The input: JSON, @file, or - for standard input.")
    ] = None,
    priority: Annotated[str | None, typer.Option("--priority", help="Of its executions: high, normal or low.")] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Paused from the beginning.")] = False,
) -> None:
    """Make a schedule, in place of one of that name."""
    from infinity_matrix_actors.schedule import new_schedule
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    given: dict[str, Any] = {"cron": cron, "run_at": at, "overlap": overlap, "start": start, "end": end, "limit": limit}
    given |= {"catch_up": duration(catch_up), "jitter": duration(jitter), "input": read_json(input, "--input")}
    given["priority"] = priority
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    schedule = new_schedule(name, workflow, timezone=timezone, **chosen)
    async with connected(settings) as client:
        view = await ScheduleOperations(client.operations).create(schedule, is_paused=paused)
    if settings.as_json:
        output.write_json(view)
    else:
        output.write_line(f"{view.name} starts {view.workflow}, {_next_text(view)}")


@command(app, "ls")
async def ls(
    settings: Settings,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only those of this workflow.")] = None,
) -> None:
    """List schedules and when each is due next."""
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    async with connected(settings) as client:
        found = await ScheduleOperations(client.operations).list(workflow)
    if settings.as_json:
        output.write_json(found)
        return
    if not found:
        output.note("there is no schedule; 'imx schedule create' makes one")
        return
    rows = [
        (view.name, view.workflow, _times(view), _next_text(view), f"{view.started:,}", f"{len(view.running):,}")
        for view in found
    ]
    columns = ("schedule", "workflow", "times", "next", "started", "running")
    output.console().print(output.table(columns, rows, right=("started", "running")))


@command(app, "show")
async def show(
    settings: Settings,
    name: Name,
    count: Annotated[int, typer.Option("--next", min=1, max=100, help="So many due times.")] = NEXT_SHOWN,
) -> None:
    """Show a schedule, where it stands and its next due times."""
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    async with connected(settings) as client:
        view = await ScheduleOperations(client.operations).show(name, count)
    if settings.as_json:
        output.write_json(view)
        return
    for label, value in _facts(view):
        output.write_line(f"{label:<10} {value}")


@command(app, "pause")
async def pause(
    settings: Settings,
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Shown with the schedule.")] = "",
) -> None:
    """Let nothing more of a schedule come due."""
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    async with connected(settings) as client:
        await ScheduleOperations(client.operations).pause(name, reason)
    _done(settings, name, "paused")


@command(app, "resume")
async def resume(settings: Settings, name: Name) -> None:
    """End a pause. What came due meanwhile is not made up."""
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    async with connected(settings) as client:
        await ScheduleOperations(client.operations).resume(name)
    _done(settings, name, "resumed")


@command(app, "trigger")
async def trigger(settings: Settings, name: Name, overlap: OverlapOption = None, id: RequestId = None) -> None:
    """Start an execution now, and print its id. It waits for one that runs."""
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    policy = _policy(overlap)
    async with connected(settings) as client:
        execution = await ScheduleOperations(client.operations).trigger(name, policy, id)
    if settings.as_json:
        output.write_json({"schedule": name, "execution_id": execution})
    else:
        output.write_line(execution or f"asked {name} for an execution")


@command(app, "backfill")
async def backfill(
    settings: Settings,
    name: Name,
    begin: Annotated[str, typer.Option("--from", metavar="TIME", help="The first due time that counts.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="The last due time that counts.")],
    overlap: OverlapOption = None,
    id: RequestId = None,
) -> None:
    """Start an execution for every due time of a range, one after another."""
    from infinity_matrix_actors.schedule import instant
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    policy = _policy(overlap)
    async with connected(settings) as client:
        schedules = ScheduleOperations(client.operations)
        zone = (await schedules.show(name, 1)).timezone
        begin_at, end_at = instant(begin, zone, "--from"), instant(end, zone, "--to")
        executions = await schedules.backfill(name, begin_at, end_at, policy, id)
    if settings.as_json:
        output.write_json({"schedule": name, "execution_ids": list(executions)})
    else:
        output.write_line(f"asked {name} for {len(executions):,} executions")


@command(app, "delete")
async def delete(settings: Settings, name: Name) -> None:
    """Delete a schedule. What runs goes on."""
    from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

    async with connected(settings) as client:
        await ScheduleOperations(client.operations).delete(name)
    _done(settings, name, "deleted")


def _done(settings: Settings, name: str, what: str) -> None:
    if settings.as_json:
        output.write_json({"schedule": name, "state": what})
    else:
        output.write_line(f"{what} {name}")


def _policy(text: str | None) -> "Overlap | None":
    from infinity_matrix_actors.schedule import Overlap

    if text is not None and text not in tuple(Overlap):
        raise UsageProblem(f"{text!r} is no overlap policy", f"one of {POLICIES}")
    return None if text is None else Overlap(text)


def _times(view: "ScheduleView") -> str:
    if view.cron is not None:
        return f"{view.cron} {view.timezone}"
    return f"once, {output.date(view.run_at)}"


def _next_text(view: "ScheduleView") -> str:
    if view.paused:
        return f"paused: {view.reason}" if view.reason else "paused"
    return f"next {_time_text(view.upcoming[0])}" if view.upcoming else "over"


def _time_text(text: str) -> str:
    """A due time in the schedule's own zone, with its offset."""
    return datetime.datetime.fromisoformat(text).isoformat(" ", "seconds")


def _facts(view: "ScheduleView") -> list[tuple[str, str]]:
    facts = [
        ("schedule", view.name),
        ("workflow", view.workflow + (f" {view.definition[:16]}" if view.definition else "")),
        ("times", _times(view)),
        ("overlap", view.overlap),
        ("catch-up", output.span(view.catch_up)),
    ]
    if view.jitter:
        facts.append(("jitter", output.span(view.jitter)))
    if view.start_at is not None:
        facts.append(("start", output.date(view.start_at)))
    if view.end_at is not None:
        facts.append(("end", output.date(view.end_at)))
    if view.priority != Priority.NORMAL:
        facts.append(("priority", view.priority))
    started = f"{view.started:,}" + (f" of {view.limit:,}" if view.limit is not None else "")
    facts += [("started", started), ("skipped", f"{view.skipped:,}"), ("waiting", f"{view.waiting:,}")]
    facts.append(("last", output.date(view.last_at) or "none"))
    facts += [("running", execution) for execution in view.running]
    if view.paused or not view.upcoming:
        return [*facts, ("next", _next_text(view))]
    return [*facts, *(("next", _time_text(text)) for text in view.upcoming)]
