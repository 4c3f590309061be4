"""How agents are held: by a rate, their versions, a pause, a cancel; and how they show that they live."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import infinity_matrix
import pytest
from harness import World, consumer_is_there, until
from history import lines_of
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import UnknownAgent
from infinity_matrix_actors.fact import Outcome
from infinity_matrix_agents import AgentRunner
from infinity_matrix_agents.rate import RATE_BURST_S
from infinity_matrix_agents.reports import PROGRESS_INTERVAL_S
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.agent_pauses import pause_agent, resume_agent
from plain import ask, connected, one_work


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    """A whole system in this process, without agents."""
    async with infinity_matrix.local(sync="lazy") as client:
        yield client


@asynccontextmanager
async def process_of(im: Client, agent: Agent, drain_s: float = 5.0) -> AsyncIterator[AgentRunner]:
    """An agent on a connection of its own, as another process would be."""
    connection = await Connection(Endpoint(im.url)).open()
    runner = await AgentRunner(agent, connection).open()
    try:
        yield runner
    finally:
        await runner.close(drain_s)
        await connection.close()


async def pause(im: Client, agent: str, for_s: float | None = None) -> float | None:
    return await pause_agent(await im.operations.session(), im.operations.subjects, agent, for_s)


async def resume(im: Client, agent: str) -> None:
    await resume_agent(await im.operations.session(), im.operations.subjects, agent)


def wide(name: str, agent: str, count: int, **fields: Any) -> Workflow:
    return Workflow(name, tasks=[Task(f"t{number}", agent, **fields) for number in range(count)])


# Rates.


async def test_an_agent_begins_no_faster_than_its_rate(im: Client) -> None:
    agent = Agent("paced", concurrency=50, rate="40/s")
    begun: list[float] = []

    @agent.handler
    async def handle(work: Work) -> None:
        begun.append(time.monotonic())

    await im.serve([agent])
    assert (await wide("paced", "paced", 60).execute(timeout=20.0)).status == "completed"
    # A handler may begin a little after its token was taken, and the next one at once.
    late = 2
    for first, at in enumerate(begun):
        for last in range(first, len(begun)):
            assert last - first + 1 <= 40 * (begun[last] - at + RATE_BURST_S) + 1 + late
    # Nor much slower.
    assert begun[-1] - begun[0] < 2 * 60 / 40


async def test_what_has_no_token_is_left_to_other_processes(im: Client) -> None:
    slow, quick = Agent("both", rate="1/s"), Agent("both")
    by: list[str] = []

    @slow.handler
    async def begin(work: Work) -> None:
        by.append("slow")

    @quick.handler
    async def begin_too(work: Work) -> None:
        by.append("quick")

    async with process_of(im, slow):
        first = await wide("first", "both", 30).start()
        await until(lambda: len(by) == 1, 5.0)
        async with process_of(im, quick):
            # At 1/s it would take half a minute; nothing of it was in the slow one's hands.
            assert (await im.wait(first, 5.0)).status == "completed"
    assert by.count("slow") <= 6


# Signs of life.


@asynccontextmanager
async def heard(im: Client) -> AsyncIterator[list[dict[str, Any]]]:
    """The progress messages of all agents, as anyone hears them."""
    async with connected(im.url) as nats:
        messages: list[dict[str, Any]] = []

        async def take(message: Any) -> None:
            messages.append(json.loads(message.data))

        await nats.subscribe("im.status.*.*.*.progress.*", cb=take)
        await nats.flush()
        yield messages


async def test_progress_is_sent_no_more_than_four_times_a_second_and_the_last_is_not_lost(im: Client) -> None:
    agent = Agent("talks")

    @agent.handler
    async def handle(work: Work) -> None:
        for number in range(100):
            await work.progress(number, f"step {number}")
            await work.heartbeat()
            await asyncio.sleep(0.01)
        await work.progress({"rows": 3, "files": ["a"]}, "done")
        # A further sign of life does not take the place of what was not sent yet.
        await work.heartbeat()

    await im.serve([agent])
    async with heard(im) as messages:
        began = time.monotonic()
        assert (await wide("talks", "talks", 1).execute(timeout=15.0)).status == "completed"
        took_s = time.monotonic() - began
        await until(lambda: "data" in messages[-1], 5.0, "the last progress")
    assert 4 <= len(messages) <= took_s / PROGRESS_INTERVAL_S + 2
    assert messages[0]["percent"] == 0.0
    assert (messages[-1]["data"], messages[-1]["message"]) == ({"rows": 3, "files": ["a"]}, "done")
    assert "percent" not in messages[-1]


async def test_nothing_shows_signs_of_life_for_a_handler_that_does_not(im: Client) -> None:
    agent = Agent("quiet", concurrency=2)

    @agent.handler
    async def handle(work: Work) -> None:
        await asyncio.sleep(0.8)
        if work.task == "t1":
            await work.heartbeat()

    await im.serve([agent])
    async with heard(im) as messages:
        assert (await wide("quiet", "quiet", 2).execute(timeout=15.0)).status == "completed"
        await until(lambda: bool(messages), 5.0)
    assert [(message["task"], message["status"]) for message in messages] == [("t1", "progress")]
    assert messages[0].keys().isdisjoint({"percent", "data", "message"})


async def test_an_attempt_without_signs_of_life_fails_by_its_heartbeat_timeout(im: Client) -> None:
    agent = Agent("beats", concurrency=2)

    @agent.handler
    async def handle(work: Work) -> float | None:
        for _ in range(50):
            await asyncio.sleep(0.05)
            if work.config["beats"]:
                await work.heartbeat()
        return work.heartbeat_timeout

    await im.serve([agent])
    alive = wide("alive", "beats", 1, heartbeat_timeout=1.0, config={"beats": True})
    silent = wide("silent", "beats", 1, heartbeat_timeout=1.0, config={"beats": False})
    result, failed = await asyncio.gather(alive.execute(timeout=20.0), silent.execute(timeout=20.0))
    assert result.outputs == {"t0": 1.0}
    assert failed.error is not None
    assert failed.error["type"] == "timed_out"
    assert "heartbeat_timeout" in failed.error["message"]


async def test_progress_that_cannot_be_sent_is_told_to_the_handler(im: Client) -> None:
    agent = Agent("mistaken")

    @agent.handler
    async def handle(work: Work) -> list[str]:
        problems = []
        for value in (101, float("nan"), object(), {"text": "x" * 70_000}):
            try:
                await work.progress(value)
            except (ValueError, infinity_matrix.InfinityMatrixError) as error:
                problems.append(type(error).__name__)
        return problems

    await im.serve([agent])
    result = await wide("mistaken", "mistaken", 1).execute(timeout=15.0)
    assert result.outputs["t0"] == ["ValueError", "ValueError", "PayloadNotEncodable", "PayloadTooLarge"]


# Versions.


async def test_work_waits_for_a_process_of_its_version_and_is_not_worn_out_meanwhile(world: World) -> None:
    await world.coordinator()
    journal = str(world.journal)
    async with world.client() as client, connected(world.server.connect_url) as nats:
        tasks = [Task("only", "worker")]
        first = await Workflow("versions", "1", tasks=tasks).start()
        second = await Workflow("versions", "2", tasks=tasks).start()
        old = await world._add("agent_process.py", "old", journal, "worker", "--versions", "1").ready()
        assert (await client.wait(first, 10.0)).status == "completed"

        async def was_passed_on() -> bool:
            info = await nats.jetstream().consumer_info("IM_WORK", "worker")
            return bool(info.delivered.consumer_seq > 6)

        await until(was_passed_on, 20.0, "the work of version 2 being passed on more often than poison is")
        assert {line.process for line in lines_of(world.journal)} == {old.pid}
        new = await world._add("agent_process.py", "new", journal, "worker", "--versions", "2", "3").ready()
        result = await client.wait(second, 30.0)
        assert result.outputs["only"]["process"] == new.pid
    assert [line.process for line in lines_of(world.journal)] == [old.pid] * 2 + [new.pid] * 2


# Poison.


async def test_rolling_restarts_do_not_make_work_poison(im: Client) -> None:
    begun: list[str] = []

    def agent_that(takes_s: float) -> Agent:
        agent = Agent("restarted")

        @agent.handler
        async def handle(work: Work) -> str:
            begun.append(work.task)
            await asyncio.sleep(takes_s)
            return "at last"

        return agent

    execution = await wide("restarts", "restarted", 1).start()
    for restart in range(1, 9):
        async with process_of(im, agent_that(60.0), drain_s=0.0):
            await until(lambda count=restart: len(begun) == count, 5.0)
    async with process_of(im, agent_that(0.0)):
        assert (await im.wait(execution, 10.0)).outputs == {"t0": "at last"}


# Cancelling.


async def steps_until(is_over: Callable[[], bool]) -> None:
    """What a handler does that works in small steps."""
    for _ in range(6000):
        if is_over():
            return
        await asyncio.sleep(0.01)


async def test_a_handler_that_looks_is_left_the_grace_and_one_that_does_not_is_cancelled(im: Client) -> None:
    agent = Agent("graced", concurrency=2)
    began: list[float] = []
    seen: dict[str, tuple[str, float, float | None]] = {}

    @agent.handler
    async def handle(work: Work) -> str:
        began.append(time.monotonic())
        try:
            if work.task == "t0":
                await steps_until(lambda: work.cancelled)
                # It has seen it, and brings to an end what it must not leave half done.
                await asyncio.sleep(2.0)
                seen[work.task] = ("ended", time.monotonic(), work.cancel_grace)
            else:
                await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            seen[work.task] = ("cancelled", time.monotonic(), work.cancel_grace)
            raise
        return "whole"

    await im.serve([agent])
    workflow = Workflow("graced", tasks=[Task(f"t{number}", "graced") for number in range(2)], grace=60)
    execution = await workflow.start()
    await until(lambda: len(began) == 2, 5.0)
    told_at = time.monotonic()
    # The cancel's own grace goes before the workflow's.
    await im.cancel(execution, "enough", grace=5)
    result = await workflow.wait(execution, 10.0)
    assert result.status == "cancelled"
    assert (seen["t0"][0], seen["t1"][0]) == ("ended", "cancelled")
    assert (seen["t0"][2], seen["t1"][2]) == (5.0, 5.0)
    assert 0.9 < seen["t1"][1] - told_at < 1.9
    tasks = (await im.get_status(execution)).tasks
    # What they say of themselves, not what a coordinator closed after the grace.
    assert tasks["t0"].state == "completed"
    assert tasks["t1"].error == {"type": "cancelled", "message": "enough", "retryable": False}


async def test_a_handler_that_looks_for_too_long_is_cancelled_before_the_grace_is_over(im: Client) -> None:
    agent = Agent("endless")
    began: list[float] = []

    @agent.handler
    async def handle(work: Work) -> None:
        began.append(time.monotonic())
        await steps_until(lambda: work.cancelled and False)

    await im.serve([agent])
    workflow = Workflow("endless", tasks=[Task("only", "endless")], grace=3)
    execution = await workflow.start()
    await until(lambda: bool(began), 5.0)
    told_at = time.monotonic()
    await workflow.cancel(execution, "enough")
    result = await workflow.wait(execution, 10.0)
    assert 2.0 < time.monotonic() - told_at < 3.0
    assert result.status == "cancelled"
    assert (await im.get_status(execution)).tasks["only"].error == {
        "type": "cancelled",
        "message": "enough",
        "retryable": False,
    }


async def test_cleaning_up_is_not_broken_off_when_the_attempt_is_closed_meanwhile(im: Client) -> None:
    agent = Agent("cleans")
    seen: list[str] = []

    @agent.handler
    async def handle(work: Work) -> None:
        seen.append("began")
        try:
            await asyncio.sleep(60.0)
        finally:
            await asyncio.sleep(1.5)
            seen.append("clean")

    await im.serve([agent])
    workflow = Workflow("cleans", tasks=[Task("only", "cleans")], grace=1)
    execution = await workflow.start()
    await until(lambda: bool(seen), 5.0)
    await workflow.cancel(execution)
    assert (await workflow.wait(execution, 10.0)).status == "cancelled"
    await until(lambda: len(seen) > 1, 5.0)
    assert seen == ["began", "clean"]


# Pausing.


async def test_a_paused_agent_is_given_nothing_until_it_is_resumed(im: Client) -> None:
    agent = Agent("paused", concurrency=1)
    begun: list[str] = []
    release = asyncio.Event()

    @agent.handler
    async def handle(work: Work) -> str:
        begun.append(work.execution)
        await release.wait()
        return "done"

    await im.serve([agent])
    workflow = wide("paused", "paused", 1)
    first = await workflow.start()
    await until(lambda: begun == [first], 5.0)
    assert await pause(im, "paused") is None
    second = await workflow.start()
    release.set()
    # What it had it finished; it has places free, and asks for more.
    assert (await im.wait(first, 5.0)).status == "completed"
    limited = await wide("limited", "paused", 1, queue_timeout=1.0).execute(timeout=15.0)
    assert limited.error is not None
    assert "queue_timeout" in limited.error["message"]
    # Longer than a consumer may be silent: the agent holds on to it.
    await asyncio.sleep(3.5)
    assert begun == [first]
    assert (await im.get_status(second)).tasks["t0"].state == "queued"
    await resume(im, "paused")
    assert (await im.wait(second, 5.0)).status == "completed"
    assert begun == [first, second]


async def test_a_pause_ends_by_itself_and_may_be_asked_for_with_json(im: Client) -> None:
    agent = Agent("short")

    @agent.handler
    async def handle(work: Work) -> float:
        return time.time()

    await im.serve([agent])
    workflow = wide("short", "short", 1)
    assert (await workflow.execute(timeout=10.0)).status == "completed"
    async with connected(im.url) as nats:
        answer = await ask(nats, "agent.pause", agent="short", **{"for": "1s"})
        paused_at = time.time()
        assert answer["ok"]["paused"] is True
        result = await workflow.execute(timeout=10.0)
        assert 0.8 < result.outputs["t0"] - paused_at < 3.0
        assert (await ask(nats, "agent.pause", agent="short"))["ok"]["paused_until"] is None
        assert (await ask(nats, "agent.resume", agent="short")) == {"ok": {"agent": "short", "paused": False}}
        assert (await workflow.execute(timeout=10.0)).status == "completed"
        assert (await ask(nats, "agent.pause", agent="nobody"))["error"]["type"] == "UnknownAgent"
        assert (await ask(nats, "agent.pause", agent="short", **{"for": "soon"}))["error"][
            "type"
        ] == "InvalidDefinition"


async def test_an_agent_that_nobody_names_cannot_be_paused(im: Client) -> None:
    with pytest.raises(UnknownAgent, match="there is no agent 'nobody'"):
        await pause(im, "nobody")


async def test_work_that_is_cancelled_while_it_is_asked_about_says_why(world: World) -> None:
    coordinator = await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await Workflow("in-doubt", tasks=[Task("only", "worker")], grace=20).start()
        await consumer_is_there(nats, "worker")
        message = await one_work(nats.jetstream(), "worker")
        coordinator.kill()
        await message.nak()
        # Delivered a second time it may be done: the agent asks, and is told to stop before anybody answers.
        await world.agent("worker")

        async def has_it() -> bool:
            return bool((await nats.jetstream().consumer_info("IM_WORK", "worker")).delivered.consumer_seq == 2)

        await until(has_it, 10.0, "the second delivery")
        await client.cancel(execution, "no longer wanted")
        order = {"reason": "no longer wanted", "attempt": 1, "grace": 20.0}
        await nats.publish(f"im.cancel.{execution}", json.dumps(order).encode())
        await nats.flush()
        await world.coordinator()
        assert (await client.wait(execution, 10.0)).status == "cancelled"
        error = (await client.get_status(execution)).tasks["only"].error
    assert error == {"type": "cancelled", "message": "no longer wanted", "retryable": False}
    assert lines_of(world.journal) == []


async def test_a_cancel_of_work_that_others_may_have_begun_says_that_nobody_knows(
    im: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(runner: AgentRunner) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(AgentRunner, "_work", never)
    agent = Agent("idle")

    @agent.handler
    async def handle(work: Work) -> None:
        raise AssertionError("it is not begun")

    async def cancelled(runner: AgentRunner, execution: str) -> Outcome:
        await until(lambda: bool(runner._queue), 10.0, "its work")
        await im.cancel(execution)
        assert (await im.wait(execution, timeout=10.0)).status == "cancelled"
        facts = await im.operations.facts_of(execution)
        return next(fact for _, fact in facts if isinstance(fact, Outcome))

    workflow = wide("queued", "idle", 1)
    # Its work was stored before the agent connected: who had it then may have done it.
    before = await workflow.start()
    api, stream = JetStreamApi(await im.operations.session()), im.operations.subjects.work_stream

    async def is_stored() -> bool:
        info = await api.stream_info(stream)
        return info is not None and info["state"]["messages"] == 1

    await until(is_stored, 10.0, "its work being stored")
    async with process_of(im, agent) as runner:
        assert (await cancelled(runner, before)).closed
        since = await workflow.start()
        outcome = await cancelled(runner, since)
        assert outcome.error is not None
        assert (outcome.closed, outcome.error.type) == (False, "cancelled")
