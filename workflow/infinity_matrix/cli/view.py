"""Watching an execution: a live table on a terminal, a line a transition elsewhere, a JSON line for programs."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from infinity_matrix_actors.state import SETTLED, TERMINAL, TaskState

from infinity_matrix.cli import output

if TYPE_CHECKING:
    from infinity_matrix_coordinator.views import ExecutionStatus, StatusUpdate, TaskStatus

    from infinity_matrix.client import Client

REFRESH_S = 0.125
#: Lines of the view beside its rows: headings, the bar, and one that says how many are not shown.
HEADING_LINES = 7
BAR_WIDTH = 40
#: Tasks that were compensated, as many as are named.
UNDONE_MAX = 20
INCOMPLETE = "incomplete"
#: What is looked at first when not all tasks fit.
_ORDER = ("failed", "running", "retrying", "queued", "cancelled", "completed", "skipped", "waiting")


@dataclass(slots=True)
class Row:
    """A task as it is shown."""

    id: str
    agent: str
    state: str = "waiting"
    attempt: int = 0
    changed_at: float = 0.0
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    note: str = ""

    def apply(self, update: "StatusUpdate") -> None:
        """Takes a transition in."""
        self.state, self.changed_at = update.status, update.at
        self.attempt = update.attempt or self.attempt
        if update.status == TaskState.QUEUED:
            self.queued_at, self.started_at, self.ended_at, self.note = update.at, None, None, ""
        elif update.status == TaskState.RUNNING:
            self.started_at = update.at
        elif update.status in SETTLED:
            self.ended_at = update.at
            self.note = ""
        if update.error:
            self.note = output.error_text(update.error)

    def elapsed_s(self, now: float) -> float | None:
        """How long it runs or ran; while it is queued, how long it waits."""
        began_at = self.started_at or self.queued_at
        if began_at is None or (self.state in SETTLED and self.ended_at is None):
            return None
        return (self.ended_at if self.ended_at is not None else now) - began_at


class View:
    """What is known of one execution, and how it looks."""

    def __init__(self, status: "ExecutionStatus") -> None:
        self.execution_id = status.execution_id
        self.workflow = status.workflow
        self.state = "running"
        self.started_at = status.started_at
        self.ended_at: float | None = None
        self.error: Any = None
        #: What was undone, in that order, and whether that was all; None where there was nothing to undo.
        self.compensated = status.compensated
        self.compensation = status.compensation
        self.rows = {task.id: Row(task.id, task.agent) for task in status.tasks.values()}
        #: Of a map or a loop: where each instance stands, and how many stand there.
        self._members: dict[str, dict[str, str]] = {}
        self._counts: dict[str, Counter[str]] = {}

    @classmethod
    def of(cls, status: "ExecutionStatus") -> "View":
        """The view of a status as it stands."""
        view = cls(status)
        view.state, view.ended_at, view.error = status.state, status.completed_at, status.error
        for task in status.tasks.values():
            at = task.completed_at or task.started_at or task.queued_at or 0.0
            note = "; ".join(
                part for part in (output.error_text(task.error) or _instances(task), _let_go(task)) if part
            )
            view.rows[task.id] = Row(
                task.id,
                task.agent,
                task.state,
                task.attempt,
                at,
                task.queued_at,
                task.started_at,
                task.completed_at,
                note,
            )
        return view

    def apply(self, update: "StatusUpdate") -> None:
        """Takes a transition of the execution or of a task in."""
        if update.task_id is None:
            self.state = update.status
            self.error = update.error or self.error
            self.ended_at = update.at if update.status in TERMINAL else None
        elif "~" in update.task_id:
            self._count(update.task_id, update.status)
        else:
            self.rows.setdefault(update.task_id, Row(update.task_id, "")).apply(update)

    def _count(self, instance: str, state: str) -> None:
        """Takes in where an instance stands: ten thousand of them are one row."""
        name = instance.split("~", 1)[0]
        members, counts = self._members.setdefault(name, {}), self._counts.setdefault(name, Counter())
        if instance in members:
            counts[members[instance]] -= 1
        members[instance] = state
        counts[state] += 1
        row = self.rows.setdefault(name, Row(name, "", state="running"))
        if row.state not in SETTLED:
            row.note = _counted(len(members), counts)

    def report(self, task_id: str, percent: Any, message: Any) -> None:
        """Takes an agent's own word on its progress in."""
        row = self.rows.get(task_id)
        if row is not None and row.state not in SETTLED and isinstance(percent, int | float):
            row.note = output.printable(f"{percent:.0f}% {message or ''}").rstrip()

    def render(self, rows_max: int | None = None, *, is_marked: bool = True) -> Any:
        """The view as rich shows it; the most telling `rows_max` tasks, or all."""
        from rich.console import Group
        from rich.text import Text

        now = time.time()
        parts: list[Any] = [self._heading(now, is_marked=is_marked), self._bar(), Text()]
        rows = list(self.rows.values())
        if rows_max is not None and len(rows) > rows_max:
            rows = sorted(rows, key=lambda row: (_ORDER.index(row.state), -row.changed_at))[:rows_max]
        shown = [
            (
                output.state_text(row.state, is_marked=is_marked),
                Text(row.id, style="bold"),
                Text(row.agent, style="dim"),
                str(row.attempt or ""),
                output.span(row.elapsed_s(now)),
                Text(row.note, style="red" if row.state == TaskState.FAILED else "dim"),
            )
            for row in rows
        ]
        parts.append(output.table(("state", "task", "agent", "attempt", "time", ""), shown, right=("attempt", "time")))
        if len(rows) < len(self.rows):
            parts.append(Text(f"... and {len(self.rows) - len(rows):,} more", style="dim"))
        if self.error:
            parts.append(Text(f"\n{output.error_text(self.error)}", style="red"))
        if self.compensation is not None or self.compensated:
            parts.append(Text(self._undone(), style="dim" if self.compensation != INCOMPLETE else "red"))
        return Group(*parts)

    def _undone(self) -> str:
        """Which tasks were compensated, the first undone first, and whether that was all."""
        named = ", ".join(self.compensated[:UNDONE_MAX])
        more = len(self.compensated) - UNDONE_MAX
        done = f"undone: {named or 'nothing'}" + (f", and {more:,} more" if more > 0 else "")
        if self.compensation != INCOMPLETE:
            return done
        return f"{done}; not all could be undone ('imx compensate {self.execution_id}' tries again)"

    def _heading(self, now: float, *, is_marked: bool) -> Any:
        from rich.text import Text

        elapsed = output.span((self.ended_at or now) - self.started_at)
        return Text.assemble(
            output.state_text(self.state, is_marked=is_marked),
            ("  " + self.workflow, "bold"),
            ("  " + self.execution_id, "dim"),
            ("  " + elapsed, ""),
        )

    def _bar(self) -> Any:
        from rich.text import Text

        counts = Counter(row.state for row in self.rows.values())
        settled = sum(counts[state] for state in SETTLED)
        total = len(self.rows) or 1
        filled = BAR_WIDTH * settled // total
        style = output.STATE_STYLES.get(self.state, "")
        text = Text.assemble(
            ("━" * filled, style),
            ("━" * (BAR_WIDTH - filled), "dim"),
            f" {settled:,} of {len(self.rows):,} tasks",
        )
        for state in _ORDER:
            if counts[state]:
                text.append(f"  {counts[state]:,} {state}", style=output.STATE_STYLES[state])
        return text


