"""Work that could not be done is kept with its reason, and replayed or discarded."""

import asyncio
import json
from collections.abc import Sequence

import pytest
from harness import World, consumer_is_there, until
from infinity_matrix import WrongState
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import UnknownDeadLetter
from infinity_matrix_coordinator.dead_operations import DeadLetter
from plain import ask, connected, one_work, serving

GARBAGE = b"\xff\xfe no outcome"


async def letters_of(client: Client, count: int, timeout_s: float = 10.0) -> Sequence[DeadLetter]:
    """The dead letters, once there are so many."""
    found: Sequence[DeadLetter] = ()

    async def are_there() -> bool:
        nonlocal found
        found = await client.dead_letters()
        return len(found) == count

    await until(are_there, timeout_s, f"{count} dead letters")
    return found


async def has_ended(client: Client, execution: str) -> None:
    """Waits for the end that a coordinator writes; a client knows sooner."""

    async def is_failed() -> bool:
        return [one.state for one in await client.list() if one.execution_id == execution] == ["failed"]

    await until(is_failed, 15.0, "the end")


async def give_garbage(world: World, agent: str = "worker") -> None:
    async with connected(world.server.connect_url) as nats:
        await consumer_is_there(nats, agent)
        message = await one_work(nats.jetstream(), agent)
        await nats.jetstream().publish(json.loads(message.data)["reply_to"], GARBAGE)
        await message.ack()


