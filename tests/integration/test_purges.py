"""Purges by hand: what ended goes, what is open stays, and nothing that went comes back."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from harness import World, all_finished, consumer_is_there, started, until
from history import history_of, verify
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import InvalidDefinition, PurgeRefused, UnknownExecution, WrongState
from infinity_matrix_actors.fact import ENTER_SIGNAL
from infinity_matrix_bus.installation import Installation
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.controls import Asked
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.process import Coordinator
from infinity_matrix_coordinator.purges import NOT_UNDONE, READ_AGAIN, REOPENED, STORED, YOUNG, EndedExecutions, Purges
from infinity_matrix_coordinator.slots import KEY_PREFIX
from nats.aio.client import Client as Nats
from plain import ask, connected

QUICK_S = 0.2


@asynccontextmanager
async def coordinating(world: World, checkpoint_after_s: float = QUICK_S) -> AsyncIterator[Coordinator]:
    coordinator = Coordinator(Endpoint(world.server.connect_url), checkpoint_after_s=checkpoint_after_s)
    await coordinator.start()
    try:
        yield coordinator
    finally:
        await coordinator.stop()


def purges(client: Client) -> Purges:
    """Purges that keep nothing for its age alone."""
    return Purges(client.operations, age_min_s=0.0)


async def can_go(client: Client, executions: list[str]) -> None:
    """Waits until the marks have passed the ends of these."""

    async def is_so() -> bool:
        answers = await purges(client).purge(dry_run=True)
        return set(executions) <= {one.execution_id for one in answers if one.problem is None}

    await until(is_so, 10.0, "the marks passing the ends")


async def executions_in_the_log(nats: Nats) -> set[str]:
    found: set[str] = set()
    for shard in range(4):
        info = await nats.jetstream().stream_info(f"IM_FACTS_{shard}", subjects_filter=f"im.fact.{shard}.>")
        found |= {subject.split(".")[3] for subject in info.state.subjects or {}}
    return found


async def serve(client: Client, name: str, do: Callable[[Work], Any]) -> None:
    """Serves an agent for as long as the client is connected."""
    agent = Agent(name)

    @agent.handler
    async def handle(work: Work) -> Any:
        return do(work)

    await client.serve([agent])


def fails(work: Work) -> Any:
    raise RuntimeError("wanted")


async def test_what_ended_goes_and_does_not_come_back_with_another_coordinator(world: World) -> None:
    ran: list[str] = []

    def count(work: Work) -> str:
        ran.append(work.execution)
        return "done"

    async with coordinating(world) as first, world.client() as client, connected(client.url) as nats:
        await serve(client, "worker", count)
        digest = await client.operations.store(Workflow("one", tasks=[Task("a", "worker")]).definition())
        ended = await started(client, digest, "one", 60)
        # Open for long enough to be in a checkpoint, then ended: its record must go before it.
        waiting = Workflow("waiting", tasks=[Task("a", wait_for="go")]).definition()
        long = await client.start_definition(waiting)
        held = [await client.start_definition(waiting) for _ in range(5)]
        again = await client.start_definition(Workflow("again", tasks=[Task("a", "nobody")]).definition())
        await client.cancel(again, grace=0)
        await all_finished(client, [*ended, again], 20.0)
        await client.retry(again)
        await asyncio.sleep(QUICK_S * 3)
        await client.signal(long, "go")
        await all_finished(client, [long], 10.0)
        await can_go(client, [*ended, long])
        purged = await purges(client).purge()
        assert {answer.execution_id for answer in purged} == {*ended, long}
        assert [answer.problem for answer in purged] == [None] * 61
        # The oldest end first.
        assert purged[-1].execution_id == long
        held.append(again)
        assert await executions_in_the_log(nats) == set(held)
        # Another owner of everything, from the marks and records that are there.
        await first.stop()
        ran.clear()
        async with coordinating(world):
            await serve(client, "nobody", count)
            for execution in held[:-1]:
                await client.signal(execution, "go")
            states = await all_finished(client, held, 20.0)
            assert set(states.values()) == {"completed"}
        assert ran == [again]
        assert {summary.execution_id for summary in await client.list()} == set(held)
        assert await executions_in_the_log(nats) == set(held)
        with pytest.raises(UnknownExecution):
            await client.get_status(long)


async def test_an_id_that_was_purged_can_be_used_again_with_all_that_is_under_it(world: World) -> None:
    async with coordinating(world), world.client() as client:
        await serve(client, "worker", lambda work: work.input)
        await client.deploy(Workflow("child", tasks=[Task("a", "worker")]).definition())
        tasks = [Task("run", workflow="child", input="input"), Task("b", "worker", depends_on=["run"])]
        workflow = Workflow("parent", tasks=tasks)
        for number in range(2):
            await client.start_definition(workflow.definition(), number, "again")
            # Longer than it takes, and less than until the next sweep: nothing is left to be mended.
            result = await client.wait("again", 10.0)
            assert result.outputs == {"run": {"a": number}, "b": number}
            await can_go(client, ["again"])
            [purged] = await purges(client).purge(["again"])
            assert purged.problem is None


async def test_a_child_without_its_parent_ends_and_tells_nobody(world: World) -> None:
    """As after a restore: each log of a backup has its own end, and a child may lie in a later one than its parent."""
    async with coordinating(world), world.client() as client:
        await serve(client, "worker", lambda work: "done")
        operations = client.operations
        digest = await operations.store(Workflow("child", tasks=[Task("a", "worker")]).definition())
        begun = "2026-01-01T00:00:00.000000Z"
        parent = {"execution": "gone", "begun": begun, "task": "run", "attempt": 1}
        child = operations.subjects.derived_id("child", "gone", begun, "run", "1")
        await operations.start("child", digest, None, child, {"parent": parent, "depth": 1})
        assert (await client.wait(child, 10.0)).status == "completed"
        await all_finished(client, [child], 10.0)
        assert await operations.facts_of("gone") == []
        history = await history_of(world.server.connect_url, world.journal)
        history.journal = None
        assert verify(history) == []


async def test_a_slot_of_nobody_is_given_to_others(world: World) -> None:
    """As after a restore: the key's log has who got a slot, the log of that execution does not."""
    coordinator = Coordinator(Endpoint(world.server.connect_url), sweep_interval_s=QUICK_S)
    await coordinator.start()
    try:
        async with world.client() as client:
            await serve(client, "worker", lambda work: "done")
            subjects = client.operations.subjects
            key = KEY_PREFIX + subjects.derived_id("key", "limited", "acme")
            ticket = {"execution": "nobody", "max": 1, "n": 1}
            await client.operations.publish_signal(
                key, ENTER_SIGNAL, ticket, subjects.derived_id("slot", "nobody", "1")
            )
            workflow = Workflow("limited", tasks=[Task("a", "worker")], max_running=1, key="input")
            assert (await workflow.execute("acme", timeout=10.0)).status == "completed"
    finally:
        await coordinator.stop()


