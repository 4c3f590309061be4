"""What cannot be folded stands still and is seen, what is no fact is counted, and both harm nobody else."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from harness import World, consumer_is_there, until
from infinity_matrix import WrongState
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.effect import Effect
from infinity_matrix_actors.errors import ExecutionQuarantined
from infinity_matrix_actors.fact import Fact
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.process import Coordinator
from plain import ask, connected, one_work, serving


@dataclass
class Fault:
    """A fault in the rules: facts with `bad` in them cannot be folded until it is mended."""

    is_mended: bool = False


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    fault = Fault()
    real = ExecutionActor.receive

    def receive(self: ExecutionActor, fact: Fact) -> list[Effect]:
        if not fault.is_mended and "bad" in (getattr(fact, "result", None), getattr(fact, "data", None)):
            raise KeyError("a rule that is not there")
        return real(self, fact)

    monkeypatch.setattr(ExecutionActor, "receive", receive)
    yield fault


@asynccontextmanager
async def coordinating(world: World, **options: Any) -> AsyncIterator[Coordinator]:
    """A coordinator of this process, so that it has the fault."""
    coordinator = await Coordinator(Endpoint(world.server.connect_url), **options).start()
    try:
        yield coordinator
    finally:
        await coordinator.stop()


def answer(work: dict[str, Any]) -> Any:
    return work["config"].get("answer", work["task"])


async def is_quarantined(client: Client, execution: str) -> bool:
    return execution in [one.execution_id for each in await client.coordinators() for one in each.quarantined]


async def quarantined(client: Client, execution: str) -> None:
    await until(lambda: is_quarantined(client, execution), 10.0, "the quarantine")


async def test_an_execution_that_cannot_be_folded_is_seen_and_goes_on_once_that_is_mended(
    world: World, fault: Fault
) -> None:
    async with coordinating(world), world.client() as client:
        workflow = Workflow(
            "faulty", tasks=[Task("a", "worker", config={"answer": "bad"}), Task("b", "worker", depends_on=["a"])]
        )
        execution = await workflow.start()
        async with connected(world.server.connect_url) as nats:
            await consumer_is_there(nats, "worker")
        async with serving(world.server.connect_url, "worker", answer):
            await quarantined(client, execution)
            # The others go on.
            assert (await Workflow("fine", tasks=[Task("a", "worker")]).execute(timeout=10.0)).status == "completed"
            with pytest.raises(ExecutionQuarantined, match=f"a rule that is not there.*imx resume {execution}"):
                await client.get_status(execution)
            [summary] = await client.list(needs_attention=True)
            assert (summary.execution_id, summary.state) == (execution, "running")
            assert summary.problem == "KeyError: 'a rule that is not there'"
            with pytest.raises(ExecutionQuarantined):
                await client.resume(execution)
            fault.is_mended = True
            await client.resume(execution)
            assert (await client.wait(execution, 10.0)).outputs == {"a": "bad", "b": "b"}
        assert await client.list(needs_attention=True) == []
        assert not await is_quarantined(client, execution)
        with pytest.raises(WrongState, match="nothing to resume"):
            await client.resume(execution)


async def test_what_comes_in_the_meantime_is_not_lost(world: World, fault: Fault) -> None:
    async with coordinating(world), world.client() as client, connected(world.server.connect_url) as nats:
        tasks = [Task("a", "bad"), Task("b", "other"), Task("c", "other", depends_on=["a", "b"])]
        execution = await Workflow("meanwhile", tasks=tasks).start()
        await consumer_is_there(nats, "bad")
        message = await one_work(nats.jetstream(), "bad")
        await nats.jetstream().publish(json.loads(message.data)["reply_to"], b'{"result": "bad"}')
        await message.ack()
        await quarantined(client, execution)
        async with serving(world.server.connect_url, "other", answer):
            await client.signal(execution, "anything")
            await until(lambda: has_outcomes(client, execution, 2), 10.0, "the other outcome")
            fault.is_mended = True
            await client.resume(execution)
            assert (await client.wait(execution, 10.0)).outputs == {"a": "bad", "b": "b", "c": "c"}


async def has_outcomes(client: Client, execution: str, count: int) -> bool:
    facts = await client.operations.facts_of(execution)
    return sum(type(fact).__name__ == "Outcome" for _, fact in facts) == count


async def test_the_next_coordinator_folds_it_again_by_itself(world: World, fault: Fault) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with coordinating(world):
            client = await stack.enter_async_context(world.client())
            execution = await Workflow("next", tasks=[Task("a", "bad"), Task("b", "other", depends_on=["a"])]).start()
            async with connected(world.server.connect_url) as nats:
                await consumer_is_there(nats, "bad")
            async with serving(world.server.connect_url, "bad", lambda work: "bad"):
                await quarantined(client, execution)
        fault.is_mended = True
        async with coordinating(world), serving(world.server.connect_url, "other", answer):
            assert (await client.wait(execution, 20.0)).outputs == {"a": "bad", "b": "b"}


async def test_one_that_left_the_log_is_folded_from_its_checkpoint(world: World, fault: Fault) -> None:
    async with (
        coordinating(world, checkpoint_after_s=0.2) as coordinator,
        world.client() as client,
        connected(world.server.connect_url) as nats,
    ):
        wait = Task("wait", wait_for="news", depends_on=["a"])
        workflow = Workflow("stored", tasks=[Task("a", "worker"), wait, Task("b", "worker", depends_on=["wait"])])
        execution = await workflow.start()
        await consumer_is_there(nats, "worker")
        async with serving(world.server.connect_url, "worker", answer):

            def is_stored() -> bool:
                return any(execution in shard.mailbox.passive for shard in coordinator.shards.values())

            await until(is_stored, 10.0, "the checkpoint")
            for shard in range(4):
                await nats.jetstream().purge_stream(f"IM_FACTS_{shard}", subject=f"im.fact.{shard}.{execution}.>")
            await client.signal(execution, "news", "bad")
            await quarantined(client, execution)
            with pytest.raises(ExecutionQuarantined):
                await client.get_status(execution)
            with pytest.raises(ExecutionQuarantined):
                await client.resume(execution)
            fault.is_mended = True
            await client.resume(execution)
            assert (await client.wait(execution, 10.0)).outputs == {"a": "a", "wait": "bad", "b": "b"}


async def test_garbage_and_forged_facts_are_counted_and_harm_nobody(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("forged", tasks=[Task("a", "worker")]).start()
        await consumer_is_there(nats, "worker")
        message = await one_work(nats.jetstream(), "worker")
        reply_to = json.loads(message.data)["reply_to"]
        subject, _, capability = reply_to.rpartition(".")
        garbage = {
            f"{subject}.{'0' * len(capability)}": b'{"result": "forged"}',
            f"{subject.replace('.a.1', '.a.2')}.{capability}": b'{"result": "forged"}',
            f"im.fact.{subject.split('.')[2]}.{execution}.finished.1.{capability}": b'{"state": "completed"}',
            f"im.fact.{subject.split('.')[2]}.other.started": b"\xff\x00",
            f"im.fact.{subject.split('.')[2]}.no.fact.at.all": b"{}",
        }
        for place, data in garbage.items():
            await nats.jetstream().publish(place, data)

        async def are_counted() -> bool:
            found = (await ask(nats, "coordinators"))["ok"]
            return sum(shard["garbage"] for each in found for shard in each["shards"]) == len(garbage)

        await until(are_counted, 10.0, "the count")
        assert (await client.get_status(execution)).state == "running"
        await nats.jetstream().publish(reply_to, b'{"result": "true"}')
        assert (await client.wait(execution, 10.0)).outputs == {"a": "true"}


async def test_every_coordinator_says_how_it_stands(world: World) -> None:
    await asyncio.gather(world.coordinator(), world.coordinator())
    async with world.client() as client:
        await Workflow("counted", tasks=[Task("a", "nobody")]).start()

        async def are_both_there() -> bool:
            found = await client.coordinators()
            numbers = sorted(shard.number for each in found for shard in each.shards if shard.is_live)
            is_open = sum(shard.open for each in found for shard in each.shards) == 1
            return len(found) == 2 and numbers == [0, 1, 2, 3] and is_open

        await until(are_both_there, 15.0, "both")
