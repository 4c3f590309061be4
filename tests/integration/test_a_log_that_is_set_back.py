"""A log that is set back under a living coordinator: it is noticed, and everything ends all the same."""

from pathlib import Path

from harness import World, all_finished, started
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.snapshot import load_stream, save_stream

HELD = 40
LATER = 20
SHARDS = 4
TASKS = [Task("go", wait_for="go"), Task("last", "worker", depends_on=["go"])]


async def test_a_log_set_back_under_a_living_coordinator_is_read_anew(world: World, tmp_path: Path) -> None:
    await world.coordinator(sweep_interval_s=1.0)
    await world.agent("worker")
    async with world.client() as client:
        digest = await client.operations.store(Workflow("set-back", tasks=TASKS).definition())
        held = await started(client, digest, "set-back", HELD)
        session = await client.operations.session()
        api = JetStreamApi(session)
        saved = [await save_stream(session, f"IM_FACTS_{n}", tmp_path / str(n)) for n in range(SHARDS)]
        for execution in held:
            await client.signal(execution, "go")
        await all_finished(client, held, 20.0)
        for n, snapshot in enumerate(saved):
            await api.call(f"STREAM.DELETE.IM_FACTS_{n}")
            await load_stream(session, snapshot, tmp_path / str(n), snapshot.config)
        # What came after the snapshots is gone from the logs: they end again, as do those that are new.
        later = await started(client, digest, "set-back", LATER)
        for execution in held + later:
            await client.signal(execution, "go")
        await all_finished(client, held + later, 40.0)
