"""One line of the benchmark: what was measured, in which units, and how it is computed from raw durations."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pydantic_core import from_json, to_json

from bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Measurement:
    """The figures of one workload at one sync setting; None where a figure does not apply."""

    bench: str
    workload: str
    sync: str
    executions: int
    """Executions (starts, for the start rate) inside the measured window."""
    seconds: float
    executions_per_s: float | None = None
    tasks_per_s: float | None = None
    starts_per_s: float | None = None
    p50_ms: float | None = None
    """Whole executions, from start to known end."""
    p99_ms: float | None = None
    p50_ms_per_hop: float | None = None
    p99_ms_per_hop: float | None = None
    cpu_percent: float | None = None
    """Of one core, while nothing runs."""
    memory_mib: float | None = None

    def line(self) -> str:
        """Answer the JSON line, without the figures that do not apply."""
        return to_json({key: value for key, value in asdict(self).items() if value is not None}).decode()

    @classmethod
    def parse(cls, line: str) -> Measurement:
        """Answer the measurement of a JSON line; raises TypeError or ValueError for anything else."""
        return cls(**from_json(line))


def of_executions(bench: str, workload: Workload, sync: str, durations_s: list[float], window_s: float) -> Measurement:
    """Answer the measurement of executions that ended within a window of `window_s` seconds.

    Raises RuntimeError when none ended, since there is nothing to tell then.
    """
    if not durations_s:
        raise RuntimeError(f"{workload.name}: no execution ended within {window_s:.1f} s")
    ordered_ms = sorted(duration_s * 1_000 for duration_s in durations_s)
    p50_ms, p99_ms = quantile(ordered_ms, 0.50), quantile(ordered_ms, 0.99)
    executions_per_s = len(ordered_ms) / window_s
    return Measurement(
        bench=bench,
        workload=workload.name,
        sync=sync,
        executions=len(ordered_ms),
        seconds=round(window_s, 3),
        executions_per_s=round(executions_per_s, 1),
        tasks_per_s=round(executions_per_s * len(workload.graph), 1),
        p50_ms=round(p50_ms, 3),
        p99_ms=round(p99_ms, 3),
        p50_ms_per_hop=round(p50_ms / workload.hops, 3) if workload.hops else None,
        p99_ms_per_hop=round(p99_ms / workload.hops, 3) if workload.hops else None,
    )


def of_starts(
    bench: str, workload: Workload, sync: str, starts: int, window_s: float, all_starts: int, settled_s: float
) -> Measurement:
    """Answer the measurement of `starts` confirmed starts in `window_s` seconds.

    `all_starts` (warm-up included) took `settled_s` seconds until the last of their executions had ended; the rate of
    executions is theirs.
    """
    executions_per_s = all_starts / settled_s
    return Measurement(
        bench=bench,
        workload=workload.name,
        sync=sync,
        executions=starts,
        seconds=round(window_s, 3),
        executions_per_s=round(executions_per_s, 1),
        tasks_per_s=round(executions_per_s * len(workload.graph), 1),
        starts_per_s=round(starts / window_s, 1),
    )


def quantile(ordered: list[float], share: float) -> float:
    """Answer the value below which `share` of the sorted, non-empty list lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
