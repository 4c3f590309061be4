"""Prints the table of the benchmark: reads JSON lines and sets the engine beside its bare limit.

python -m bench.report lines.jsonl [more.jsonl ...]     (or lines on stdin)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench.measurement import Measurement
from bench.workloads import WORKLOADS

LIMIT = "bare"
SYNCS = ("always", "lazy")
PARTS = ("server", "coordinator", "agent")


def table(measurements: Iterable[Measurement]) -> str:
    """Answer a plain-text table, a row for each figure of each workload at each sync setting.

    Columns are each system's median and, where both the limit and another system were measured, the median of their
    ratios, each of neighbours in time: a rate ratio is better the higher it is, a latency ratio the lower.
    """
    found: dict[tuple[str, str], dict[str, list[Measurement]]] = {}
    for one in measurements:
        found.setdefault((one.workload, one.sync), {}).setdefault(one.bench, []).append(one)
    systems = sorted({bench for cells in found.values() for bench in cells}, key=lambda bench: (bench == LIMIT, bench))
    rows = [_heading(systems)]
    for workload, about, names in _sections():
        for sync in SYNCS:
            cells = found.get((workload, sync))
            if cells is not None:
                rows += [[about, sync, name, *_figures(systems, cells, name)] for name in names]
    return _aligned(rows)


def _sections() -> Iterable[tuple[str, str, tuple[str, ...]]]:
    for workload in WORKLOADS:
        yield workload.name, workload.about, figures(workload.mode, workload.hops, workload.in_flight)
    for part in PARTS:
        yield f"idle-{part}", f"idle {part}", ("cpu_percent", "memory_mib")


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


def _figures(systems: list[str], cells: dict[str, list[Measurement]], name: str) -> list[str]:
    values = {system: _values(cells.get(system, []), name) for system in systems}
    texts = [_number(median(those)) if those else "-" for those in values.values()]
    if LIMIT in values:
        for system in systems:
            if system != LIMIT:
                ratios = [ours / limit for ours, limit in zip(values[system], values[LIMIT], strict=False) if limit]
                texts.append(f"{median(ratios):.2f}" if ratios else "-")
    return texts


def _values(measurements: list[Measurement], name: str) -> list[float]:
    return [value for one in measurements if (value := getattr(one, name)) is not None]


def _number(value: float) -> str:
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