async def test_what_a_new_owner_would_read_stays(world: World) -> None:
    async with coordinating(world, 600.0), world.client() as client:
        await serve(client, "worker", lambda work: "done")
        execution = await Workflow("one", tasks=[Task("a", "worker")]).start()
        await client.wait(execution, 10.0)
        await all_finished(client, [execution], 5.0)
        [young] = await client.purge()
        assert (young.execution_id, young.problem) == (execution, YOUNG)
        [kept] = await purges(client).purge()
        assert kept.problem == READ_AGAIN
        with pytest.raises(WrongState, match="would still read its end"):
            await purges(client).purge([execution])
        assert (await client.get_status(execution)).state == "completed"


async def test_what_a_lagging_owner_stored_again_stays_until_the_record_is_gone(world: World) -> None:
    async with coordinating(world) as first, world.client() as client, connected(client.url) as nats:
        execution = await client.start_definition(Workflow("w", tasks=[Task("a", wait_for="go")]).definition())
        stream = nats.jetstream()
        subject = ""

        async def is_stored() -> bool:
            nonlocal subject
            names = (await stream.stream_info("KV_IM_CHECKPOINTS", subjects_filter=">")).state.subjects or {}
            subject = next((name for name in names if name.endswith(execution)), "")
            return bool(subject)

        await until(is_stored, 10.0, "its checkpoint")
        stored = await stream.get_last_msg("KV_IM_CHECKPOINTS", subject)
        await client.signal(execution, "go")
        await all_finished(client, [execution], 10.0)
        await can_go(client, [execution])
        await first.stop()
        await stream.publish(subject, stored.data or b"")
        [kept] = await purges(client).purge()
        assert kept.problem == STORED
        # Its end is what a new owner knows by that the record means nothing.
        async with coordinating(world):
            await can_go(client, [execution])
            [purged] = await purges(client).purge([execution])
            assert purged.problem is None
        assert await client.list() == []


