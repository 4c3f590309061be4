"""Executions that only sleep, as many as are wanted: what they cost the coordinator that starts them, and the next."""

import asyncio
import tempfile
import time
from pathlib import Path

import infinity_matrix
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.server import EmbeddedServer

from .figures import Figure
from .processes import READY_S, CoordinatorProcess, held, until

SLEEPERS = Workflow("sleepers", tasks=[Task("nap", sleep="6h"), Task("then", "nobody", depends_on=["nap"])])
STARTS_AT_ONCE = 2000
MEMORY_MAX_MB, IDLE_CPU_MAX, COLD_START_MAX_S = 200.0, 0.02, 30.0
#: What a burst leaves to do is over before idleness is measured.
SETTLE_S, IDLE_S = 3.0, 10.0
PARK_S = 300.0


async def run(count: int) -> list[Figure]:
    """Starts `count` sleepers as fast as one client can, waits until they left memory, and has them taken over."""
    with tempfile.TemporaryDirectory(prefix="im-capacity-") as folder:
        async with EmbeddedServer(Path(folder) / "store", sync="lazy") as server:
            return await _run(count, server.connect_url, Path(folder))


async def _run(count: int, url: str, folder: Path) -> list[Figure]:
    first = CoordinatorProcess(url, folder)
    figures: list[Figure] = []
    try:
        await first.ready()
        async with infinity_matrix.connect(url) as client:
            figures.append(Figure("idle before anything", first.resident_mb, "MB"))
            figures.append(Figure(f"to start {count:,} sleepers", await _started(client, count), "s"))
            parked_s = await until(client, lambda shards: held(shards) == (0, count), PARK_S, "all out of memory")
            figures.append(Figure("until the last left memory", parked_s, "s"))
            figures.append(Figure("the most memory", first.peak_mb, "MB", MEMORY_MAX_MB))
            figures.append(Figure("memory once they sleep", first.resident_mb, "MB", MEMORY_MAX_MB))
            figures.append(Figure("CPU while they sleep", 100 * await _idle_cpu(first), "%", 100 * IDLE_CPU_MAX))
            first.kill()
            second = CoordinatorProcess(url, folder)
            try:
                await until(client, lambda shards: held(shards) == (0, count), READY_S, "a coordinator that is live")
                figures.append(
                    Figure("cold start to all known", time.monotonic() - second.began, "s", COLD_START_MAX_S)
                )
                figures.append(Figure("the most memory of a cold start", second.peak_mb, "MB", MEMORY_MAX_MB))
                figures.append(Figure("CPU after it", 100 * await _idle_cpu(second), "%", 100 * IDLE_CPU_MAX))
            finally:
                second.kill()
    finally:
        first.kill()
    return figures


async def _started(client: Client, count: int) -> float:
    digest = await client.operations.store(SLEEPERS.definition())
    began = time.monotonic()
    for start in range(0, count, STARTS_AT_ONCE):
        numbers = range(start, min(count, start + STARTS_AT_ONCE))
        await asyncio.gather(*(client.operations.start("sleepers", digest, {"number": n}) for n in numbers))
    return time.monotonic() - began


async def _idle_cpu(coordinator: CoordinatorProcess) -> float:
    """The share of a core."""
    await asyncio.sleep(SETTLE_S)
    before = coordinator.cpu_s
    await asyncio.sleep(IDLE_S)
    return (coordinator.cpu_s - before) / IDLE_S
