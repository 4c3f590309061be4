"""What a workflow means, on a real system: order, conditions, failures, retries, timeouts, cancelling."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow

WAIT_S = 15.0


class Scripted:
    """An agent whose tasks do what their config says, and what was begun."""

    def __init__(self) -> None:
        self.agent = Agent("scripted", concurrency=256)
        self.begun: list[tuple[str, int]] = []
        self.at: list[float] = []
        self.agent.handler(self.handle)

    async def handle(self, work: Work) -> Any:
        self.begun.append((work.task, work.attempt))
        self.at.append(time.monotonic())
        if work.config.get("stubborn"):
            await self.ignore_cancelling(work.config["stubborn"])
        await asyncio.sleep(work.config.get("seconds", 0))
        if work.attempt <= work.config.get("failures", 0):
            raise Failure("wanted", "as the config says")
        return work.config.get("result", {"saw": work.upstream})

    async def ignore_cancelling(self, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while (left_s := ends_at - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left_s)
            except asyncio.CancelledError:
                continue

    @property
    def tasks(self) -> list[str]:
        return [task for task, _ in self.begun]


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
async def im(scripted: Scripted) -> AsyncIterator[Client]:
    async with infinity_matrix.local(agents=[scripted.agent], sync="lazy") as client:
        yield client


def task(id: str, *depends_on: str, **fields: Any) -> Task:
    config = {key: fields.pop(key) for key in ("seconds", "failures", "result", "stubborn") if key in fields}
    return Task(id, "scripted", depends_on=list(depends_on), config=config, **fields)


async def states(im: Client, execution: str) -> dict[str, str]:
    return {name: task.state for name, task in (await im.get_status(execution)).tasks.items()}


async def test_a_sequence_hands_results_from_task_to_task(im: Client, scripted: Scripted) -> None:
    workflow = Workflow("sequence", tasks=[task("a", result=1), task("b", "a", result=[2]), task("c", "b")])
    result = await workflow.execute(timeout=WAIT_S)
    assert result.outputs == {"a": 1, "b": [2], "c": {"saw": {"b": [2]}}}
    assert scripted.begun == [("a", 1), ("b", 1), ("c", 1)]
    status = await im.get_status(result.execution_id)
    assert (status.state, status.progress, status.current_task) == ("completed", 100.0, None)


async def test_branches_run_at_the_same_time_and_join(im: Client, scripted: Scripted) -> None:
    branches = [task(f"branch-{number}", "split", seconds=0.3, result=number) for number in range(20)]
    join = task("join", *(branch.id for branch in branches))
    result = await Workflow("fan", tasks=[task("split"), *branches, join]).execute(timeout=WAIT_S)
    assert result.outputs["join"]["saw"] == {f"branch-{number}": number for number in range(20)}
    assert 0.3 <= result.duration < 2.0


async def test_a_false_condition_skips_its_branch_and_the_join_runs(im: Client, scripted: Scripted) -> None:
    tasks = [
        task("load", result={"rows": 3}),
        task("many", "load", condition="load.result.rows > 100"),
        task("after-many", "many"),
        task("few", "load", condition="load.result.rows <= 100 and input.mode == 'small'"),
        task("report", "after-many", "few"),
        task("never", "after-many"),
    ]
    result = await Workflow("conditions", tasks=tasks).execute({"mode": "small"}, timeout=WAIT_S)
    assert result.status == "completed"
    assert await states(im, result.execution_id) == {
        "load": "completed", "many": "skipped", "after-many": "skipped", "few": "completed", "report": "completed",
        "never": "skipped",
    }  # fmt: skip
    assert scripted.tasks == ["load", "few", "report"]


async def test_a_condition_that_has_no_answer_fails_the_task(im: Client) -> None:
    tasks = [task("load", result={"rows": "many"}), task("next", "load", condition="load.result.rows > 3")]
    result = await Workflow("no-answer", tasks=tasks).execute(timeout=WAIT_S)
    assert result.status == "failed"
    assert result.error is not None
    assert (result.error["type"], result.error["task"]) == ("condition_error", "next")


@pytest.mark.parametrize(
    ("run_when", "good", "bad", "runs"),
    [
        ("all_completed", True, False, False),
        ("any_completed", True, False, True),
        ("all_settled", False, False, True),
        ("any_failed", True, False, True),
        ("any_failed", True, True, False),
        ("any_completed", False, False, False),
    ],
)
async def test_run_when_decides_after_a_failure(im: Client, run_when: str, good: bool, bad: bool, runs: bool) -> None:
    tasks = [
        task("good", failures=0 if good else 9),
        task("bad", failures=0 if bad else 9),
        task("last", "good", "bad", run_when=run_when),
    ]
    result = await Workflow("run-when", tasks=tasks).execute(timeout=WAIT_S)
    is_handled = run_when != "all_completed"
    assert result.status == ("completed" if is_handled else "failed")
    if is_handled:
        assert (await states(im, result.execution_id))["last"] == ("completed" if runs else "skipped")


async def test_an_unhandled_failure_stops_what_runs_and_starts_nothing_more(im: Client, scripted: Scripted) -> None:
    tasks = [
        task("fails", failures=9),
        task("slow", seconds=60),
        task("after-slow", "slow"),
        task("after-fails", "fails"),
    ]
    began = time.monotonic()
    result = await Workflow("unhandled", tasks=tasks, grace=8).execute(timeout=WAIT_S)
    # The slow one is told, and does not use up the grace.
    assert time.monotonic() - began < 5.0
    assert result.status == "failed"
    assert result.error == {"type": "wanted", "message": "as the config says", "retryable": True, "task": "fails"}
    assert await states(im, result.execution_id) == {
        "fails": "failed", "slow": "cancelled", "after-slow": "cancelled", "after-fails": "cancelled",
    }  # fmt: skip
    assert sorted(scripted.tasks) == ["fails", "slow"]
    with pytest.raises(infinity_matrix.ExecutionFailed):
        result.raise_for_failure()


async def test_what_waits_in_the_queue_is_not_begun_after_a_failure(im: Client) -> None:
    agent = Agent("one-by-one", concurrency=1)
    begun: list[str] = []

    @agent.handler
    async def handle(work: Work) -> None:
        begun.append(work.task)
        await asyncio.sleep(0.1)
        raise Failure("wanted", retryable=False)

    await im.serve([agent])
    workflow = Workflow("queued-behind", tasks=[Task(f"t{number}", "one-by-one") for number in range(40)], grace=8)
    result = await workflow.execute(timeout=WAIT_S)
    assert result.status == "failed"
    # Neither run one after another, nor waited for until the grace is over.
    assert result.duration < 2.0
    assert len(begun) <= 3
    assert list((await states(im, result.execution_id)).values()).count("cancelled") >= 37


async def test_an_agent_that_will_not_stop_is_closed_after_the_grace(im: Client) -> None:
    workflow = Workflow("stubborn", tasks=[task("only", stubborn=4)], grace=1)
    execution = await workflow.start()
    await until(lambda: has_state(im, execution, "only", "running"), 5.0)
    cancelled_at = time.monotonic()
    await workflow.cancel(execution, "enough")
    result = await workflow.wait(execution, WAIT_S)
    assert 0.9 < time.monotonic() - cancelled_at < 3.0
    assert (result.status, result.outputs) == ("cancelled", {})
    task_status = (await im.get_status(execution)).tasks["only"]
    assert task_status.state == "cancelled"
    assert task_status.error is not None
    assert "grace" in task_status.error["message"]


async def has_state(im: Client, execution: str, name: str, state: str) -> bool:
    return (await im.get_status(execution)).tasks[name].state == state


async def test_retries_back_off_and_then_succeed(im: Client, scripted: Scripted) -> None:
    retry = {"max_attempts": 4, "backoff": "exponential", "initial_delay": 0.1, "multiplier": 3, "jitter": 0}
    result = await Workflow("retried", tasks=[task("only", failures=3, retry_config=retry)]).execute(timeout=WAIT_S)
    assert result.status == "completed"
    assert scripted.begun == [("only", number) for number in range(1, 5)]
    gaps = [later - earlier for earlier, later in zip(scripted.at, scripted.at[1:], strict=False)]
    for gap_s, delay_s in zip(gaps, (0.1, 0.3, 0.9), strict=True):
        assert delay_s <= gap_s < delay_s + 0.5
    metrics = await im.get_metrics(result.execution_id)
    assert metrics.tasks["only"].attempts == metrics.total_attempts == 4


async def test_an_error_type_can_be_excluded_from_retries(im: Client, scripted: Scripted) -> None:
    retry = {"max_attempts": 4, "initial_delay": 0.01, "non_retryable": ["wanted"]}
    result = await Workflow("excluded", tasks=[task("only", failures=3, retry_config=retry)]).execute(timeout=WAIT_S)
    assert result.status == "failed"
    assert scripted.begun == [("only", 1)]


async def test_an_attempt_that_takes_too_long_is_tried_again(im: Client, scripted: Scripted) -> None:
    retry = {"max_attempts": 2, "initial_delay": 0.05}
    tasks = [task("only", seconds=30, timeout=0.4, retry_config=retry)]
    result = await Workflow("too-long", tasks=tasks).execute(timeout=WAIT_S)
    assert result.error is not None
    assert result.error["type"] == "timed_out"
    assert scripted.begun == [("only", 1), ("only", 2)]
    assert 0.9 < result.duration < 4.0


async def test_all_attempts_together_have_a_limit(im: Client, scripted: Scripted) -> None:
    retry = {"max_attempts": 100, "backoff": "fixed", "initial_delay": 0.2, "jitter": 0}
    tasks = [task("only", failures=999, retry_config=retry, total_timeout=1.0)]
    result = await Workflow("in-total", tasks=tasks).execute(timeout=WAIT_S)
    assert result.status == "failed"
    assert 3 <= len(scripted.begun) <= 6
    assert result.duration < 2.0


async def test_a_workflow_has_a_timeout_of_its_own(im: Client) -> None:
    workflow = Workflow("deadline", tasks=[task("only", seconds=60), task("next", "only")], timeout=0.7)
    result = await workflow.execute(timeout=WAIT_S)
    assert result.status == "failed"
    assert result.error is not None
    assert result.error["type"] == "timed_out"
    assert 0.7 <= result.duration < 4.0
    assert set((await states(im, result.execution_id)).values()) == {"cancelled"}


async def test_cancelling_what_has_ended_changes_nothing(im: Client) -> None:
    workflow = Workflow("over", tasks=[task("only")])
    result = await workflow.execute(timeout=WAIT_S)
    await workflow.cancel(result.execution_id)
    await workflow.cancel(result.execution_id)
    assert (await workflow.wait(result.execution_id)).status == "completed"
    assert [summary.state for summary in await im.list()] == ["completed"]


async def test_a_cancelled_execution_waits_for_no_retry(im: Client, scripted: Scripted) -> None:
    retry = {"max_attempts": 3, "initial_delay": 300}
    workflow = Workflow("backing-off", tasks=[task("only", failures=9, retry_config=retry)])
    execution = await workflow.start()
    await until(lambda: has_state(im, execution, "only", "retrying"), 5.0)
    await workflow.cancel(execution)
    assert (await workflow.wait(execution, 5.0)).status == "cancelled"
    assert scripted.begun == [("only", 1)]


async def test_starting_the_same_again_answers_the_same_execution(im: Client, scripted: Scripted) -> None:
    workflow = Workflow("same", tasks=[task("only")])
    first = await workflow.start({"n": 1}, execution_id="order-17")
    assert first == "order-17"
    assert await workflow.start({"n": 1}, execution_id="order-17") == first
    assert (await workflow.execute({"n": 1}, execution_id="order-17", timeout=WAIT_S)).status == "completed"
    with pytest.raises(infinity_matrix.ExecutionExists, match="input"):
        await workflow.start({"n": 2}, execution_id="order-17")
    with pytest.raises(infinity_matrix.ExecutionExists, match="definition"):
        await Workflow("other", tasks=[task("only")]).start({"n": 1}, execution_id="order-17")
    assert scripted.tasks == ["only"]
    assert len(await im.list()) == 1


@pytest.mark.parametrize("id", ["never-started", "no/id at all", "", "a.b", "*", ">", "x" * 65])
async def test_an_unknown_execution_is_named(im: Client, id: str) -> None:
    workflow = Workflow("unknown", tasks=[task("only")])
    for call in (workflow.get_status, workflow.wait, workflow.cancel, workflow.get_metrics):
        with pytest.raises(infinity_matrix.UnknownExecution):
            await call(id)
    with pytest.raises(infinity_matrix.UnknownExecution):
        async for _ in workflow.stream_status(id):
            pass


async def test_bad_input_changes_nothing(im: Client) -> None:
    workflow = Workflow("bad-input", tasks=[task("only")])
    with pytest.raises(infinity_matrix.PayloadNotEncodable):
        await workflow.start(object())
    with pytest.raises(infinity_matrix.InvalidDefinition):
        await workflow.start(execution_id="no id")
    with pytest.raises(infinity_matrix.UnknownWorkflow):
        await im.start("never-deployed")
    assert await im.list() == []
    assert im.connection.sessions == 1


async def test_a_join_of_large_results_gets_them_whole(im: Client, scripted: Scripted) -> None:
    half = "x" * (300 * 1024)
    tasks = [task("a", result=half), task("b", result=half), task("both", "a", "b")]
    result = await Workflow("wide", tasks=tasks).execute(timeout=WAIT_S)
    assert result.status == "completed"
    assert "both" in scripted.tasks


async def test_a_deployed_workflow_starts_by_name_as_it_was_deployed_last(im: Client, scripted: Scripted) -> None:
    await Workflow("named", version="1", tasks=[task("old")]).deploy()
    await Workflow("named", version="2", tasks=[task("new")]).deploy()
    assert (await im.execute("named", timeout=WAIT_S)).outputs.keys() == {"new"}
    # A start of the object itself runs what the object says, and leaves the deployed one alone.
    older = Workflow("named", version="1", tasks=[task("old")])
    assert (await older.execute(timeout=WAIT_S)).outputs.keys() == {"old"}
    assert (await im.execute("named", timeout=WAIT_S)).outputs.keys() == {"new"}
    assert [(deployed.workflow, deployed.version) for deployed in await im.workflows()] == [("named", "2")]
