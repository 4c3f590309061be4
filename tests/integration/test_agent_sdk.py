"""The agent SDK against a real system: handlers of every kind, failures, draining, cancelling, sharing."""

import asyncio
import dataclasses
import datetime
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pydantic
import pytest
from harness import World, until
from history import lines_of
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_agents import AgentRunner, InvalidAgent, missed_orders
from infinity_matrix_agents.cancels import Cancels
from infinity_matrix_bus import streams
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.session import Endpoint
from plain import connected


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    """A whole system in this process, without agents."""
    async with infinity_matrix.local(sync="lazy") as client:
        yield client


async def run_one(im: Client, agent: Agent, **fields: Any) -> Any:
    """The result of a workflow with one task of that agent."""
    await im.serve([agent])
    return await Workflow("one", tasks=[Task("only", agent.name, **fields)]).execute({"n": 1}, timeout=15.0)


async def test_a_plain_function_runs_in_a_thread_and_many_at_once(im: Client) -> None:
    agent = Agent("threads", concurrency=4)
    together = threading.Barrier(4, timeout=5.0)
    threads: set[int] = set()

    @agent.handler
    def handle(work: Work) -> str:
        threads.add(threading.get_ident())
        together.wait()
        work.log.info("from a thread", task=work.task)
        work.report_progress(100)
        return work.task

    await im.serve([agent])
    tasks = [Task(f"t{number}", "threads") for number in range(4)]
    result = await Workflow("threads", tasks=tasks).execute(timeout=15.0)
    assert result.outputs == {task.id: task.id for task in tasks}
    assert threading.get_ident() not in threads
    await until(lambda: log_count(im, result.execution_id, 4), 5.0)


async def log_count(im: Client, execution: str, count: int) -> bool:
    return len(await im.get_logs(execution)) == count


async def test_results_may_be_models_dataclasses_and_times(im: Client) -> None:
    class Rows(pydantic.BaseModel):
        rows: int

    @dataclasses.dataclass
    class Batch:
        rows: Rows
        at: datetime.datetime

    agent = Agent("shapes")

    @agent.handler
    async def handle(work: Work) -> Batch:
        return Batch(Rows(rows=3), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))

    result = await run_one(im, agent)
    assert result.outputs["only"] == {"rows": {"rows": 3}, "at": "2026-01-02T00:00:00Z"}


async def test_a_failure_that_is_not_retryable_ends_the_task(im: Client) -> None:
    agent = Agent("final")

    @agent.handler
    async def handle(work: Work) -> None:
        raise Failure("no-such-table", "users", retryable=False)

    result = await run_one(im, agent, retry_config={"max_attempts": 5})
    assert result.error == {"type": "no-such-table", "message": "users", "retryable": False, "task": "only"}
    assert (await im.get_status(result.execution_id)).tasks["only"].attempt == 1


async def test_a_failure_says_when_to_try_again(im: Client) -> None:
    agent = Agent("later")
    begun: list[float] = []

    @agent.handler
    async def handle(work: Work) -> str:
        begun.append(time.monotonic())
        if work.attempt == 1:
            raise Failure("busy", "later", retry_after=0.4)
        return "done"

    result = await run_one(im, agent, retry_config={"max_attempts": 2, "initial_delay": 60})
    assert result.outputs == {"only": "done"}
    assert 0.4 <= begun[1] - begun[0] < 2.0


async def test_an_unexpected_exception_is_retried_and_named(im: Client) -> None:
    agent = Agent("surprised")

    @agent.handler
    async def handle(work: Work) -> None:
        raise KeyError("surprise")

    result = await run_one(im, agent, retry_config={"max_attempts": 2, "initial_delay": 0.01})
    assert result.error["type"] == "KeyError"
    assert (await im.get_status(result.execution_id)).tasks["only"].attempt == 2
    lines = await im.get_logs(result.execution_id)
    assert [line.level for line in lines] == ["error", "error"]
    assert "KeyError" in lines[0].fields["traceback"]


