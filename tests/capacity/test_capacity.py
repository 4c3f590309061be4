"""The small ones of `python -m tests.capacity`."""

import asyncio
from pathlib import Path

import infinity_matrix
from infinity_matrix_bus.server import EmbeddedServer

from . import cold_start, sleepers
from .processes import READY_S, CoordinatorProcess, held, standing, until

OPEN = 1000
ASLEEP = 1000
#: What is measured is over before the sleepers leave memory, which they do after 20 s.
IDLE_S = 6.0


async def test_a_thousand_open_executions_go_on_after_a_cold_start() -> None:
    figures = await cold_start.run(OPEN, is_quick=True)
    assert [figure.line() for figure in figures if not figure.is_met] == []


async def test_a_thousand_sleepers_in_memory_cost_no_polling(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "store", sync="lazy") as server:
        coordinator = CoordinatorProcess(server.connect_url, tmp_path)
        try:
            await coordinator.ready()
            async with infinity_matrix.connect(server.connect_url) as client:
                digest = await client.operations.store(sleepers.SLEEPERS.definition())
                inputs = ({"number": number} for number in range(ASLEEP))
                await asyncio.gather(*(client.operations.start("sleepers", digest, input) for input in inputs))
                await until(client, lambda shards: held(shards) == (ASLEEP, 0), READY_S, "all asleep in memory")
                await asyncio.sleep(sleepers.SETTLE_S)
                before_s = coordinator.cpu_s
                await asyncio.sleep(IDLE_S)
                used = (coordinator.cpu_s - before_s) / IDLE_S
                assert used <= sleepers.IDLE_CPU_MAX, f"{100 * used:.1f} % of a core"
                assert sum(held(await standing(client))) == ASLEEP
        finally:
            coordinator.kill()
