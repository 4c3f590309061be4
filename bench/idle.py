"""What a system costs while nothing runs: CPU and memory of each of its processes, as the kernel counts them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from bench.driver import Running
from bench.measurement import Measurement

IDLE_S = 4.0
SETTLE_S = 1.0
"""Waited first, so that the end of the last workload is not counted."""

MIB = 1 << 20


async def measure_idle(running: Running, sync: str) -> list[Measurement]:
    """Watch the processes for a few seconds and answer a measurement of each; none where there is no /proc."""
    if not sys.platform.startswith("linux"):
        return []
    await asyncio.sleep(SETTLE_S)
    before = {part: cpu_s(pid) for part, pid in running.processes.items()}
    began_s = time.perf_counter()
    await asyncio.sleep(IDLE_S)
    window_s = time.perf_counter() - began_s
    return [
        Measurement(
            bench=running.bench,
            workload=f"idle-{part}",
            sync=sync,
            executions=0,
            seconds=round(window_s, 3),
            cpu_percent=round(100 * (cpu_s(pid) - before[part]) / window_s, 2),
            memory_mib=round(resident_bytes(pid) / MIB, 1),
        )
        for part, pid in running.processes.items()
    ]


def cpu_s(pid: int) -> float:
    """Answer the seconds of CPU a process used in all its threads since it began (Linux; raises OSError)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Answer the memory of a process that is in RAM (Linux; raises OSError)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