async def test_a_plain_handler_that_finds_nothing_left_fails_like_any_other(im: Client) -> None:
    agent = Agent("empty")

    @agent.handler
    def handle(work: Work) -> Any:
        return next(iter(()))

    result = await run_one(im, agent)
    assert (result.error["type"], "StopIteration" in result.error["message"]) == ("RuntimeError", True)


async def test_a_handler_whose_own_wait_was_cancelled_fails_and_the_agent_goes_on(im: Client) -> None:
    agent = Agent("waits", concurrency=1)

    @agent.handler
    async def handle(work: Work) -> str:
        if work.attempt == 1:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return "went on"

    result = await run_one(im, agent, retry_config={"max_attempts": 2, "initial_delay": 0.01})
    assert result.outputs == {"only": "went on"}


@pytest.mark.parametrize("value", [object(), float("nan"), {1, lambda: None}], ids=["object", "nan", "function"])
async def test_a_result_that_cannot_be_encoded_fails_the_task_for_good(im: Client, value: Any) -> None:
    agent = Agent("unencodable")

    @agent.handler
    async def handle(work: Work) -> Any:
        return value

    result = await run_one(im, agent, retry_config={"max_attempts": 3})
    assert result.error["type"] == "ResultNotEncodable"
    assert result.error["retryable"] is False
    assert (await im.get_status(result.execution_id)).tasks["only"].attempt == 1


async def test_progress_is_a_status_message_in_json(im: Client) -> None:
    agent = Agent("progress")

    @agent.handler
    async def handle(work: Work) -> None:
        await work.progress(50, "half")

    async with connected(im.url) as nats:
        subscription = await nats.subscribe("im.status.>")
        await nats.flush()
        result = await run_one(im, agent)
        seen = []
        while True:
            message = await subscription.next_msg(timeout=5)
            seen.append((message.subject.split(".")[4:], json.loads(message.data)))
            if seen[-1][0] == ["_", "completed"]:
                break
    assert [".".join(tail) for tail, _ in seen] == [
        "_.running", "only.queued.1", "only.progress.1", "only.completed.1", "_.completed",
    ]  # fmt: skip
    progress = seen[2][1]
    assert (progress["percent"], progress["message"], progress["execution"]) == (50.0, "half", result.execution_id)
    assert seen[4][1]["progress"] == 100.0


async def test_progress_out_of_range_is_refused(im: Client) -> None:
    agent = Agent("too-far")

    @agent.handler
    async def handle(work: Work) -> None:
        await work.progress(101)

    assert (await run_one(im, agent)).error["type"] == "ValueError"


async def test_log_lines_are_kept_with_their_fields(im: Client) -> None:
    agent = Agent("logs")

    @agent.handler
    async def handle(work: Work) -> None:
        work.log.bind(table="users").info("rows", n=3)
        work.log.warning("odd", value=object())

    result = await run_one(im, agent)
    await until(lambda: log_count(im, result.execution_id, 2), 5.0)
    first, second = await im.get_logs(result.execution_id)
    assert (first.event, first.level, first.fields) == ("rows", "info", {"table": "users", "n": 3})
    assert (first.task_id, first.attempt) == ("only", 1)
    assert second.level == "warning"


async def test_no_more_works_run_at_once_than_an_agent_may(im: Client) -> None:
    agent = Agent("three", concurrency=3)
    running = most = 0

    @agent.handler
    async def handle(work: Work) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1

    await im.serve([agent])
    tasks = [Task(f"t{number}", "three") for number in range(60)]
    assert (await Workflow("limited", tasks=tasks).execute(timeout=20.0)).status == "completed"
    assert most == 3


async def test_agents_may_be_there_before_their_workflow(im: Client) -> None:
    agent = Agent("early")

    @agent.handler
    async def handle(work: Work) -> dict[str, Any]:
        return {"input": work.input, "key": work.idempotency_key, "deadline": work.deadline is not None}

    await im.serve([agent])
    result = await run_one(im, agent)
    key = f"{result.execution_id}/only"
    assert result.outputs["only"] == {"input": {"n": 1}, "key": key, "deadline": True}


