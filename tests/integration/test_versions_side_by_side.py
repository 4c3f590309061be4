"""Coordinators of two versions at one log: each decides what has its version, and leaves the other's alone."""

import asyncio

from harness import Process, World, until
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.fact import Started
from infinity_matrix_actors.state import ExecutionState
from infinity_matrix_bus.facts import started_payload
from infinity_matrix_bus.subjects import shard_of

WAIT_S = 30.0
#: An owner that took an execution would have begun it by then.
QUIET_S = 2.0
WORKFLOW = Workflow(
    "both",
    tasks=[
        Task("first", "worker", config={"seconds": 0.2}),
        Task("second", sleep=0.2, depends_on=["first"]),
        Task("third", "worker", depends_on=["second"]),
    ],
)


async def coordinator(world: World, decide: int) -> Process:
    return await world._add("coordinator_process.py", f"coordinator-of-{decide}", "--decide", str(decide)).ready()


async def start(client: Client, decide: int, count: int, name: str) -> list[str]:
    """Starts executions that pin a version, as a client of that version does."""
    operations = client.operations
    digest = await operations.deploy(WORKFLOW.definition())
    ids = [f"{name}-{decide}-{number}" for number in range(count)]
    for id in ids:
        shard = shard_of(id, operations.installation.shards)
        payload = started_payload(Started(id, 0.0, "both", digest, None, decide=decide))
        await operations._outbox.publish(operations.subjects.started(shard, id), payload, WAIT_S)
    return ids


async def states(client: Client, ids: list[str]) -> list[str]:
    return [str((await client.operations.fold(id)).state) for id in ids]


async def completed(client: Client, ids: list[str]) -> None:
    async def are() -> bool:
        return set(await states(client, ids)) == {ExecutionState.COMPLETED}

    await until(are, WAIT_S, f"the end of {ids[0]} and others")


async def has_begun(client: Client, ids: list[str]) -> bool:
    """Whether anything but their start is in the log."""
    return any([len(await client.operations.facts_of(id)) > 1 for id in ids])


async def test_each_version_runs_its_own_executions_and_no_other(world: World) -> None:
    old, new = await coordinator(world, 1), await coordinator(world, 2)
    await world.agent("worker")
    async with world.client() as client:
        both = await start(client, 1, 20, "together") + await start(client, 2, 20, "together")
        await completed(client, both)
        # Each alone: the other's executions wait, and go on when their version is back.
        for gone, decide in ((old, 1), (new, 2)):
            gone.kill()
            left = await start(client, decide, 5, "left")
            others = await start(client, 3 - decide, 5, "run")
            await completed(client, others)
            await asyncio.sleep(QUIET_S)
            assert not await has_begun(client, left)
            await coordinator(world, decide)
            await completed(client, left)
