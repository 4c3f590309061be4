"""An agent that nobody runs: others are served as ever, and the coordinator's memory stays as it is."""

import asyncio
import time
from pathlib import Path

from harness import Process, World, all_finished, say, started, until
from infinity_matrix.workflow import Task, Workflow
from plain import connected

QUEUED_MAX = 2_000
#: More than may be queued, so that some of each shard waits in its coordinator.
EXECUTIONS = QUEUED_MAX * 12 // 10
OTHERS = 40
#: The most of the coordinator's memory an open execution of one small task may take.
BYTES_EACH_MAX = 16 * 1024
#: What the process may take besides while nothing happens but sweeps.
STILL_BYTES_MAX = 8 * 1024**2


def resident_bytes(process: Process) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process has no memory")


async def test_an_absent_agent_with_a_deep_queue_starves_nobody_and_costs_little(world: World) -> None:
    coordinator = await world.coordinator(sweep_interval_s=1.0, queued_max=QUEUED_MAX)
    await world.agent("present")
    async with world.client() as client, connected(world.server.connect_url) as nats:
        here = Workflow("here", tasks=[Task("a", "present"), Task("b", "present", depends_on=["a"])])
        await here.execute(timeout=20.0)
        idle_bytes = resident_bytes(coordinator)
        digest = await client.operations.store(Workflow("absent", tasks=[Task("a", "absent")]).definition())
        executions = await started(client, digest, "absent", EXECUTIONS)

        async def queued() -> int:
            info = await nats.jetstream().stream_info("IM_WORK", subjects_filter="im.work.absent.>")
            return sum((info.state.subjects or {}).values())

        async def is_full() -> bool:
            return await queued() == QUEUED_MAX

        await until(is_full, 60.0, "the queue being full")
        # A long wait: it is swept again and again.
        took_s = []
        for _ in range(OTHERS):
            began = time.monotonic()
            assert (await here.execute(timeout=20.0)).status == "completed"
            took_s.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        took_s.sort()
        say(f"beside {EXECUTIONS:,} queued: p50 {took_s[OTHERS // 2] * 1e3:.0f} ms, longest {took_s[-1] * 1e3:.0f} ms")
        assert took_s[OTHERS // 2] < 1.0
        assert await queued() == QUEUED_MAX
        deep_bytes = resident_bytes(coordinator)
        await asyncio.sleep(4.0)
        grown_bytes = resident_bytes(coordinator) - deep_bytes
        each_bytes = (deep_bytes - idle_bytes) / EXECUTIONS
        say(f"{idle_bytes / 2**20:.0f} MiB idle, {deep_bytes / 2**20:.0f} MiB with them")
        say(f"{each_bytes / 1024:.1f} KiB for each execution")
        say(f"{grown_bytes / 2**20:+.1f} MiB in 4 s of waiting")
        assert each_bytes < BYTES_EACH_MAX
        assert grown_bytes < STILL_BYTES_MAX
        await world.agent("absent", concurrency=256)
        states = await all_finished(client, executions, 120.0)
        assert set(states.values()) == {"completed"}
        assert await queued() == 0
