"""Coordinators killed, frozen, or two on one shard: everything completes, and nothing runs after its outcome."""

import asyncio
import random
import time

from harness import Process, World, all_finished, say, seeded, started
from history import History, history_of, verify
from infinity_matrix.workflow import Task, Workflow

KILLS = 10
EXECUTIONS_WITH_KILLS = 500
EXECUTIONS_WITH_TWO_OWNERS = 1000
TAKEOVER_MAX_S = 10.0


def five_tasks(name: str, seconds: float) -> Workflow:
    config = {"seconds": seconds}
    return Workflow(
        name,
        tasks=[
            Task("extract", "left-hand", config=config),
            Task("clean", "left-hand", config=config, depends_on=["extract"]),
            Task("enrich", "right-hand", config=config, depends_on=["extract"]),
            Task("join", "right-hand", config=config, depends_on=["clean", "enrich"]),
            Task("load", "left-hand", config=config, depends_on=["join"]),
        ],
    )


async def assert_clean(world: World, count: int) -> History:
    history = await history_of(world.server.connect_url, world.journal)
    assert len(history.facts) == count
    assert verify(history) == []
    assert history.garbage == 0
    say(f"{len(history.begun)} beginnings, {history.repeated()} repeated before their outcome")
    return history


async def test_a_second_coordinator_takes_over_within_ten_seconds(world: World) -> None:
    first = await world.coordinator()
    await world.coordinator()
    await world.agent("left-hand", "right-hand")
    async with world.client() as client:
        workflow = five_tasks("takeover", 0.005)
        digest = await client.operations.store(workflow.definition())
        before = await started(client, digest, "takeover", 8)
        await all_finished(client, before, 10.0)
        first.kill()
        began = time.monotonic()
        # Enough that every shard has some.
        after = await started(client, digest, "takeover", 40)
        states = await all_finished(client, after, TAKEOVER_MAX_S)
        assert time.monotonic() - began < TAKEOVER_MAX_S
        assert set(states.values()) == {"completed"}
    await assert_clean(world, 48)


async def test_everything_completes_while_coordinators_are_killed_ten_times(world: World) -> None:
    randomness = seeded()
    coordinators = [await world.coordinator(), await world.coordinator()]
    for _ in range(2):
        await world.agent("left-hand", "right-hand", concurrency=48)
    async with world.client() as client:
        workflow = five_tasks("killed", 0.5)
        digest = await client.operations.store(workflow.definition())
        executions = await started(client, digest, "killed", EXECUTIONS_WITH_KILLS)
        for _ in range(KILLS):
            await asyncio.sleep(randomness.uniform(0.1, 1.5))
            place = randomness.randrange(2)
            coordinators[place].kill()
            coordinators[place] = world.start_coordinator()
        states = await all_finished(client, executions, 60.0)
        assert set(states.values()) == {"completed"}
    history = await assert_clean(world, EXECUTIONS_WITH_KILLS)
    assert len(history.outcomes()) == 5 * EXECUTIONS_WITH_KILLS


async def test_two_owners_of_every_shard_do_no_harm(world: World) -> None:
    randomness = seeded()
    owners = [await world.coordinator(owns_all=True), await world.coordinator(owns_all=True)]
    for _ in range(2):
        await world.agent("left-hand", "right-hand", concurrency=48)
    async with world.client() as client:
        workflow = five_tasks("two-owners", 0.005)
        digest = await client.operations.store(workflow.definition())
        freezing = asyncio.create_task(freeze_now_and_then(owners, randomness))
        try:
            executions = await started(client, digest, "two-owners", EXECUTIONS_WITH_TWO_OWNERS, gap_s=0.4)
            states = await all_finished(client, executions, 60.0)
        finally:
            freezing.cancel()
            await asyncio.gather(freezing, return_exceptions=True)
            for owner in owners:
                owner.resume()
        assert set(states.values()) == {"completed"}
    history = await assert_clean(world, EXECUTIONS_WITH_TWO_OWNERS)
    assert len(history.outcomes()) == 5 * EXECUTIONS_WITH_TWO_OWNERS


async def freeze_now_and_then(owners: list[Process], randomness: random.Random) -> None:
    while True:
        await asyncio.sleep(randomness.uniform(0.1, 0.8))
        owner = randomness.choice(owners)
        owner.pause()
        await asyncio.sleep(1.0)
        owner.resume()