async def test_what_is_taken_up_again_meanwhile_stays(world: World) -> None:
    is_broken = True
    async with coordinating(world), world.client() as client:
        await serve(client, "worker", lambda work: fails(work) if is_broken else "done")
        execution = await Workflow("retried", tasks=[Task("a", "worker")]).start()
        assert (await client.wait(execution, 10.0)).status == "failed"
        await can_go(client, [execution])
        logs = [await EndedExecutions.read(client.operations, number, 0.0) for number in range(4)]
        is_broken = False
        await client.retry(execution)
        kept = [await log.purge([execution]) for log in logs]
        assert {id: why for one in kept for id, why in one.items()} == {execution: REOPENED}
        assert (await client.wait(execution, 10.0)).status == "completed"


def fails_in_part(work: Work) -> Any:
    """Of the task `b` always, of undoing where the workflow is called so."""
    return fails(work) if work.task == "b" or (work.task == "undo-a" and work.workflow == "stuck") else 1


async def test_only_what_is_meant_is_purged(world: World) -> None:
    async with coordinating(world), world.client() as client, connected(client.url) as nats:
        await serve(client, "worker", fails_in_part)
        digest = await client.operations.store(Workflow("one", tasks=[Task("a", "worker")]).definition())
        ended = await started(client, digest, "one", 6)
        failed = await Workflow("failed", tasks=[Task("b", "worker")]).start()
        compensated = Task("a", "worker", compensation=Task("undo-a", "worker"))
        stuck = await Workflow("stuck", tasks=[compensated, Task("b", "worker", depends_on=["a"])]).start()
        running = await client.start_definition(Workflow("open", tasks=[Task("a", "nobody")]).definition())
        await all_finished(client, [*ended, failed, stuck], 20.0)
        await can_go(client, [*ended, failed])
        with pytest.raises(WrongState, match="has not ended yet"):
            await purges(client).purge([ended[0], running])
        with pytest.raises(UnknownExecution):
            await purges(client).purge([ended[0], "unknown"])
        with pytest.raises(InvalidDefinition, match="'running' is no end"):
            await purges(client).purge(state="running")
        assert await purges(client).purge(older_than_s=3600.0) == []
        assert [one.execution_id for one in await purges(client).purge(state="failed", workflow="failed")] == [failed]
        # Undoing it is still to be done by somebody: only who names it means it.
        [kept] = await purges(client).purge(workflow="stuck")
        assert kept.problem == NOT_UNDONE
        gone = {one.execution_id for one in await purges(client).purge(workflow="one", limit=2)}
        assert len(gone) == 2
        # A coordinator does the same for who sends JSON; there, too, nothing younger than a minute goes.
        answer = (await ask(nats, "purge", workflow="one", dry_run=True))["ok"]
        assert [one["problem"] for one in answer] == [YOUNG] * 4
        assert (await ask(nats, "purge", executions="all"))["error"]["type"] == "BadRequest"
        named: list[Asked] = []

        async def is_purged() -> bool:
            # What is only kept because it is not all undone says nothing of the mark.
            with suppress(WrongState):
                named[:] = await purges(client).purge([stuck])
            return bool(named)

        await until(is_purged, 10.0, "the mark passing its end")
        assert [one.problem for one in named] == [None]
        assert {summary.execution_id for summary in await client.list()} == {running, *ended} - gone


async def test_who_cannot_tell_forged_ends_purges_nothing(world: World) -> None:
    async with coordinating(world), world.client() as client, connected(client.url) as nats:
        execution = await client.start_definition(Workflow("open", tasks=[Task("a", "nobody")]).definition())
        await consumer_is_there(nats, "nobody")
        installation = client.operations.installation
        for shard in range(4):
            # Only on its own shard it is a fact of it; nobody knows the capability.
            await nats.jetstream().publish(
                f"im.fact.{shard}.{execution}.finished.1.0123456789abcdef", json.dumps({"state": "completed"}).encode()
            )
        await asyncio.sleep(QUICK_S * 3)
        assert await purges(client).purge() == []
        blind = Operations(client.operations._connection, Installation(installation.prefix, installation.shards))
        await blind.open()
        try:
            with pytest.raises(PurgeRefused):
                await Purges(blind, age_min_s=0.0).purge()
        finally:
            blind.close()
        assert (await client.get_status(execution)).state == "running"