def _let_go(task: "TaskStatus") -> str:
    """What the agent of an attempt that was closed has said since."""
    if task.late:
        return "it was done all the same, later"
    return "its agent has let go" if task.released else ""


def _instances(task: "TaskStatus") -> str:
    """How far a map or a loop is, or which execution a child is."""
    if task.child is not None:
        return f"is {task.child}"
    if task.instances is None:
        return ""
    return _counted(task.instances["total"], task.instances)


def _counted(total: int, counts: "Mapping[str, int]") -> str:
    parts = [f"{count:,} {state}" for state in _ORDER if (count := counts.get(state, 0))]
    return f"{total:,} instances" + (f": {', '.join(parts)}" if parts else "")


def plain_line(update: "StatusUpdate") -> str:
    """A transition as a line of text."""
    attempt = f" (attempt {update.attempt})" if update.attempt > 1 else ""
    error = f"  {output.error_text(update.error)}" if update.error else ""
    return f"{output.clock(update.at)}  {update.status:<10} {update.task_id or 'execution'}{attempt}{error}"


async def follow(client: "Client", execution_id: str, file: TextIO, *, as_json: bool = False) -> "ExecutionStatus":
    """Shows an execution on `file` until it ends; answers its last status. Raises UnknownExecution."""
    status = await client.get_status(execution_id, is_whole=False)
    if as_json or not file.isatty():
        line: Callable[[StatusUpdate], str] = output.to_json if as_json else plain_line
        async for update in client.stream_status(execution_id):
            file.write(line(update) + "\n")
            file.flush()
    else:
        await _follow_live(client, View(status), file)
    return await client.get_status(execution_id, is_whole=False)


async def _follow_live(client: "Client", view: View, file: TextIO) -> None:
    from rich.live import Live

    console = output.console(file)

    def renderable() -> Any:
        return view.render(max(3, console.height - HEADING_LINES))

    with Live(console=console, get_renderable=renderable, auto_refresh=False) as live:
        async with _refreshed(live.refresh), _progress(client, view):
            async for update in client.stream_status(view.execution_id):
                view.apply(update)
        view.ended_at = view.ended_at or time.time()
        last = await client.get_status(view.execution_id, is_whole=False)
        view.compensated, view.compensation = last.compensated, last.compensation
        live.refresh()


@asynccontextmanager
async def _refreshed(refresh: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `refresh` again and again during the block, in this loop: the view is no thread's but its own."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            refresh()

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking


@asynccontextmanager
async def _progress(client: "Client", view: View) -> AsyncIterator[None]:
    """Hands what agents report during the block to the view; best effort, as the reports are."""
    from infinity_matrix_bus.codec import Undecodable, decode_record

    def take(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        try:
            record = decode_record(data)
        except Undecodable:
            return
        view.report(str(record.get("task")), record.get("percent"), record.get("message"))

    session = await client.operations.session()
    pattern = client.operations.subjects.status("*", view.execution_id, "*", "progress") + ".>"
    subscription = await session.subscribe(pattern, take)
    try:
        yield
    finally:
        await subscription.close()