async def test_a_second_handler_is_refused() -> None:
    agent = Agent("one-handler")
    agent.handler(lambda work: None)
    with pytest.raises(InvalidAgent, match="has a handler already"):
        agent.handler(lambda work: None)


async def test_cancel_reaches_a_handler_that_waits(im: Client) -> None:
    agent = Agent("waiting")
    seen: list[str] = []

    @agent.handler
    async def handle(work: Work) -> None:
        seen.append("began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(f"cancelled {work.cancelled}")
            raise

    await im.serve([agent])
    workflow = Workflow("cancelled", tasks=[Task("only", "waiting")])
    execution = await workflow.start()
    await until(lambda: bool(seen), 5.0)
    await workflow.cancel(execution, "not needed")
    result = await workflow.wait(execution, 8.0)
    assert (result.status, result.error) == ("cancelled", {"type": "cancelled", "message": "not needed"})
    assert seen == ["began", "cancelled True"]


async def test_cancel_is_seen_by_a_handler_in_a_thread(im: Client) -> None:
    agent = Agent("looking")
    began = threading.Event()

    @agent.handler
    def handle(work: Work) -> str:
        began.set()
        deadline = time.monotonic() + 10.0
        while not work.cancelled:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        raise Failure("stopped", "on request")

    await im.serve([agent])
    workflow = Workflow("looked", tasks=[Task("only", "looking")])
    execution = await workflow.start()
    await until(began.is_set, 5.0)
    await workflow.cancel(execution)
    assert (await workflow.wait(execution, 8.0)).status == "cancelled"


async def test_two_agent_processes_of_one_name_share_the_work(world: World) -> None:
    await world.coordinator()
    processes = [await world.agent("worker", concurrency=4) for _ in range(2)]
    async with world.client():
        tasks = [Task(f"t{number}", "worker", config={"seconds": 0.02}) for number in range(60)]
        result = await Workflow("shared", tasks=tasks).execute(timeout=20.0)
    by = [output["process"] for output in result.outputs.values()]
    assert {process.pid for process in processes} == set(by)
    assert min(by.count(process.pid) for process in processes) > 10


async def test_sigterm_finishes_what_runs_and_takes_no_more(world: World) -> None:
    await world.coordinator()
    first = await world.agent("worker", concurrency=4)
    async with world.client():
        tasks = [Task(f"t{number}", "worker", config={"seconds": 0.5}) for number in range(12)]
        workflow = Workflow("drained", tasks=tasks)
        execution = await workflow.start()
        await until(lambda: len(lines_of(world.journal)) >= 4, 5.0)
        first.terminate()
        told_at = time.time()
        assert await first.ended(5.0) == 0
        lines = lines_of(world.journal)
        assert [line.event for line in lines] == ["began"] * 4 + ["ended"] * 4
        assert max(line.at for line in lines if line.event == "began") < told_at
        # What it had not begun is not lost with it, nor locked for the length of a lease.
        second = await world.agent("worker", concurrency=12)
        result = await workflow.wait(execution, 8.0)
        assert result.status == "completed"
    by = [output["process"] for output in result.outputs.values()]
    assert (by.count(first.pid), by.count(second.pid)) == (4, 8)


async def test_what_does_not_finish_in_time_is_handed_back_at_once(im: Client) -> None:
    slow, quick = Agent("both", concurrency=2), Agent("both", concurrency=4)
    begun: list[str] = []

    @slow.handler
    async def wait(work: Work) -> None:
        begun.append(work.task)
        await asyncio.sleep(60)

    @quick.handler
    async def answer(work: Work) -> str:
        return "by the other"

    connection = await Connection(Endpoint(im.url)).open()
    runner = await AgentRunner(slow, connection).open()
    workflow = Workflow("handed-back", tasks=[Task(f"t{number}", "both") for number in range(4)])
    execution = await workflow.start()
    await until(lambda: len(begun) == 2, 5.0)
    closing_at = time.monotonic()
    await runner.close(0.2)
    assert time.monotonic() - closing_at < 2.0
    await connection.close()
    await im.serve([quick])
    result = await workflow.wait(execution, 5.0)
    assert set(result.outputs.values()) == {"by the other"}
    assert len(begun) == 2


async def test_an_agent_that_is_ending_is_given_nothing_more(im: Client) -> None:
    ending, other = Agent("both", concurrency=8), Agent("both", concurrency=8)
    begun: list[str] = []
    release = asyncio.Event()

    @ending.handler
    async def wait(work: Work) -> str:
        begun.append(work.task)
        await release.wait()
        return "by the one that ended"

    @other.handler
    async def answer(work: Work) -> str:
        return "by the other"

    connection = await Connection(Endpoint(im.url)).open()
    runner = await AgentRunner(ending, connection).open()
    first = await Workflow("first", tasks=[Task("held", "both")]).start()
    await until(lambda: len(begun) == 1, 5.0)
    # It has asked for seven more, and is told to end.
    closing = asyncio.create_task(runner.close(10.0))
    await asyncio.sleep(0.1)
    second = await Workflow("second", tasks=[Task("next", "both")]).start()
    await until(lambda: has_queued(im, second, 1), 5.0)
    # Handed back again and again it would soon pass for poison.
    await asyncio.sleep(0.3)
    await im.serve([other])
    result = await im.wait(second, 5.0)
    assert set(result.outputs.values()) == {"by the other"}
    release.set()
    await closing
    await connection.close()
    assert (await im.wait(first, 5.0)).outputs == {"held": "by the one that ended"}
    assert begun == ["held"]


async def has_queued(im: Client, execution: str, count: int) -> bool:
    tasks = (await im.get_status(execution)).tasks.values()
    return sum(task.state == "queued" for task in tasks) == count


async def test_work_in_hand_that_is_delivered_again_is_not_run_again(im: Client) -> None:
    agent = Agent("once")
    begun: list[int] = []

    @agent.handler
    async def handle(work: Work) -> str:
        begun.append(work.attempt)
        await asyncio.sleep(1.0)
        return "once"

    await im.serve([agent])
    workflow = Workflow("once", tasks=[Task("only", "once")])
    execution = await workflow.start()
    await until(lambda: bool(begun), 5.0)
    async with connected(im.url) as nats:
        # A consumer that is made again delivers what is in hand, and counts from one.
        await nats.jetstream().delete_consumer("IM_WORK", "once")
        assert (await workflow.wait(execution, 10.0)).outputs == {"only": "once"}

        async def is_acked() -> bool:
            return (await nats.jetstream().stream_info("IM_WORK")).state.messages == 0

        await until(is_acked, 10.0, "the work being acked by its newest lease")
    assert begun == [1]


async def test_a_handler_whose_order_to_stop_was_missed_is_stopped_once_its_time_is_over(
    im: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cancels, "on_order", lambda *message: None)
    monkeypatch.setattr(missed_orders, "LATE_S", 0.2)
    monkeypatch.setattr(streams, "ACK_WAIT_S", 1.5)
    agent = Agent("one-place", concurrency=1)
    stopped = asyncio.Event()

    @agent.handler
    async def handle(work: Work) -> str:
        if work.config.get("hangs"):
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        return "done"

    await im.serve([agent])
    hanging = Workflow("hangs", tasks=[Task("only", "one-place", config={"hangs": True}, timeout=0.3)])
    assert (await hanging.execute(timeout=15.0)).status == "failed"
    # The attempt is closed; only the agent does not know.
    after = Workflow("after", tasks=[Task("only", "one-place")])
    assert (await after.execute(timeout=10.0)).outputs == {"only": "done"}
    assert stopped.is_set()
