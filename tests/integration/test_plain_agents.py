"""Agents of bare nats-py: full agents, with every timeout, and killed at every point."""

import asyncio
import json
import time
from typing import Any

import pytest
from harness import World, all_finished, consumer_is_there, set_ack_wait, started, until
from history import history_of, lines_of, verify
from infinity_matrix.workflow import Task, Workflow
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError
from plain import ask, connected, one_work, serving

WORK_FIELDS = {
    "v", "execution", "workflow", "task", "attempt", "agent", "input", "config", "upstream", "reply_to", "taken_to",
    "idempotency_key", "timeout", "ready_at", "deadline", "version",
}  # fmt: skip


async def test_a_plain_agent_is_a_full_agent(world: World) -> None:
    await world.coordinator()
    seen: list[dict[str, Any]] = []

    def double(work: dict[str, Any]) -> Any:
        seen.append(work)
        return (work["upstream"].get("first") or work["input"]["number"]) * 2

    async with world.client():
        first = Task("first", "plain", config={"source": "table"})
        workflow = Workflow("doubling", tasks=[first, Task("second", "plain", depends_on=["first"], timeout=30)])
        execution = await workflow.start({"number": 4})
        async with connected(world.server.connect_url) as nats:
            await consumer_is_there(nats, "plain")
        async with serving(world.server.connect_url, "plain", double):
            result = await workflow.wait(execution, 10.0)
        assert result.status == "completed"
        assert result.outputs == {"first": 8, "second": 16}
    work = seen[0]
    assert work.keys() == WORK_FIELDS
    assert work["config"] == {"source": "table"}
    assert (work["v"], work["attempt"], work["agent"], work["workflow"]) == (1, 1, "plain", "doubling")
    assert work["idempotency_key"] == f"{execution}/first"
    assert work["reply_to"].split(".")[3:-1] == [execution, "outcome", "plain", "first", "1"]
    assert seen[1]["upstream"] == {"first": 8}
    assert seen[1]["timeout"] == 30


