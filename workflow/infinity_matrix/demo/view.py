"""What the demo shows: an execution while it runs, live in a terminal and as plain lines elsewhere."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from types import TracebackType

from infinity_matrix_coordinator.views import StatusUpdate
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESHES_PER_S = 12
BAR_WIDTH = 32
#: Plain output says where it is each time this many percent more are done.
PLAIN_STEP_PERCENT = 20
SETTLED = frozenset({"completed", "skipped", "failed", "cancelled"})
IN_FLIGHT = frozenset({"queued", "running", "retrying"})


class ExecutionView:
    """An execution by the groups its tasks belong to. Give it every update; use it as a context to show it."""

    def __init__(self, console: Console, title: str, groups: Mapping[str, str]) -> None:
        self._console = console
        self._title = title
        self._groups = groups
        self._sizes = Counter(groups.values())
        self._states: dict[str, str] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._said_percent = 0
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=REFRESHES_PER_S)

    def __enter__(self) -> "ExecutionView":
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    async def follow(self, updates: AsyncIterator[StatusUpdate]) -> None:
        """Shows updates until they end, which is when the execution does."""
        async for update in updates:
            self.receive(update)

    def receive(self, update: StatusUpdate) -> None:
        """Takes one transition in."""
        if update.task_id is None:
            return
        group = self._groups[update.task_id]
        before = self._states.get(update.task_id)
        if before is not None:
            self._counts[group, before] -= 1
        self._states[update.task_id] = update.status
        self._counts[group, update.status] += 1
        if not self._console.is_terminal and self.percent >= self._said_percent + PLAIN_STEP_PERCENT:
            self._said_percent = int(self.percent // PLAIN_STEP_PERCENT) * PLAIN_STEP_PERCENT
            self._console.print(self.summary())

    @property
    def percent(self) -> float:
        """Settled tasks over all tasks."""
        return 100 * self._count(SETTLED) / max(1, len(self._groups))

    def summary(self) -> str:
        """Where the execution is, in a line."""
        settled, in_flight, skipped = self._count(SETTLED), self._count(IN_FLIGHT), self._count({"skipped"})
        failed = self._count({"failed", "cancelled"})
        line = f"  {self.percent:3.0f}%  {settled:,} of {len(self._groups):,} tasks done, {in_flight:,} in flight"
        return line + (f", {skipped:,} skipped" if skipped else "") + (f", {failed:,} failed" if failed else "")

    def render(self) -> RenderableType:
        """The view as it stands now."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("", min_width=14)
        table.add_column("", width=BAR_WIDTH)
        for heading in ("tasks", "done", "in flight", "skipped"):
            table.add_column(heading, justify="right", header_style="dim")
        for group, size in self._sizes.items():
            settled = self._count(SETTLED, group)
            bar = ProgressBar(total=size, completed=settled, width=BAR_WIDTH)
            skipped = self._count({"skipped"}, group)
            in_flight = self._count(IN_FLIGHT, group)
            table.add_row(
                f"  {group}", bar, f"{size:,}", f"{settled - skipped:,}", _unless_zero(in_flight), _unless_zero(skipped)
            )
        return Group(Text(self._title, style="bold"), table, Text(self.summary(), style="cyan"), Text())

    def _count(self, states: frozenset[str] | set[str], group: str | None = None) -> int:
        groups = self._sizes if group is None else (group,)
        return sum(self._counts[name, state] for name in groups for state in states)


def _unless_zero(count: int) -> str:
    return f"{count:,}" if count else ""
