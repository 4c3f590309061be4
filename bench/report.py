"""Prints the table of the benchmark: reads JSON lines and sets the engine beside its bare limit.

python -m bench.report lines.jsonl [more.jsonl ...]     (or lines on stdin)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from bench.measurement import Measurement
from bench.workloads import WORKLOADS

LIMIT = "bare"
SYNCS = ("always", "lazy")


def table(measurements: Iterable[Measurement]) -> str:
    """Answer a plain-text table, a row for each workload and sync setting.

    Columns are each system's figure and, where both the limit and another system were measured, their ratio: a rate
    ratio is better the higher it is, a latency ratio the lower. The last of several equal measurements counts.
    """
    found = {(one.bench, one.workload, one.sync): one for one in measurements}
    systems = sorted({bench for bench, _, _ in found}, key=lambda bench: (bench == LIMIT, bench))
    rows = [_heading(systems)]
    for workload in WORKLOADS:
        for sync in SYNCS:
            cells = {system: found.get((system, workload.name, sync)) for system in systems}
            if any(cells.values()):
                for name in figures(workload.mode, workload.hops, workload.in_flight):
                    rows.append([workload.about, sync, name, *_figures(cells, name)])
    return _aligned(rows)


def figures(mode: str, hops: int | None, in_flight: int) -> tuple[str, ...]:
    """Answer the names of the figures that matter for a kind of workload."""
    if mode == "start":
        return ("starts_per_s", "executions_per_s")
    if in_flight > 1:
        return ("executions_per_s", "tasks_per_s", "p50_ms")
    return ("p50_ms_per_hop", "p99_ms_per_hop") if hops else ("p50_ms", "p99_ms", "tasks_per_s")


def _heading(systems: list[str]) -> list[str]:
    ratios = [f"{system}/{LIMIT}" for system in systems if system != LIMIT] if LIMIT in systems else []
    return ["workload", "sync", "figure", *systems, *ratios]


def _figures(cells: dict[str, Measurement | None], name: str) -> list[str]:
    values: dict[str, float | None] = {
        system: getattr(one, name) if one is not None else None for system, one in cells.items()
    }
    texts = [_number(value) for value in values.values()]
    if LIMIT in values:
        limit = values[LIMIT]
        texts += [
            f"{value / limit:.2f}" if value is not None and limit else "-"
            for system, value in values.items()
            if system != LIMIT
        ]
    return texts


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    words = 3  # workload, sync and figure are words and stand left; numbers stand right
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < words else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main() -> None:
    """Read JSON lines from the named files, or from stdin, and print the table."""
    paths = sys.argv[1:]
    text = "\n".join(Path(path).read_text(encoding="utf-8") for path in paths) if paths else sys.stdin.read()
    print(table(Measurement.parse(line) for line in text.splitlines() if line.startswith("{")))


if __name__ == "__main__":
    main()
