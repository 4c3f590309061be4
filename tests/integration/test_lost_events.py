"""Events when the server lost what it knew of them: none is lost by it, and none starts anything a second time."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from harness import World, until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Trigger, Workflow
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator import triggers
from infinity_matrix_coordinator.process import Coordinator
from infinity_matrix_coordinator.purges import Purges

QUICK_S = 0.2
STREAM, CONSUMER = "IM_TRIGGERS", "im-triggers"


@pytest.fixture
async def im(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(triggers, "NOTE_INTERVAL_S", QUICK_S)
    endpoint = Endpoint(world.server.connect_url)
    coordinator = Coordinator(endpoint, sweep_interval_s=QUICK_S, checkpoint_after_s=QUICK_S)
    await coordinator.start()
    agent = Agent("echo")

    @agent.handler
    async def handle(work: Work) -> Any:
        return work.input

    try:
        async with world.client() as client:
            await client.serve([agent])
            yield client
    finally:
        await coordinator.stop()


async def has(im: Client, workflow: str, count: int) -> None:
    async def is_so() -> bool:
        return len(await im.list(workflow, "completed")) >= count

    await until(is_so, 15.0, f"{count} executions of {workflow}")


async def floor_of(im: Client) -> int:
    session, subjects = await im.operations.session(), im.operations.subjects
    stored = await JetStreamApi(session).last_message(subjects.bucket_stream("checkpoints"), subjects.triggers_floor)
    return 0 if stored is None else int(stored.data)


async def is_there(im: Client, what: Callable[[JetStreamApi], Any]) -> None:
    async def is_so() -> bool:
        return await what(JetStreamApi(await im.operations.session())) is not None

    await until(is_so, 10.0, "what was deleted being there again")


async def test_events_after_a_stream_that_was_lost_have_numbers_of_their_own(im: Client) -> None:
    await Workflow("lost", triggers=[Trigger("tick")], tasks=[Task("a", "echo")]).deploy()
    for number in range(5):
        await im.trigger("tick", number)
    await has(im, "lost", 5)
    await JetStreamApi(await im.operations.session()).call(f"STREAM.DELETE.{STREAM}")
    await is_there(im, lambda api: api.stream_info(STREAM))
    for number in range(5, 13):
        await im.trigger("tick", number)
    await has(im, "lost", 13)
    found = [(await im.get_status(one.execution_id)).tasks["a"].result for one in await im.list("lost")]
    assert sorted(found) == list(range(13))


async def test_a_consumer_that_was_deleted_goes_on_where_it_was(im: Client) -> None:
    await Workflow("early", triggers=[Trigger("tick")], tasks=[Task("a", "echo")]).deploy()
    for number in range(4):
        await im.trigger("tick", number)
    await has(im, "early", 4)
    api = JetStreamApi(await im.operations.session())
    info = await api.stream_info(STREAM)
    assert info is not None
    head = int(info["state"]["last_seq"])

    async def is_noted() -> bool:
        return await floor_of(im) == head

    await until(is_noted, 10.0, "a note of how far the events were handled")

    async def are_purged() -> bool:
        # Whoever is started again would be: its id is free.
        gone = await Purges(im.operations, age_min_s=0.0).purge(workflow="early")
        return all(one.problem is None for one in gone) and await im.list("early") == []

    await until(are_purged, 15.0, "the purge of what the events had started")
    await api.delete_consumer(STREAM, CONSUMER)
    await is_there(im, lambda api: api.consumer_info(STREAM, CONSUMER))
    await Workflow("late", triggers=[Trigger("tick")], tasks=[Task("a", "echo")]).deploy()
    await im.trigger("tick", "new")
    await has(im, "early", 1)
    await has(im, "late", 1)
    assert [len(await im.list(name)) for name in ("early", "late")] == [1, 1]
