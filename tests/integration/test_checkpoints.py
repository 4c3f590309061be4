"""Executions that are open for long: stored, out of memory, back at their next fact or timer, beyond the log's age."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness import until
from infinity_matrix.agents import Agent, Failure, Work, serve_agents
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import ExecutionExists
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator import checkpoints
from infinity_matrix_coordinator.checkpoint_store import Checkpoint, CheckpointStore
from infinity_matrix_coordinator.execution import CLEAN
from infinity_matrix_coordinator.process import Coordinator

AFTER_S = 0.4
WAIT_S = 20.0
CROWD = 1000
_SECOND = 1_000_000_000
WORKFLOW = Workflow(
    "patient",
    tasks=[Task("first", sleep=0.1), Task("second", wait_for="go", depends_on=["first"]), Task("third", sleep=0.1)],
)


@pytest.fixture
async def running(server: EmbeddedServer) -> AsyncIterator[Coordinator]:
    coordinator = await coordinate(server)
    yield coordinator
    await coordinator.stop()


async def coordinate(server: EmbeddedServer) -> Coordinator:
    return await Coordinator(Endpoint(server.url, token=server.token), shards=2, checkpoint_after_s=AFTER_S).start()


async def connected(server: EmbeddedServer) -> Client:
    return await Client(Endpoint(server.url, token=server.token)).open()


def passive(coordinator: Coordinator) -> int:
    return sum(len(shard.mailbox.passive) for shard in coordinator.shards.values())


def active(coordinator: Coordinator) -> int:
    return sum(len(shard.mailbox.executions) for shard in coordinator.shards.values())


async def test_what_only_waits_leaves_memory_and_comes_back_on_its_signal(
    server: EmbeddedServer, running: Coordinator
) -> None:
    client = await connected(server)
    try:
        ids = [await client.start_definition(WORKFLOW.definition(), n) for n in range(20)]
        await until(lambda: passive(running) == 20 and active(running) == 0, WAIT_S)
        for id in ids:
            await client.signal(id, "go", {"for": id})
        results = await asyncio.gather(*(client.wait(id, WAIT_S) for id in ids))
        assert [result.outputs["second"]["for"] for result in results] == ids
        await until(lambda: passive(running) == 0 and active(running) == 0, WAIT_S)
    finally:
        await client.close()


async def test_what_sleeps_out_of_memory_wakes_at_its_time(server: EmbeddedServer, running: Coordinator) -> None:
    client = await connected(server)
    try:
        sleeping = Workflow("sleeping", tasks=[Task("nap", sleep=2.5)])
        ids = [await client.start_definition(sleeping.definition(), n) for n in range(10)]
        await until(lambda: passive(running) == 10, WAIT_S)
        results = await asyncio.gather(*(client.wait(id, WAIT_S) for id in ids))
        assert all(result.status == "completed" for result in results)
        assert max(result.duration for result in results) < 4.5
    finally:
        await client.close()


async def test_a_timer_that_falls_due_while_a_fact_brings_its_execution_back_is_not_lost(
    server: EmbeddedServer, running: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await connected(server)
    is_readable, is_wanted = asyncio.Event(), asyncio.Event()
    read = CheckpointStore.read

    async def read_in_the_end(store: CheckpointStore, execution: str) -> Checkpoint | None:
        is_wanted.set()
        await is_readable.wait()
        return await read(store, execution)

    try:
        sleeping = Workflow("sleeping", tasks=[Task("nap", sleep=2.0), Task("then", wait_for="go", depends_on=["nap"])])
        id = await client.start_definition(sleeping.definition())
        await until(lambda: passive(running) == 1, WAIT_S)
        monkeypatch.setattr(CheckpointStore, "read", read_in_the_end)
        await client.operations.publish_signal(id, "go", None, "one")
        async with asyncio.timeout(WAIT_S):
            await is_wanted.wait()
        timers = [shard.performer.timers for shard in running.shards.values()]
        await until(lambda: not any(map(len, timers)), WAIT_S, "the timer's time")
        assert passive(running) == 1
        is_readable.set()
        assert (await client.wait(id, WAIT_S)).status == "completed"
    finally:
        await client.close()


async def test_a_new_coordinator_takes_up_what_was_stored_without_reading_the_whole_log(
    server: EmbeddedServer,
) -> None:
    coordinator = await coordinate(server)
    client = await connected(server)
    try:
        ids = [await client.start_definition(WORKFLOW.definition(), n) for n in range(20)]
        await until(lambda: passive(coordinator) == 20, WAIT_S)
        await until(lambda: all(shard.checkpoints.mark.sequence > 1 for shard in coordinator.shards.values()), WAIT_S)
        await coordinator.stop()
        coordinator = await coordinate(server)
        assert passive(coordinator) == 20
        assert sum(shard.performer.counters.facts for shard in coordinator.shards.values()) < 40
        for id in ids:
            await client.signal(id, "go")
        results = await asyncio.gather(*(client.wait(id, WAIT_S) for id in ids))
        assert all(result.status == "completed" for result in results)
    finally:
        await client.close()
        await coordinator.stop()


async def test_an_execution_outlives_the_age_of_the_log(server: EmbeddedServer) -> None:
    coordinator = await coordinate(server)
    client = await connected(server)
    try:
        await shorten(client, 2)
        ids = [await client.start_definition(WORKFLOW.definition(), n) for n in range(5)]
        await until(lambda: passive(coordinator) == 5, WAIT_S)
        await until(lambda: facts_left(client), 15.0)
        await coordinator.stop()
        coordinator = await coordinate(server)
        assert {one.execution_id for one in await client.list(state="running")} == set(ids)
        status = await client.get_status(ids[0])
        assert (status.state, status.tasks["first"].state) == ("running", "completed")
        # Its id is still its own, though the log would take another start of it.
        assert await client.start_definition(WORKFLOW.definition(), 0, ids[0]) == ids[0]
        with pytest.raises(ExecutionExists):
            await client.start_definition(WORKFLOW.definition(), "another", ids[0])
        assert await facts_left(client)
        for id in ids:
            await client.signal(id, "go")
        results = await asyncio.gather(*(client.wait(id, WAIT_S) for id in ids))
        assert all(result.status == "completed" for result in results)
    finally:
        await client.close()
        await coordinator.stop()


async def test_a_crowd_that_only_waits_leaves_memory_before_its_time(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ACTIVE_MAX", 50)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_INTERVAL_S", 600.0)
    coordinator = await Coordinator(Endpoint(server.url, token=server.token), shards=2).start()
    client = await connected(server)
    try:
        definition = Workflow("crowd", tasks=[Task("only", wait_for="go")]).definition()
        digest = await client.operations.store(definition)
        ids = await asyncio.gather(*(client.operations.start("crowd", digest, n) for n in range(CROWD)))
        # No turn comes in time for their age.
        await until(lambda: active(coordinator) <= 2 * 50 and passive(coordinator) >= CROWD - 2 * 50, WAIT_S)
        for id in ids:
            await client.signal(id, "go", {"for": id})
        results = await asyncio.gather(*(client.wait(id, WAIT_S) for id in ids))
        assert [result.outputs["only"]["for"] for result in results] == ids
        assert passive(coordinator) == 0
    finally:
        await client.close()
        await coordinator.stop()


async def test_a_saga_outlives_the_log_and_its_coordinators(server: EmbeddedServer) -> None:
    coordinator = await coordinate(server)
    client = await connected(server)
    hands, undone, may_undo = Agent("hands"), [], asyncio.Event()

    @hands.handler
    async def handle(work: Work) -> dict[str, str]:
        if work.task == "charge":
            raise Failure("declined", "no money", retryable=False)
        if work.task == "unbook":
            await may_undo.wait()
            undone.append(work.upstream["book"])
        return {"room": work.execution}

    serving = asyncio.create_task(serve_agents([hands], server.connect_url))
    try:
        await shorten(client, 1)
        tasks = [
            Task("book", "hands", compensation=Task("unbook", "hands")),
            Task("wait", wait_for="go", depends_on=["book"]),
            Task("charge", "hands", depends_on=["wait"]),
        ]
        id = await client.start_definition(Workflow("trip", tasks=tasks).definition())
        await until(lambda: passive(coordinator) == 1, WAIT_S)
        await until(lambda: facts_left(client), WAIT_S)
        for _ in range(3):
            await coordinator.stop()
            coordinator = await coordinate(server)
            assert passive(coordinator) == 1
        await client.signal(id, "go")
        # The compensation is in the agent's hands, and all facts of the execution are gone.
        await until(lambda: is_undoing(client, id), WAIT_S)
        await until(lambda: is_folded_whole(coordinator, id), WAIT_S)
        await until(lambda: facts_left(client), WAIT_S)
        await coordinator.stop()
        coordinator = await coordinate(server)
        may_undo.set()
        result = await client.wait(id, WAIT_S)
        assert (result.status, result.compensation) == ("failed", "complete")
        assert undone == [{"room": id}]
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await client.close()
        await coordinator.stop()


async def shorten(client: Client, age_s: int) -> None:
    api = JetStreamApi(client.connection.session)
    for shard in range(2):
        info: Any = await api.stream_info(f"IM_FACTS_{shard}")
        await api.update_stream({**info["config"], "max_age": age_s * _SECOND})


async def is_undoing(client: Client, id: str) -> bool:
    undo = (await client.get_status(id)).tasks.get("unbook")
    return undo is not None and undo.state == "running"


async def is_folded_whole(coordinator: Coordinator, id: str) -> bool:
    """Whether the checkpoint has all of an execution that is in memory."""
    actors = [shard.mailbox.executions.get(id) for shard in coordinator.shards.values()]
    return [actor.sequence for actor in actors if actor is not None] == [CLEAN]


async def facts_left(client: Client) -> bool:
    """Whether the log has expired whole."""
    api = JetStreamApi(client.connection.session)
    infos: list[Any] = [await api.stream_info(f"IM_FACTS_{shard}") for shard in range(2)]
    return all(info["state"]["messages"] == 0 for info in infos)
