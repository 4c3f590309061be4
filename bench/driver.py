"""Puts a system under a workload and measures it; the same driver for the bare limit and for the engine.

A workload is a closed loop: as many slots as executions may be open, each starting the next one when its own ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from bench.measurement import Measurement, of_executions, of_starts
from bench.workloads import Workload

OVERTIME_S = 60.0
"""How much longer than its warm-up and duration a measurement may take before it has failed."""


class System(Protocol):
    """What is measured, seen from its client process."""

    async def execute(self, workload: Workload) -> None:
        """Run one execution of the workload's graph and return when its end is known."""

    async def start(self, workload: Workload) -> None:
        """Start one execution and return when its start is durable."""

    async def settle(self) -> None:
        """Return when no execution that was started is open any more."""


@dataclass(frozen=True, slots=True)
class Running:
    """A system that runs: its client in this process, and the process ids of the rest by their part."""

    bench: str
    system: System
    processes: dict[str, int]


async def measure(bench: str, system: System, workload: Workload, sync: str) -> Measurement:
    """Run the workload against the system and answer its figures.

    Raises TimeoutError when the system stalls and whatever the system raises.
    """
    async with asyncio.timeout(workload.warm_up_s + workload.duration_s + OVERTIME_S):
        if workload.mode == "start":
            return await _measure_starts(bench, system, workload, sync)
        durations_s, window_s = await _closed_loop(workload, lambda: system.execute(workload))
        return of_executions(bench, workload, sync, durations_s, window_s)


async def _measure_starts(bench: str, system: System, workload: Workload, sync: str) -> Measurement:
    starts = 0

    async def start() -> None:
        nonlocal starts
        await system.start(workload)
        starts += 1

    began_s = time.perf_counter()
    durations_s, window_s = await _closed_loop(workload, start)
    await system.settle()
    settled_s = time.perf_counter() - began_s
    return of_starts(bench, workload, sync, len(durations_s), window_s, starts, settled_s)


async def _closed_loop(workload: Workload, once: Callable[[], Awaitable[None]]) -> tuple[list[float], float]:
    """Answer the durations (seconds) of what ended inside the measured window, and the window's length.

    What began before the window or ends after it was under the same load, so only the moment of its end counts.
    """
    durations_s: list[float] = []
    window_from_s = time.perf_counter() + workload.warm_up_s
    window_to_s = window_from_s + workload.duration_s
    last_end_s = window_from_s

    async def slot() -> None:
        nonlocal last_end_s
        began_s = time.perf_counter()
        while began_s < window_to_s:
            await once()
            ended_s = time.perf_counter()
            if window_from_s <= ended_s < window_to_s:
                durations_s.append(ended_s - began_s)
                last_end_s = ended_s
            began_s = ended_s

    async with asyncio.TaskGroup() as slots:
        for _ in range(workload.in_flight):
            slots.create_task(slot())
    # One at a time, the window closes with the last whole execution; long ones would else be cut off uncounted.
    return durations_s, (last_end_s if workload.in_flight == 1 else window_to_s) - window_from_s