async def test_a_letter_has_the_reason_and_the_work(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        execution = await Workflow("letters", tasks=[Task("a", "worker", config={"n": 7})]).start({"file": "x"})
        await give_garbage(world)
        await has_ended(client, execution)
        # The end is written after the letter, so it is there.
        [letter] = await client.dead_letters()
        assert (letter.agent, letter.workflow, letter.execution_id) == ("worker", "letters", execution)
        assert (letter.task_id, letter.attempt, letter.id) == ("a", 1, f"{execution}/a/1")
        assert letter.error["type"] == "garbage"
        assert letter.work is not None
        assert (letter.work["input"], letter.work["config"]) == ({"file": "x"}, {"n": 7})
        assert "reply_to" not in letter.work
        assert letter.queued_at is not None
        assert letter.failed_at is not None
        assert letter.queued_at < letter.failed_at


async def test_a_replayed_letter_is_done_and_gone(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        execution = await Workflow("replayed", tasks=[Task("a", "worker")]).start()
        await give_garbage(world)
        await has_ended(client, execution)
        [replayed] = await client.replay_dead_letter(execution, "the agent is mended")
        assert replayed.id == f"{execution}/a/1"
        assert await client.dead_letters() == []
        async with serving(world.server.connect_url, "worker", lambda work: work["attempt"]):
            assert (await client.wait(execution, 10.0)).outputs == {"a": 2}
        assert await client.dead_letters() == []


async def test_work_that_nobody_takes_in_time_is_a_dead_letter_once_it_is_not_tried_again(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        retry = {"max_attempts": 2, "initial_delay": 0.1}
        task = Task("a", "nobody", queue_timeout=0.5, retry_config=retry)
        execution = await Workflow("untaken", tasks=[task]).start()
        assert (await client.wait(execution, 20.0)).status == "failed"
        [letter] = await letters_of(client, 1)
        assert letter.id == f"{execution}/a/2"
        assert letter.error["message"].startswith("no agent took it")


async def test_a_letter_of_an_execution_that_runs_is_not_replayed(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        later = Task("b", "later", depends_on=["a"], run_when="any_failed")
        execution = await Workflow("runs-on", tasks=[Task("a", "worker"), later]).start()
        await give_garbage(world)
        await letters_of(client, 1)
        with pytest.raises(WrongState, match="has not ended"):
            await client.replay_dead_letter(execution)
        assert len(await client.dead_letters()) == 1


async def test_a_discarded_letter_does_not_come_back_with_the_next_owner(world: World) -> None:
    coordinator = await world.coordinator()
    async with world.client() as client:
        later = Task("b", "later", depends_on=["a"], run_when="any_failed")
        execution = await Workflow("discarded", tasks=[Task("a", "worker"), later]).start()
        await give_garbage(world)
        await letters_of(client, 1)
        assert [letter.id for letter in await client.discard_dead_letter(execution)] == [f"{execution}/a/1"]
        coordinator.kill()
        await world.coordinator()
        async with serving(world.server.connect_url, "later", lambda work: work["task"]):
            assert (await client.wait(execution, 20.0)).status == "completed"
        assert await client.dead_letters() == []
        with pytest.raises(UnknownDeadLetter):
            await client.discard_dead_letter(execution)


async def test_a_letter_that_no_coordinator_was_there_to_write_is_written_by_the_next(world: World) -> None:
    coordinator = await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("late", tasks=[Task("a", "worker")]).start()
        await consumer_is_there(nats, "worker")
        message = await one_work(nats.jetstream(), "worker")
        coordinator.kill()
        await nats.jetstream().publish(json.loads(message.data)["reply_to"], GARBAGE)
        await message.ack()
        await world.coordinator()
        assert (await client.wait(execution, 20.0)).status == "failed"
        assert [letter.execution_id for letter in await letters_of(client, 1)] == [execution]


async def test_two_owners_write_one_letter(world: World) -> None:
    await asyncio.gather(world.coordinator(owns_all=True), world.coordinator(owns_all=True))
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("twice", tasks=[Task("a", "worker")]).start()
        await give_garbage(world)
        await client.wait(execution, 10.0)
        await letters_of(client, 1)
        info = await nats.jetstream().stream_info("IM_DEAD")
        assert (info.state.messages, info.state.last_seq) == (1, 1)


async def test_an_end_waits_for_no_store_that_refuses_letters(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("no-letters", tasks=[Task("a", "worker")]).start()
        await consumer_is_there(nats, "worker")
        await nats.jetstream().delete_stream("IM_DEAD")
        await give_garbage(world)

        await has_ended(client, execution)


async def test_letters_of_undoing_are_replayed_by_undoing_again(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        undo = Task("undo-a", "undoer")
        tasks = [Task("a", "worker", compensation=undo), Task("b", "breaker", depends_on=["a"])]
        execution = await Workflow("undone", tasks=tasks).start()
        async with connected(world.server.connect_url) as nats:
            await consumer_is_there(nats, "breaker")
            async with serving(world.server.connect_url, "worker", lambda work: work["task"]):
                message = await one_work(nats.jetstream(), "breaker")
                failure = {"error": {"type": "boom", "message": "", "retryable": False}}
                await nats.jetstream().publish(json.loads(message.data)["reply_to"], json.dumps(failure).encode())
                await message.ack()
            await give_garbage(world, "undoer")
            await client.wait(execution, 10.0)
        [letter] = await letters_of(client, 1)
        assert (letter.task_id, letter.undoes) == ("undo-a", True)
        await client.replay_dead_letter(letter.id)
        async with serving(world.server.connect_url, "undoer", lambda work: work["attempt"]):

            async def is_undone() -> bool:
                return [one.compensation for one in await client.list()] == ["complete"]

            await until(is_undone, 10.0, "the undoing")
        assert await client.dead_letters() == []


async def test_the_api_lists_shows_replays_and_discards(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("by-api", tasks=[Task("a", "worker")]).start()
        await give_garbage(world)
        await has_ended(client, execution)
        [listed] = (await ask(nats, "dead.list"))["ok"]
        assert (listed["execution_id"], "work" in listed) == (execution, False)
        assert (await ask(nats, "dead.list", agent="other"))["ok"] == []
        assert (await ask(nats, "dead.list", agent="*"))["ok"] == []
        [shown] = (await ask(nats, "dead.show", id=listed["id"]))["ok"]
        assert shown["work"]["task"] == "a"
        assert (await ask(nats, "dead.replay", id=listed["id"]))["ok"] == [listed["id"]]
        await give_garbage(world)
        [again] = await letters_of(client, 1)
        assert again.attempt == 2
        assert (await ask(nats, "dead.discard", id=again.id))["ok"] == [again.id]
        assert (await ask(nats, "dead.show", id=again.id))["error"]["type"] == "UnknownDeadLetter"
        assert (await ask(nats, "dead.show", id="*"))["error"]["type"] == "UnknownDeadLetter"
