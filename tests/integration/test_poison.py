"""Work that kills its agents is closed as poison, also where the agents have no SDK to count with."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from harness import World, consumer_is_there, set_ack_wait, until
from infinity_matrix.workflow import Task, Workflow
from plain import connected, serving

LEASE_S = 0.5
SWEEP_S = 0.3


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
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def dies(message: Any) -> None:
    """As one that was killed: the work is not heard of again until its lease is over."""


async def test_work_that_kills_plain_agents_is_poison_and_a_dead_letter(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("kills", tasks=[Task("a", "plain"), Task("b", "other")]).start()
        await set_ack_wait(nats, "plain", LEASE_S)
        async with pulling(world, "plain", dies) as deliveries:
            await consumer_is_there(nats, "other")
            async with serving(world.server.connect_url, "other", lambda work: work["task"]):
                result = await client.wait(execution, 60.0)
        assert result.status == "failed"
        assert result.error["type"] == "poison"
        assert len(deliveries) >= 5

        async def is_buried() -> bool:
            return [letter.id for letter in await client.dead_letters("plain")] == [f"{execution}/a/1"]

        await until(is_buried, 5.0, "the dead letter")
        # Nothing of it is left for agents to die of.
        info = await nats.jetstream().stream_info("IM_WORK", subjects_filter="im.work.plain.>")
        assert not info.state.subjects


async def test_work_that_is_handed_back_again_and_again_is_no_poison(world: World) -> None:
    await world.coordinator(sweep_interval_s=SWEEP_S)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("handed-back", tasks=[Task("a", "plain")]).start()
        await set_ack_wait(nats, "plain", LEASE_S)

        async def hand_back(message: Any) -> None:
            await message.nak(delay=0.2)

        async with pulling(world, "plain", hand_back) as deliveries:
            await until(lambda: bool(deliveries) and deliveries[-1] > 25, 30.0, "many deliveries")
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
