"""What the demo says at its end: what ran, what was checked, and whether all of it is as it should be."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from infinity_matrix.demo.etl import LATE_MIN, Totals


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, and whether it did."""

    text: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A half of the demo: one execution and what was checked of it. `seconds` is how long the execution took."""

    title: str
    workflow: str
    execution_id: str
    status: str
    seconds: float
    tasks: int
    completed: int
    skipped: int
    checks: tuple[Check, ...]
    totals: tuple[Totals, ...] = ()
    totals_of_source: tuple[Totals, ...] = ()

    @property
    def is_met(self) -> bool:
        return all(check.is_met for check in self.checks)

    def show(self, console: Console) -> None:
        """Prints what came of it; the title stands above the view already."""
        if self.totals:
            console.print(_totals_table(self.totals, self.totals_of_source))
        for check in self.checks:
            console.print(_line(check), soft_wrap=True)
        skipped = f", {self.skipped:,} skipped" if self.skipped else ""
        ran = f"{self.completed:,} tasks completed{skipped} in {self.seconds:.1f} s"
        console.print(f"  {ran}, execution {self.execution_id}\n", style="dim", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole demo; `seconds` includes starting and stopping the server."""

    parts: tuple[Part, ...]
    seconds: float

    @property
    def is_met(self) -> bool:
        return all(part.is_met for part in self.parts)

    def record(self) -> dict[str, Any]:
        """The summary as plain data."""
        return {
            "ok": self.is_met,
            "seconds": round(self.seconds, 2),
            "executions": [asdict(part) for part in self.parts],
        }

    def show(self, console: Console) -> None:
        """Prints the verdict."""
        tasks = sum(part.completed for part in self.parts)
        ran = f"{len(self.parts)} executions, {tasks:,} tasks, {self.seconds:.1f} s in all"
        verdict, style = ("All checks passed", "bold green") if self.is_met else ("A check FAILED", "bold red")
        console.print(f"{verdict}: {ran}.", style=style)


def _totals_table(totals: tuple[Totals, ...], source: tuple[Totals, ...]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("  airport")
    for heading in ("flights", "arrived", "quarantined", "miles", "air min", f"{LATE_MIN}+ min late"):
        table.add_column(heading, justify="right")
    table.add_column("")
    expected = {line.origin: line for line in source}
    for line in totals:
        figures = [f"{value:,}" for value in list(asdict(line).values())[1:]]
        is_equal = expected.get(line.origin) == line
        table.add_row(
            f"  {line.origin}", *figures, Text("=" if is_equal else "≠", style="green" if is_equal else "red")
        )
    return table


def _line(check: Check) -> Text:
    mark = Text("  ✓ ", style="green") if check.is_met else Text("  ✗ ", style="red")
    return mark.append(check.text, style="default")