async def test_an_error_of_a_plain_agent_is_retried_as_it_says(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        stream = nats.jetstream()
        retry = {"max_attempts": 3, "initial_delay": 60}
        workflow = Workflow("failing", tasks=[Task("only", "plain", retry_config=retry)])
        execution = await workflow.start()
        await consumer_is_there(nats, "plain")
        errors = [
            {"type": "busy", "message": "try again", "retry_after": 0.1},
            {"type": "broken", "message": "never again", "retryable": False},
        ]
        for attempt, error in enumerate(errors, 1):
            message = await one_work(stream, "plain")
            work = json.loads(message.data)
            assert work["attempt"] == attempt
            await stream.publish(work["reply_to"], json.dumps({"error": error}).encode())
            await message.ack()
        result = await client.wait(execution, 10.0)
        assert result.status == "failed"
        assert result.error is not None
        assert (result.error["type"], result.error["task"]) == ("broken", "only")


async def test_a_plain_agent_that_takes_work_and_never_answers_times_out(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        stream = nats.jetstream()
        workflow = Workflow("silent", tasks=[Task("only", "plain", timeout=1.0)])
        execution = await workflow.start()
        await consumer_is_there(nats, "plain")
        # It waits in the queue for longer than its timeout, which is counted from when it was taken.
        await until(lambda: is_queued_for(client, execution, 1.5), 5.0)
        message = await one_work(stream, "plain")
        taken_at = time.time()
        result = await client.wait(execution, 10.0)
        assert result.error is not None
        assert result.error["type"] == "timed_out"
        assert 0.9 < time.time() - taken_at < 3.0
        # Its outcome comes too late, and is told so.
        with pytest.raises(APIError, match="maximum messages per subject exceeded"):
            await stream.publish(json.loads(message.data)["reply_to"], b'{"result": "late"}')
        assert (await client.get_status(execution)).tasks["only"].state == "failed"


async def is_queued_for(client, execution: str, seconds: float) -> bool:  # type: ignore[no-untyped-def]
    status = await client.get_status(execution)
    return bool(time.time() - status.started_at > seconds and status.state == "running")


async def test_a_task_nobody_takes_fails_by_its_queue_timeout(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        tasks = [Task("only", "nobody", queue_timeout=1.0, timeout=60.0)]
        result = await Workflow("alone", tasks=tasks).execute(timeout=10.0)
        assert result.status == "failed"
        assert result.error is not None
        assert "queue_timeout" in result.error["message"]
        assert 1.0 <= result.duration < 3.0
        # Its work is gone, so that an agent that comes now does not run what was given up.
        async with connected(world.server.connect_url) as nats:
            info = await nats.jetstream().stream_info("IM_WORK")
            assert info.state.messages == 0
        assert (await client.get_status(result.execution_id)).tasks["only"].error is not None


async def test_work_in_hand_is_safe_from_the_queue_timeout(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        stream = nats.jetstream()
        execution = await Workflow("in-hand", tasks=[Task("only", "plain", queue_timeout=1.0)]).start()
        await consumer_is_there(nats, "plain")
        message = await one_work(stream, "plain")
        await until(lambda: is_queued_for(client, execution, 2.0), 5.0)
        await stream.publish(json.loads(message.data)["reply_to"], b'{"result": "slow"}')
        await message.ack()
        assert (await client.wait(execution, 10.0)).outputs == {"only": "slow"}


async def test_a_consumer_that_an_agent_made_is_corrected_and_only_a_shorter_lease_stays(world: World) -> None:
    await world.coordinator()
    async with world.client(), connected(world.server.connect_url) as nats:
        stream = nats.jetstream()
        for agent, lease_s in (("short", 5.0), ("long", 300.0)):
            limits_of_its_own = {"ack_wait": lease_s, "max_ack_pending": 7, "max_deliver": 2}
            place = {"durable_name": agent, "filter_subject": f"im.work.{agent}.>"}
            await stream.add_consumer(
                "IM_WORK", ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, **place, **limits_of_its_own)
            )
        await Workflow("both", tasks=[Task("a", "short"), Task("b", "long")]).start()

        async def limits(agent: str) -> tuple[float | None, int | None, int | None]:
            config = (await stream.consumer_info("IM_WORK", agent)).config
            return config.ack_wait, config.max_ack_pending, config.max_deliver

        async def are_corrected() -> bool:
            return [await limits(agent) for agent in ("short", "long")] == [(5.0, 20_000, -1), (30.0, 20_000, -1)]

        await until(are_corrected, 5.0, "both consumers as they are to be")


async def test_work_of_a_plain_agent_that_vanished_goes_to_another(world: World) -> None:
    await world.coordinator()
    async with world.client() as client:
        execution = await Workflow("vanished", tasks=[Task("only", "plain")]).start()
        async with connected(world.server.connect_url) as nats:
            await set_ack_wait(nats, "plain", 1.0)
            message = await one_work(nats.jetstream(), "plain")
            assert message.metadata.num_delivered == 1
        async with connected(world.server.connect_url) as nats:
            again = await one_work(nats.jetstream(), "plain")
            assert again.metadata.num_delivered == 2
            assert again.data == message.data
            await nats.jetstream().publish(json.loads(again.data)["reply_to"], b'{"result": "done"}')
            await again.ack()
        assert (await client.wait(execution, 10.0)).outputs == {"only": "done"}


async def test_work_of_an_agent_process_that_was_killed_goes_to_another(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("killed", tasks=[Task("only", "worker", config={"seconds": 2.5})]).start()
        await set_ack_wait(nats, "worker", 1.0)
        first = await world.agent("worker")
        await until(lambda: lines_of(world.journal), 5.0, "the first agent beginning")
        first.kill()
        second = await world.agent("worker")
        await until(lambda: len(lines_of(world.journal)) == 2, 5.0, "the second agent beginning")
        # It runs for longer than its lease, which is extended: a third agent gets nothing.
        await world.agent("worker")
        result = await client.wait(execution, 15.0)
        assert result.outputs["only"]["process"] == second.pid
    begun = [line.process for line in lines_of(world.journal) if line.event == "began"]
    assert begun == [first.pid, second.pid]


async def test_an_agent_that_slept_runs_nothing_that_others_did_meanwhile(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        workflow = Workflow("slept", tasks=[Task("only", "worker")])
        digest = await client.operations.store(workflow.definition())
        await workflow.start(execution_id="makes-the-consumer")
        await set_ack_wait(nats, "worker", 1.0)
        sleeper, waker = await world.agent("worker"), await world.agent("worker")
        await client.wait("makes-the-consumer", 10.0)
        sleeper.pause()
        executions = await started(client, digest, "slept", 40)
        await all_finished(client, executions, 20.0)
        sleeper.resume()

        async def is_all_acked() -> bool:
            info = await nats.jetstream().consumer_info("IM_WORK", "worker")
            return info.num_ack_pending == 0 and info.num_pending == 0

        await until(is_all_acked, 10.0, "the sleeper looking at what it was given")
    history = await history_of(world.server.connect_url, world.journal)
    assert verify(history) == []
    assert {line.process for line in history.begun if line.execution != "makes-the-consumer"} == {waker.pid}


async def test_work_that_kills_its_agents_is_poison(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        workflow = Workflow("poison", tasks=[Task("only", "worker", config={"seconds": 0.5, "dies": True})])
        execution = await workflow.start()
        await set_ack_wait(nats, "worker", 0.5)
        for _ in range(5):
            agent = await world.agent("worker")
            await agent.ended(10.0)
        await world.agent("worker")
        result = await client.wait(execution, 10.0)
        assert result.error is not None
        assert (result.error["type"], "begun again 4 times" in result.error["message"]) == ("poison", True)
    assert [line.event for line in lines_of(world.journal)] == ["began"] * 5


async def test_work_that_was_handed_back_again_and_again_is_no_poison(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("restarts", tasks=[Task("only", "worker")]).start()
        await consumer_is_there(nats, "worker")
        for delivery in range(1, 10):
            message = await one_work(nats.jetstream(), "worker")
            assert message.metadata.num_delivered == delivery
            await message.nak()
        await world.agent("worker")
        assert (await client.wait(execution, 10.0)).status == "completed"
    assert [line.event for line in lines_of(world.journal)] == ["began", "ended"]


async def test_an_agent_that_asks_is_told_what_is_settled(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("asking", tasks=[Task("only", "plain")]).start()
        await consumer_is_there(nats, "plain")
        question = {"execution": execution, "task": "only", "agent": "plain", "attempt": 1}
        message = await one_work(nats.jetstream(), "plain")
        assert await ask(nats, "attempt", **question) == {"ok": {"settled": False}}
        await nats.jetstream().publish(json.loads(message.data)["reply_to"], b'{"result": 1}')
        assert await ask(nats, "attempt", **question) == {"ok": {"settled": True}}
        assert await ask(nats, "attempt", **{**question, "attempt": 2}) == {"ok": {"settled": False}}
        await message.ack()
        await client.wait(execution, 10.0)


async def test_garbage_on_the_genuine_subject_fails_the_attempt(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("garbage", tasks=[Task("only", "plain")]).start()
        await consumer_is_there(nats, "plain")
        message = await one_work(nats.jetstream(), "plain")
        await nats.jetstream().publish(json.loads(message.data)["reply_to"], b"\x00 no JSON")
        await message.ack()
        result = await client.wait(execution, 10.0)
        assert result.error is not None
        assert result.error["type"] == "garbage"


async def test_garbage_and_forged_facts_are_ignored(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        stream = nats.jetstream()
        execution = await Workflow("forged", tasks=[Task("only", "plain")]).start()
        await consumer_is_there(nats, "plain")
        message = await one_work(stream, "plain")
        genuine = json.loads(message.data)["reply_to"]
        place = genuine.rpartition(".")[0]
        base = place.partition(".outcome.")[0]
        forged = {
            f"{place}.0123456789abcdef": {"result": "forged"},
            f"{base}.finished.1.0123456789abcdef": {"v": 1, "kind": "finished", "state": "completed"},
            f"{base}.outcome.other.only.1.0123456789abcdef": {"result": "forged"},
            f"{base}.due.only.2.0123456789abcdef": {},
            f"{base}.command.cancel.x": {"no": "kind"},
            f"{base}.command.conquer.x": {"v": 1, "kind": "conquer"},
            f"{base}.nonsense": "nonsense",
        }
        for subject, fact in forged.items():
            await stream.publish(subject, json.dumps(fact).encode())
        status = await client.get_status(execution)
        assert (status.state, status.tasks["only"].state) == ("running", "queued")
        await stream.publish(genuine, b'{"result": "genuine"}')
        await message.ack()
        assert (await client.wait(execution, 10.0)).outputs == {"only": "genuine"}


async def test_work_in_doubt_waits_for_an_answer_and_is_not_worn_out_by_asking(world: World) -> None:
    coordinator = await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("in-doubt", tasks=[Task("only", "worker")]).start()
        await consumer_is_there(nats, "worker")
        message = await one_work(nats.jetstream(), "worker")
        coordinator.kill()
        await message.nak()
        # Delivered a second time, it may be done: an agent asks, and nobody answers.
        await world.agent("worker")
        await asyncio.sleep(2.0)
        assert lines_of(world.journal) == []
        info = await nats.jetstream().consumer_info("IM_WORK", "worker")
        assert info.delivered.consumer_seq == 2
        await world.coordinator()
        assert (await client.wait(execution, 10.0)).status == "completed"
    assert [line.event for line in lines_of(world.journal)] == ["began", "ended"]


async def test_an_answer_that_was_long_on_its_way_is_asked_for_again(world: World) -> None:
    coordinator = await world.coordinator()
    async with world.client(), connected(world.server.connect_url) as nats:
        await Workflow("stale-answer", tasks=[Task("only", "worker")]).start()
        await consumer_is_there(nats, "worker")
        message = await one_work(nats.jetstream(), "worker")
        coordinator.kill()
        await message.nak()
        answers = 0

        async def answer(question: Msg) -> None:
            """Like a coordinator that is frozen after it has looked, while another agent gives the outcome."""
            nonlocal answers
            answers += 1
            if answers == 1:
                await nats.jetstream().publish(json.loads(message.data)["reply_to"], b'{"result": "by another"}')
                await asyncio.sleep(0.5)
            await question.respond(json.dumps({"ok": {"settled": answers > 1}}).encode())

        await nats.subscribe("im.api.attempt", cb=answer)
        await world.agent("worker")

        async def is_acked() -> bool:
            return (await nats.jetstream().stream_info("IM_WORK")).state.messages == 0

        await until(is_acked, 10.0, "the agent acking what is settled")
        assert answers == 2
    assert lines_of(world.journal) == []
