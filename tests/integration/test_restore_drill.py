"""The restore drill: backed up while executions are open, the store wiped, restored elsewhere; everything completes."""

from pathlib import Path

from harness import World, all_finished, say, started, until
from history import history_of, lines_of, verify
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.backup import Manifest, back_up, restore
from infinity_matrix_bus.installation import read_installation
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session

COUNT = 60
#: How many are to be at an end when the backup is taken.
ENDED = 10


def workflow() -> Workflow:
    retry = {"max_attempts": 3, "initial_delay": 0.2}
    return Workflow(
        "drill",
        tasks=[
            Task("first", "worker", config={"seconds": 0.02}),
            Task("flaky", "worker", config={"failures": 1}, retry_config=retry, depends_on=["first"]),
            Task("second", "worker", config={"seconds": 0.05}, depends_on=["first"]),
            Task("last", "worker", config={"seconds": 0.1}, depends_on=["flaky", "second"]),
        ],
    )


def failing() -> Workflow:
    """Undone when its second task has failed."""
    tasks = [
        Task("book", "worker", compensation=Task("cancel-booking", "worker")),
        Task("pay", "worker", config={"failures": 9, "seconds": 0.3}, depends_on=["book"]),
    ]
    return Workflow("failing-drill", tasks=tasks)


def waiting() -> Workflow:
    return Workflow(
        "waiting-drill", tasks=[Task("approval", wait_for="go"), Task("then", "worker", depends_on=["approval"])]
    )


async def test_everything_that_was_started_before_the_backup_completes_after_the_restore(
    world: World, server: EmbeddedServer, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    await world.coordinator()
    # One at a time, so that most are open when some have ended.
    await world.agent("worker", concurrency=1)
    async with world.client() as client:
        digest = await client.operations.store(workflow().definition())
        executions = await started(client, digest, "drill", COUNT)
        undone = await started(client, await client.operations.store(failing().definition()), "failing-drill", 5)
        held = await started(client, await client.operations.store(waiting().definition()), "waiting-drill", 5)

        def some_ended() -> bool:
            return sum(line.task == "last" for line in lines_of(world.journal)) >= ENDED

        await until(some_ended, 60.0, f"the end of {ENDED}")
        manifest = await back_up(await client.operations.session(), client.operations.installation, folder)
        # What is started now is not in the backup.
        (late,) = await started(client, digest, "drill", 1)
        assert late in {one.execution_id for one in await client.list()}
    world.close()
    await server.stop()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    async with EmbeddedServer(fresh / "store", sync="lazy") as other:
        await restore_on(other, folder, manifest)
        again = World(other, fresh)
        try:
            async with again.client() as client:
                open_count = sum(one.state not in ("completed", "failed") for one in await client.list())
                say(f"{open_count} of {COUNT + 10} executions were open in the backup")
                assert open_count > COUNT / 3
                await again.coordinator()
                await again.agent("worker")
                for execution in held:
                    await client.signal(execution, "go")
                states = await all_finished(client, [*executions, *undone, *held], 60.0)
                assert {states[execution] for execution in executions + held} == {"completed"}
                assert {states[execution] for execution in undone} == {"failed"}
                for execution in undone:
                    assert (await client.wait(execution)).compensated == ("book",)
                assert late not in {one.execution_id for one in await client.list()}
            history = await history_of(other.connect_url, again.journal)
            # The agents' journal is of two histories: what ran after the backup ran again.
            history.journal = None
            assert verify(history) == []
            assert len(history.facts) == COUNT + 10
        finally:
            again.close()
            say(again.logs())
    assert manifest.messages > COUNT


async def restore_on(server: EmbeddedServer, folder: Path, manifest: Manifest) -> None:
    session = await Session.connect(Endpoint(server.connect_url))
    try:
        assert await restore(session, folder) == manifest
        assert (await read_installation(session)).shards == manifest.shards
        assert await JetStreamApi(session).stream_info("IM_WORK") is not None
    finally:
        await session.close()


async def test_a_restore_under_a_living_coordinator_is_noticed(world: World, tmp_path: Path) -> None:
    await world.coordinator()
    await world.agent("worker")
    async with world.client() as client:
        digest = await client.operations.store(waiting().definition())
        held = await started(client, digest, "waiting-drill", 20)
        session = await client.operations.session()
        await back_up(session, client.operations.installation, tmp_path / "backup")
        for execution in held:
            await client.signal(execution, "go")
        late = await started(client, digest, "waiting-drill", 20)
        await all_finished(client, held, 20.0)
        await restore(session, tmp_path / "backup", overwrites=True)
        # The log is shorter than what the coordinator has read: these come before its position.
        after = await started(client, digest, "waiting-drill", 20)
        for execution in [*held, *after]:
            await client.signal(execution, "go")
        states = await all_finished(client, [*held, *after], 30.0)
        assert set(states.values()) == {"completed"}
    history = await history_of(world.server.connect_url, world.journal)
    history.journal = None
    assert verify(history) == []
    assert history.facts.keys() == {*held, *after}
    assert not history.facts.keys() & set(late)
