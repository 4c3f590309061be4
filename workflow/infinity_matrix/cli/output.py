"""Writing answers: JSON for programs, tables and words for people."""

import dataclasses
import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: A pipe has no width: tables are as wide as they need to be.
PIPE_WIDTH = 1000
STATE_STYLES = {
    "completed": "green",
    "running": "cyan",
    "queued": "yellow",
    "retrying": "yellow",
    "compensating": "yellow",
    "paused": "yellow",
    "failed": "bold red",
    "cancelled": "magenta",
    "skipped": "dim",
    "waiting": "dim",
}
STATE_MARKS = {
    "completed": "✓",
    "running": "●",
    "queued": "◌",
    "retrying": "↻",
    "failed": "✗",
    "cancelled": "✗",
    "skipped": "–",
    "waiting": "·",
}


def console(file: TextIO | None = None) -> "Console":
    """A console on stdout, or `file`. NO_COLOR and pipes get no colour."""
    from rich.console import Console

    file = file or sys.stdout
    width = None if file.isatty() else PIPE_WIDTH
    return Console(file=file, width=width, highlight=False, soft_wrap=False)


def write_line(text: str) -> None:
    """A line on stdout, at once: a reader of a stream waits for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line on stderr, for people only."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write_json(value: Any) -> None:
    """A value as one line of JSON on stdout."""
    write_line(to_json(value))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of plain values and our records; times are RFC 3339."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent, default=str)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> Any:
    """A table without lines; columns named in `right` are right-aligned."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="ellipsis", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    return grid


def state_text(state: str, *, is_marked: bool = True) -> Any:
    """A state in its colour, behind its mark; a pipe gets no mark, so that the first word is the state."""
    from rich.text import Text

    mark = f"{STATE_MARKS.get(state, ' ')} " if is_marked else ""
    return Text(mark + state, style=STATE_STYLES.get(state, ""))


def printable(text: str) -> str:
    """Text of agents without what would steer a terminal; tabs and line ends stay."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def error_text(error: Any) -> str:
    """A failure in a line."""
    if not isinstance(error, dict):
        return "" if error is None else printable(str(error))
    message = " ".join(str(error.get("message", "")).split())
    kind = str(error.get("type", ""))
    text = f"{kind}: {message}" if kind and message else kind or message
    return printable(f"task {error['task']}: {text}" if error.get("task") else text)


def clock(at: float | None) -> str:
    """A time of today as people read it, to the millisecond; local time."""
    return "" if at is None else f"{datetime.datetime.fromtimestamp(at):%H:%M:%S.%f}"[:-3]


def date(at: float | None) -> str:
    """A date and time, local."""
    return "" if at is None else f"{datetime.datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"


def span(seconds: float | None) -> str:
    """A duration as people read it."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _plain(value: Any, key: str = "") -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
    if isinstance(value, float) and (key == "at" or key.endswith("_at")):
        at = datetime.datetime.fromtimestamp(value, datetime.UTC)
        return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, dict):
        # What users made is theirs: only our own records have times.
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
