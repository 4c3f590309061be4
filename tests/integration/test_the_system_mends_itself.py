"""What is lost is found again: acked too early, purged, deleted, or forgotten by a server that was killed."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable

import pytest
from harness import World, all_finished, consumer_is_there, say, seeded, started, until
from history import History, history_of, verify
from infinity_matrix import NoCoordinator, StorageUnavailable, Unreachable
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import UnknownAgent
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.session import Endpoint, Session
from infinity_matrix_coordinator.process import Coordinator
from nats.aio.client import Client as Nats
from plain import connected, one_work, serving

EXECUTIONS_WITH_SERVER_KILLED = 300
SWEEP_S = 0.5


def two_tasks(name: str, seconds: float = 0.0) -> Workflow:
    config = {"seconds": seconds}
    first = Task("first", "worker", config=config)
    return Workflow(name, tasks=[first, Task("second", "worker", config=config, depends_on=["first"])])


async def session_of(world: World) -> Session:
    return await Session.connect(Endpoint(world.server.connect_url))


async def clean_history(world: World) -> History:
    history = await history_of(world.server.connect_url, world.journal)
    assert verify(history) == []
    return history


async def test_work_that_is_acked_without_an_outcome_is_published_again_and_says_so(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await two_tasks("acked-early").start()
        stream = nats.jetstream()
        await consumer_is_there(nats, "worker")
        message = await one_work(stream, "worker")
        await message.ack_sync()
        again = await one_work(stream, "worker")
        work = json.loads(again.data)
        assert (work["execution"], work["task"], work["attempt"]) == (execution, "first", 1)
        assert work["repair"] is True
        assert "repair" not in json.loads(message.data)
        await stream.publish(work["reply_to"], b'{"result": 1}')
        await again.ack()
        await world.agent("worker")
        assert (await client.wait(execution, 10.0)).status == "completed"


async def test_work_that_is_acked_and_that_a_killed_server_brings_back_is_published_again(world: World) -> None:
    coordinator = await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client():
        execution = await two_tasks("brought-back").start()
        async with connected(world.server.connect_url) as nats:
            await consumer_is_there(nats, "worker")
            await until_queued(nats, 1)
        coordinator.kill()
    await world.server.stop()
    # The server writes the acks of a consumer and the removal of messages one after the other: as if killed between.
    [messages] = world.server.store.rglob("IM_WORK/msgs")
    saved = shutil.copytree(messages, world.folder / "msgs")
    await world.server.start()
    async with connected(world.server.connect_url) as nats:
        await (await one_work(nats.jetstream(), "worker")).ack_sync()
        await until_queued(nats, 0)
    await world.server.stop()
    shutil.rmtree(messages)
    shutil.copytree(saved, messages)
    await world.server.start()
    async with connected(world.server.connect_url) as nats:
        await until_queued(nats, 1)
        assert (await nats.jetstream().consumer_info("IM_WORK", "worker")).num_pending == 0
    await world.coordinator(sweep_interval_s=SWEEP_S)
    await world.agent("worker")
    async with world.client() as client:
        assert (await client.wait(execution, 15.0)).status == "completed"


async def until_queued(nats: Nats, works: int) -> None:
    async def are_queued() -> bool:
        return (await nats.jetstream().stream_info("IM_WORK")).state.messages == works

    await until(are_queued, 10.0, f"{works} works being queued")


async def test_executions_complete_although_all_work_is_purged(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client:
        workflow = two_tasks("purged")
        digest = await client.operations.store(workflow.definition())
        executions = await started(client, digest, "purged", 100)
        session = await session_of(world)
        api = JetStreamApi(session)

        async def is_queued() -> bool:
            info = await api.stream_info("IM_WORK")
            return info is not None and info["state"]["messages"] == len(executions)

        await until(is_queued, 10.0, "all work being queued")
        assert await api.purge("IM_WORK", "im.work.>") == len(executions)
        await session.close()
        await world.agent("worker")
        states = await all_finished(client, executions, 20.0)
        assert set(states.values()) == {"completed"}
    await clean_history(world)


async def test_executions_complete_although_the_server_is_killed_under_them(world: World) -> None:
    randomness = seeded()
    await world.coordinator(sweep_interval_s=2.0)
    await world.coordinator(sweep_interval_s=2.0)
    for _ in range(2):
        await world.agent("worker")
    async with world.client() as client:
        workflow = two_tasks("server-killed", 0.1)
        digest = await client.operations.store(workflow.definition())
        executions = await started(client, digest, "server-killed", EXECUTIONS_WITH_SERVER_KILLED)
        for _ in range(3):
            await asyncio.sleep(randomness.uniform(0.1, 0.6))
            await world.server.kill()
            await asyncio.sleep(randomness.uniform(0.0, 0.3))
            await world.server.start()
        states = await all_finished(client, executions, 90.0)
        assert set(states.values()) == {"completed"}
    history = await clean_history(world)
    assert len(history.outcomes()) == 2 * EXECUTIONS_WITH_SERVER_KILLED
    say(f"{len(history.begun)} beginnings, {history.repeated()} repeated before their outcome")


async def test_work_goes_on_when_a_consumer_is_deleted_under_its_agents(world: World) -> None:
    randomness = seeded()
    await world.coordinator(sweep_interval_s=SWEEP_S)
    for _ in range(2):
        await world.agent("worker")
    async with world.client() as client:
        workflow = two_tasks("consumer-deleted", 0.02)
        digest = await client.operations.store(workflow.definition())
        executions = await started(client, digest, "consumer-deleted", 50)
        session = await session_of(world)
        api = JetStreamApi(session)

        async def is_made() -> bool:
            return await api.consumer_info("IM_WORK", "worker") is not None

        for _ in range(3):
            await asyncio.sleep(randomness.uniform(0.05, 0.3))
            # One that breaks at once again is not made at once again.
            await until(is_made, 10.0, "the consumer being made again")
            await api.delete_consumer("IM_WORK", "worker")
            executions += await started(client, digest, "consumer-deleted", 100)
        await session.close()
        states = await all_finished(client, executions, 30.0)
        assert set(states.values()) == {"completed"}
    await clean_history(world)


async def test_a_deleted_consumer_is_made_again_for_agents_that_cannot(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client:
        execution = await two_tasks("no-consumer").start()
        session = await session_of(world)
        api = JetStreamApi(session)

        async def is_made() -> bool:
            return await api.consumer_info("IM_WORK", "worker") is not None

        await until(is_made, 5.0, "the consumer being made")
        await api.delete_consumer("IM_WORK", "worker")
        await until(is_made, 5.0, "the consumer being made again")
        await session.close()
        async with serving(world.server.connect_url, "worker", lambda work: work["task"]):
            assert (await client.wait(execution, 10.0)).outputs == {"first": "first", "second": "second"}


async def test_a_work_stream_that_is_deleted_comes_back_with_the_work(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client:
        workflow = two_tasks("no-stream")
        digest = await client.operations.store(workflow.definition())
        executions = await started(client, digest, "no-stream", 20)
        session = await session_of(world)
        api = JetStreamApi(session)
        await api.call("STREAM.DELETE.IM_WORK")

        async def is_back() -> bool:
            info = await api.stream_info("IM_WORK")
            return info is not None and info["state"]["messages"] >= len(executions)

        await until(is_back, 10.0, "the work coming back")
        await session.close()
        await world.agent("worker")
        states = await all_finished(client, executions, 20.0)
        assert set(states.values()) == {"completed"}
    await clean_history(world)


async def test_an_agent_that_begins_while_the_work_stream_is_gone_waits_for_it(world: World) -> None:
    await world.coordinator(sweep_interval_s=2.0)
    async with world.client() as client:
        session = await session_of(world)
        await JetStreamApi(session).call("STREAM.DELETE.IM_WORK")
        await session.close()
        agent = Agent("late")

        @agent.handler
        async def handle(work: Work) -> str:
            return "done"

        await client.serve([agent])
        assert (await Workflow("late", tasks=[Task("a", "late")]).execute(timeout=20.0)).outputs == {"a": "done"}


async def test_what_is_asked_for_while_the_server_dies_is_done_or_fails_as_the_errors_say(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        await client.deploy(Workflow("waits", tasks=[Task("a", wait_for="go")]).definition())
        await client.start("waits", None, "held")
        failures: list[Exception] = []
        started: list[str] = []
        is_over = asyncio.Event()

        async def again(ask: Callable[[int], Awaitable[object]]) -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                try:
                    await ask(number)
                except Exception as error:  # noqa: BLE001 - which it is, is the question
                    failures.append(error)
                    await asyncio.sleep(0.05)

        async def start(number: int) -> None:
            started.append(await client.start("waits", number))

        asking = [
            asyncio.create_task(again(ask))
            for ask in (
                start,
                lambda number: client.signal("held", "note", number),
                lambda number: client.trigger("tick", number),
                lambda number: client.get_status("held"),
                lambda number: client.pause_agent("nobody"),
                lambda number: client.pause("held"),
            )
        ]
        for _ in range(3):
            await asyncio.sleep(0.5)
            await world.server.kill()
            await asyncio.sleep(0.2)
            await world.server.start()
        await asyncio.sleep(0.5)
        is_over.set()
        await asyncio.gather(*asking)
        expected = (StorageUnavailable, Unreachable, NoCoordinator, UnknownAgent)
        assert [repr(error) for error in failures if not isinstance(error, expected)] == []
        assert len(set(started)) == len(started) > 0
        known = {one.execution_id for one in await client.list("waits")}
        assert known >= {*started, "held"}


async def test_events_that_have_no_stream_hold_up_no_execution_and_get_one(world: World) -> None:
    coordinator = await Coordinator(Endpoint(world.server.connect_url)).start()
    try:
        await until(lambda: coordinator.is_live, 10.0, "the shards")
        owners = dict(coordinator.shards)
        session = await session_of(world)
        api = JetStreamApi(session)
        await consumer_of_triggers(api)
        await api.call("STREAM.DELETE.IM_TRIGGERS")
        await until(lambda: is_there(api, "IM_TRIGGERS"), 10.0, "the stream of events")
        await consumer_of_triggers(api)
        assert coordinator.shards == owners
        await session.close()
    finally:
        await coordinator.stop()


async def test_a_server_that_comes_back_is_gone_on_with_and_what_it_lacks_is_made(world: World) -> None:
    coordinator = await Coordinator(Endpoint(world.server.connect_url)).start()
    try:
        await until(lambda: coordinator.is_live, 10.0, "the shards")
        installation = coordinator.installation
        session = await session_of(world)
        await JetStreamApi(session).call("STREAM.DELETE.IM_STATUS")
        await session.close()
        await world.server.kill()
        await world.server.start()
        session = await session_of(world)
        await until(lambda: is_there(JetStreamApi(session), "IM_STATUS"), 20.0, "the stream of status messages")
        await until(lambda: coordinator.is_live, 20.0, "the shards again")
        assert coordinator.installation is installation
        await session.close()
    finally:
        await coordinator.stop()


async def is_there(api: JetStreamApi, stream: str) -> bool:
    return await api.stream_info(stream) is not None


async def consumer_of_triggers(api: JetStreamApi) -> None:
    async def is_made() -> bool:
        return await api.consumer_info("IM_TRIGGERS", "im-triggers") is not None

    await until(is_made, 10.0, "the consumer of events")


async def test_nothing_is_made_in_the_place_of_a_log_that_is_gone(world: World) -> None:
    coordinator = await world.coordinator()
    coordinator.kill()
    session = await session_of(world)
    api = JetStreamApi(session)
    await api.call("STREAM.DELETE.IM_FACTS_2")
    with pytest.raises(StorageUnavailable, match="IM_FACTS_2 is gone"):
        await Coordinator(Endpoint(world.server.connect_url)).start(timeout_s=1.0)
    assert await api.stream_info("IM_FACTS_2") is None
    await session.close()
