"""Work that kills its agents is closed as poison, also where the agents have no SDK to count with."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from harness import World, set_ack_wait, until
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.direct_client import ended
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator
from infinity_matrix_coordinator.worn import DELIVERIES_MAX, HANDED_BACK_MAX
from plain import connected, serving

LEASE_S = 0.5
SWEEP_S = 0.3
#: Works of others that are in the queue or in hand at any time: as many as there are agents for them.
BUSY = 12


@asynccontextmanager
async def pulling(world: World, agent: str, take: Any) -> AsyncIterator[list[int]]:
    """A plain agent that takes works and gives no outcome; `take` is what it does with each. Yields the deliveries."""
    deliveries: list[int] = []

    async def pull() -> None:
        async with connected(world.server.connect_url) as nats:
            subscription = await nats.jetstream().pull_subscribe_bind(agent, stream="IM_WORK")
            while True:
                try:
                    [message] = await subscription.fetch(1, timeout=0.5)
                except TimeoutError:
                    continue
                deliveries.append(message.metadata.num_delivered)
                await take(message)

    task = asyncio.create_task(pull())
    try:
        yield deliveries
    finally:
        await ended(task)


async def dies(message: Any) -> None:
    """As one that was killed: the work is not heard of again until its lease is over."""


async def test_work_that_kills_plain_agents_is_poison_however_many_and_busy_they_are(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        busy = Workflow("busy", tasks=[Task("a", "plain")])
        await client.deploy(busy.definition())
        await client.start("busy")
        await set_ack_wait(nats, "plain", LEASE_S)

        async def dies_of_one(message: Any) -> None:
            work = json.loads(message.data)
            if work["workflow"] == "kills":
                deaths.append(message.metadata.num_delivered)
                return
            await nats.jetstream().publish(work["reply_to"], b'{"result": "done"}')
            await message.ack()

        async def others_run() -> None:
            while True:
                await client.execute("busy")

        deaths: list[int] = []
        async with AsyncExitStack() as stack:
            for _ in range(12):
                await stack.enter_async_context(pulling(world, "plain", dies_of_one))
            others = [asyncio.create_task(others_run()) for _ in range(BUSY)]
            try:
                result = await Workflow("kills", tasks=[Task("a", "plain")]).execute(timeout=30.0)
            finally:
                for other in others:
                    other.cancel()
                await asyncio.gather(*others, return_exceptions=True)
        assert result.error["type"] == "poison"
        # One delivery more than deaths it takes, for an agent of the SDK to say it itself.
        assert deaths == [1, 2, 3, 4, 5, 6]
        # Nobody else was taken for it.
        assert {one.state for one in await client.list("busy")} <= {"completed", "running"}
        poisonous = result.execution_id

        async def is_buried() -> bool:
            return [letter.id for letter in await client.dead_letters("plain")] == [f"{poisonous}/a/1"]

        await until(is_buried, 5.0, "the dead letter")
        # Nothing of it is left for agents to die of.
        info = await nats.jetstream().stream_info("IM_WORK", subjects_filter=f"im.work.plain.{poisonous}.>")
        assert not info.state.subjects


async def test_what_the_server_told_nobody_of_begins_anew(world: World) -> None:
    """No coordinator was there to hear that a work is given to nobody any more."""
    endpoint = Endpoint(world.server.connect_url)
    coordinator = await Coordinator(endpoint, sweep_interval_s=SWEEP_S).start()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("kills", tasks=[Task("a", "plain")]).start()
        await set_ack_wait(nats, "plain", LEASE_S)
        stream = nats.jetstream()
        await coordinator.stop()
        info = await stream.consumer_info("IM_WORK", "plain")
        await stream.add_consumer("IM_WORK", replace(info.config, max_deliver=2))
        async with pulling(world, "plain", dies) as deliveries:
            await until(lambda: deliveries == [1, 2], 10.0, "two deaths")
            # As long as a lease, and a pull that is to find it too often given.
            await asyncio.sleep(LEASE_S * 3)
            assert deliveries == [1, 2]
        coordinator = await Coordinator(endpoint, sweep_interval_s=SWEEP_S).start()
        try:
            async with serving(world.server.connect_url, "plain", lambda work: work["attempt"]):
                assert (await client.wait(execution, 10.0)).outputs == {"a": 1}
        finally:
            await coordinator.stop()


async def test_a_paused_agent_stays_paused_when_its_works_are_counted(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        await Workflow("held", tasks=[Task("a", "plain")]).start()
        await set_ack_wait(nats, "plain", LEASE_S)
        stream = nats.jetstream()

        async def limit() -> int:
            return (await stream.consumer_info("IM_WORK", "plain")).config.max_deliver or 0

        async def is_limited() -> bool:
            return await limit() == DELIVERIES_MAX

        async with pulling(world, "plain", dies) as deliveries:
            await until(lambda: len(deliveries) == 2, 10.0, "two deliveries")
            await client.pause_agent("plain")
            await until(is_limited, 10.0, "the limit")
        info = await stream.consumer_info("IM_WORK", "plain")
        assert info.paused
        assert info.config.ack_wait == LEASE_S
        await client.resume_agent("plain")
        async with serving(world.server.connect_url, "plain", lambda work: "done"):
            # Once nothing comes again, the limit is gone.
            async def is_free() -> bool:
                return await limit() == -1

            await until(is_free, 10.0, "the end of the limit")


async def test_work_that_is_handed_back_again_and_again_is_no_poison(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("handed-back", tasks=[Task("a", "plain")]).start()
        await set_ack_wait(nats, "plain", LEASE_S)

        async def hand_back(message: Any) -> None:
            await message.nak(delay=0.2)

        async with pulling(world, "plain", hand_back) as deliveries:
            await until(lambda: len(deliveries) > 25, 30.0, "many deliveries")
        # At the limit, which is higher for it, it began anew; nobody's patience came to an end.
        assert DELIVERIES_MAX < max(deliveries) <= DELIVERIES_MAX + HANDED_BACK_MAX
        assert deliveries.count(1) >= 2
        assert (await client.get_status(execution)).state == "running"
        async with serving(world.server.connect_url, "plain", lambda work: work["attempt"]):
            assert (await client.wait(execution, 10.0)).outputs == {"a": 1}


async def test_a_plain_agent_that_extends_its_lease_is_left_alone(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("long", tasks=[Task("a", "plain")]).start()
        await set_ack_wait(nats, "plain", LEASE_S)

        async def work_long(message: Any) -> None:
            for _ in range(30):
                await message.in_progress()
                await asyncio.sleep(LEASE_S / 3)
            await nats.jetstream().publish(json.loads(message.data)["reply_to"], b'{"result": "slow"}')
            await message.ack()

        async with pulling(world, "plain", work_long) as deliveries:
            assert (await client.wait(execution, 30.0)).outputs == {"a": "slow"}
        assert deliveries == [1]


async def test_a_limit_of_an_operator_does_not_keep_poison_from_being_found(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("kills", tasks=[Task("a", "plain")]).start()
        await set_ack_wait(nats, "plain", LEASE_S)
        info = await nats.jetstream().consumer_info("IM_WORK", "plain")
        await nats.jetstream().add_consumer("IM_WORK", replace(info.config, max_deliver=1))
        async with pulling(world, "plain", dies):
            result = await client.wait(execution, 30.0)
        assert result.error is not None
        assert result.error["type"] == "poison"
