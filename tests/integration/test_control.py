"""Commands on executions, to their effect: hold, resume, cancel with a grace, retry, compensate, fork, in bulk."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from harness import World, until
from infinity_matrix import InvalidDefinition, UnknownExecution
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import UnknownTask, WorkflowPaused, WrongState
from plain import ask, connected


class Desk:
    """An agent that notes what it did, and fails or waits as the test says."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.failing: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.told = asyncio.Event()
        self.agent = Agent("desk", concurrency=64)
        self.agent.handler(self.handle)

    async def handle(self, work: Work) -> Any:
        self.done[work.task] += 1
        if work.task in self.failing:
            raise Failure("refused", f"{work.task} was refused", retryable=False)
        if work.config.get("waits"):
            await self.gate.wait()
        while work.config.get("is_stubborn"):
            # One that looks at `cancelled` has the whole grace; this one never ends by itself.
            if work.cancelled:
                self.told.set()
            await asyncio.sleep(0.01)
        return {"task": work.task, "input": work.input, "upstream": work.upstream, "config": work.config}


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def im(desk: Desk) -> AsyncIterator[Client]:
    async with infinity_matrix.local(agents=[desk.agent], sync="lazy") as client:
        yield client


def chain(name: str, *names: str, **fields: Any) -> Workflow:
    """Tasks in a row; one whose name begins with `wait` waits at the gate."""
    tasks = [
        Task(each, "desk", depends_on=list(names[number - 1 : number]) if number else [], config=config_of(each))
        for number, each in enumerate(names)
    ]
    return Workflow(name, tasks=tasks, **fields)


def config_of(task: str) -> dict[str, Any]:
    return {"waits": True} if task.startswith("wait") else {}


async def became(im: Client, execution: str, task: str | None, state: str) -> None:
    async def has_become() -> bool:
        status = await im.get_status(execution)
        return (status.state if task is None else status.tasks[task].state) == state

    await until(has_become, 10.0, f"{task or execution} becoming {state}")


async def test_a_paused_execution_takes_in_what_runs_and_begins_nothing(im: Client, desk: Desk) -> None:
    workflow = chain("held", "wait", "next", "last")
    desk.gate.clear()
    execution = await workflow.start()
    await became(im, execution, "wait", "running")
    await workflow.pause(execution)
    await workflow.pause(execution)
    assert [each.state for each in await im.list(state="paused")] == ["paused"]
    desk.gate.set()
    await became(im, execution, "wait", "completed")
    # One that is not held runs through meanwhile, with the same agent and coordinator.
    assert (await workflow.execute(timeout=10)).status == "completed"
    assert (await im.get_status(execution)).state == "paused"
    assert desk.done == {"wait": 2, "next": 1, "last": 1}
    await workflow.resume(execution)
    result = await workflow.wait(execution, timeout=10)
    assert (result.status, set(result.outputs)) == ("completed", {"wait", "next", "last"})
    for command in (workflow.pause, workflow.resume):
        with pytest.raises(WrongState, match="is completed: there is nothing to"):
            await command(execution)


async def test_a_paused_execution_can_be_cancelled(im: Client) -> None:
    workflow = Workflow("stuck", tasks=[Task("wait", wait_for="never")])
    execution = await workflow.start()
    await workflow.pause(execution)
    await workflow.cancel(execution, "enough")
    result = await workflow.wait(execution, timeout=10)
    assert (result.status, result.error and result.error["message"]) == ("cancelled", "enough")


async def test_a_cancel_has_its_own_grace_in_place_of_the_workflow_s(im: Client, desk: Desk) -> None:
    workflow = Workflow("patient", grace="10m", tasks=[Task("only", "desk", config={"is_stubborn": True})])
    execution = await workflow.start()
    await became(im, execution, "only", "running")
    began = time.monotonic()
    await workflow.cancel(execution, grace=1)
    assert (await workflow.wait(execution, timeout=10)).status == "cancelled"
    assert time.monotonic() - began < 8
    assert desk.told.is_set()
    for grace in (-1, "soon", float("nan"), "400d"):
        with pytest.raises(InvalidDefinition, match="grace"):
            await workflow.cancel(execution, grace=grace)


async def test_a_retry_keeps_what_completed_and_runs_the_rest_again(im: Client, desk: Desk) -> None:
    workflow = chain("retried", "a", "b", "c")
    desk.failing = {"b"}
    execution = (await workflow.execute(timeout=10)).execution_id
    for attempt in (2, 3):
        if attempt == 3:
            desk.failing.clear()
        await workflow.retry(execution, reason="once more")
        result = await workflow.wait(execution, timeout=10)
        assert (await im.get_status(execution)).tasks["b"].attempt == attempt
    assert result.status == "completed"
    assert desk.done == {"a": 1, "b": 3, "c": 1}
    updates = [update async for update in im.stream_status(execution)]
    assert [update.status for update in updates if update.task_id is None] == ["running", "failed"] * 2 + [
        "running", "completed",
    ]  # fmt: skip
    assert [update.attempt for update in updates if (update.task_id, update.status) == ("b", "queued")] == [1, 2, 3]
    lineage = await im.lineage(execution)
    assert [(each.kind, each.reason) for each in lineage.reopened] == [("retry", "once more")] * 2
    with pytest.raises(WrongState, match=f"execution '{execution}' is completed: only one that failed"):
        await workflow.retry(execution)
    with pytest.raises(UnknownExecution):
        await workflow.retry("never")


async def test_a_retry_waits_for_the_end_to_be_written_so_that_it_comes_after_it(world: World) -> None:
    coordinator = await world.coordinator()
    await world.agent("worker")
    workflow = Workflow("unfinished", tasks=[Task("only", "worker", config={"seconds": 1.0, "failures": 1})])
    async with world.client() as client:
        execution = await workflow.start()
        await until(lambda: world.journal.exists() and bool(world.journal.read_text()), 10.0)
        coordinator.kill()
        # Nobody is there to write its end, but whoever folds the log knows how it ended.
        await became(client, execution, None, "failed")
        retrying = asyncio.create_task(workflow.retry(execution))
        done, _ = await asyncio.wait([retrying], timeout=0.5)
        assert not done
        await world.coordinator(owns_all=True)
        await retrying
        assert (await workflow.wait(execution, timeout=20)).status == "completed"
        history = await client.operations.facts_of(execution)
        kinds = [type(fact).__name__ for _, fact in history]
        assert kinds.index("Finished") < kinds.index("Command")


async def test_what_was_cancelled_can_be_taken_up_again(im: Client, desk: Desk) -> None:
    workflow = chain("resumed", "a", "wait", "b", grace=0)
    desk.gate.clear()
    execution = await workflow.start(input=7)
    await became(im, execution, "wait", "running")
    with pytest.raises(WrongState, match="is running: it has not ended yet"):
        await workflow.retry(execution)
    await workflow.cancel(execution)
    assert (await workflow.wait(execution, timeout=10)).status == "cancelled"
    desk.gate.set()
    await workflow.retry(execution)
    result = await workflow.wait(execution, timeout=10)
    assert (result.status, result.outputs["b"]["input"]) == ("completed", 7)
    assert desk.done["a"] == 1


async def test_an_incomplete_compensation_needs_attention_until_it_is_taken_up(im: Client, desk: Desk) -> None:
    undo = Task("undo-a", "desk")
    workflow = Workflow("saga", tasks=[Task("a", "desk", compensation=undo), Task("b", "desk", depends_on=["a"])])
    desk.failing = {"b", "undo-a"}
    result = await workflow.execute(timeout=10)
    execution = result.execution_id
    assert (result.status, result.compensation) == ("failed", "incomplete")

    async def is_listed() -> bool:
        return [each.execution_id for each in await im.list(needs_attention=True)] == [execution]

    await until(is_listed, 10.0)
    desk.failing = {"b"}
    await workflow.compensate(execution)
    result = await workflow.wait(execution, timeout=10)
    assert (result.status, result.compensation, result.compensated) == ("failed", "complete", ("a",))

    async def is_over() -> bool:
        return [each.state for each in await im.list("saga")] == ["failed"]

    await until(is_over, 10.0)
    assert await im.list(needs_attention=True) == []
    with pytest.raises(WrongState, match="nothing of it is left to be undone"):
        await workflow.compensate(execution)


async def test_a_fork_does_a_task_and_what_follows_again_with_what_was_changed(im: Client, desk: Desk) -> None:
    workflow = chain("forked", "a", "b", "c")
    desk.failing = {"b"}
    origin = (await workflow.execute(input=1, timeout=10)).execution_id
    desk.failing.clear()
    forked = await workflow.fork(origin, "b", {"input": 2, "results": {"a": "given"}, "config": {"c": {"size": 9}}})
    assert forked == f"{origin}-f1"
    result = await workflow.wait(forked, timeout=10)
    assert result.status == "completed"
    assert result.outputs["a"] == "given"
    assert (result.outputs["b"]["input"], result.outputs["b"]["upstream"]) == (2, {"a": "given"})
    assert result.outputs["c"]["config"] == {"size": 9}
    assert desk.done == {"a": 1, "b": 2, "c": 1}
    # The earlier one is as it was; the changed definition is a version of its own.
    assert (await im.get_status(origin)).state == "failed"
    assert len(await im.versions("forked")) == 2
    lineage = await im.lineage(forked)
    assert (lineage.fork_of, lineage.from_task, lineage.cause) == (
        origin, "b", {"fork": {"execution": origin, "from_task": "b"}},
    )  # fmt: skip

    again = await workflow.fork(origin, "c", {"results": {"b": "made up"}})
    assert again == f"{origin}-f2"
    result = await workflow.wait(again, timeout=10)
    assert (result.outputs["b"], result.outputs["c"]["upstream"]) == ("made up", {"b": "made up"})
    whole = await workflow.fork(origin, new_id="whole")
    assert (await workflow.wait(whole, timeout=10)).outputs["a"]["input"] == 1
    assert desk.done == {"a": 2, "b": 3, "c": 3}
    assert (await im.lineage(origin)).forks == [forked, again]


async def test_a_fork_does_again_what_was_undone(im: Client, desk: Desk) -> None:
    booked = Task("book", "desk", compensation=Task("unbook", "desk"))
    tasks = [booked, Task("pay", "desk", depends_on=["book"]), Task("other", "desk")]
    workflow = Workflow("trip", tasks=tasks)
    desk.failing = {"pay"}
    result = await workflow.execute(timeout=10)
    assert result.compensated == ("book",)
    done_other = desk.done["other"]
    desk.failing.clear()
    forked = await workflow.fork(result.execution_id, "pay")
    assert (await workflow.wait(forked, timeout=10)).status == "completed"
    assert desk.done["book"] == 2
    assert desk.done["other"] == done_other


async def test_large_results_are_brought_along(im: Client, desk: Desk) -> None:
    workflow = chain("large", "a", "b")
    text = "x" * 200_000
    origin = (await workflow.execute(input=text, timeout=20)).execution_id
    forked = await workflow.fork(origin, "b", {"results": {"a": [text, text]}, "input": None})
    result = await workflow.wait(forked, timeout=20)
    assert result.outputs["b"]["upstream"] == {"a": [text, text]}
    assert desk.done == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("from_task", "changes", "error", "message"),
    [
        ("z", None, UnknownTask, "has no task 'z' for this; it has: a, b"),
        ("a", {"result": {}}, InvalidDefinition, "changes: there is no 'result' .did you mean 'results'"),
        ("a", {"results": {"b": 1}}, InvalidDefinition, "the task 'b' is done again"),
        ("b", {"results": {"z": 1}}, UnknownTask, "'z'"),
        ("b", {"config": {"z": {}}}, UnknownTask, "'z'"),
        ("b", {"config": {"b": 7}}, InvalidDefinition, "changes.config: it is no object of objects"),
        ("b", {"config": {"b": {"x": object()}}}, InvalidDefinition, "changes.config.b.x: an object of type object"),
        ("b", [], InvalidDefinition, "changes: it is no object"),
    ],
)
async def test_a_fork_that_cannot_be_is_refused(
    im: Client, from_task: str, changes: Any, error: type[Exception], message: str
) -> None:
    workflow = chain("refused", "a", "b")
    execution = (await workflow.execute(timeout=10)).execution_id
    with pytest.raises(error, match=message):
        await workflow.fork(execution, from_task, changes)
    assert len(await im.list()) == 1


async def test_a_fork_of_a_paused_workflow_or_of_nothing_is_refused(im: Client) -> None:
    workflow = chain("refused", "a")
    execution = (await workflow.execute(timeout=10)).execution_id
    with pytest.raises(UnknownExecution):
        await workflow.fork("never", "a")
    await im.pause_workflow("refused")
    with pytest.raises(WorkflowPaused):
        await workflow.fork(execution, "a")


async def test_pausing_a_workflow_with_what_runs_holds_that_too(im: Client, desk: Desk) -> None:
    workflow = chain("busy", "wait", "next")
    desk.gate.clear()
    executions = {await workflow.start() for _ in range(5)}
    for execution in executions:
        await became(im, execution, "wait", "running")
    asked = await im.pause_workflow("busy", running=True)
    assert {each.execution_id for each in asked if each.problem is None} == executions
    desk.gate.set()
    for execution in executions:
        await became(im, execution, "wait", "completed")
    assert {each.execution_id for each in await im.list("busy", "paused")} == executions
    assert desk.done["next"] == 0
    await im.resume_workflow("busy", running=True)
    for execution in executions:
        assert (await workflow.wait(execution, timeout=10)).status == "completed"


async def test_a_bulk_command_is_given_to_those_it_has_a_meaning_for(im: Client, desk: Desk) -> None:
    workflow = chain("bulk", "a", "b")
    other = chain("other", "a", "b")
    good = (await workflow.execute(timeout=10)).execution_id
    desk.failing = {"b"}
    failed = {(await workflow.execute(timeout=10)).execution_id for _ in range(3)}
    left = (await other.execute(timeout=10)).execution_id
    desk.failing.clear()

    async def all_listed() -> bool:
        return len(await im.list(state="failed")) == 4

    await until(all_listed, 10.0)
    dry = await im.bulk("retry", workflow="bulk", dry_run=True)
    assert {each.execution_id for each in dry} == failed
    assert await im.bulk("retry", workflow="bulk", older_than="1h") == []
    assert len(await im.list(state="failed")) == 4
    asked = await im.bulk("retry", workflow="bulk", reason="mended")
    assert {(each.execution_id, each.problem) for each in asked} == {(each, None) for each in failed}
    for execution in failed:
        assert (await workflow.wait(execution, timeout=10)).status == "completed"
    assert (await im.get_status(left)).state == "failed"
    assert good not in {each.execution_id for each in asked}
    with pytest.raises(InvalidDefinition, match="command: 'stop' is none"):
        await im.bulk("stop")
    with pytest.raises(InvalidDefinition, match="state: 'done' is none"):
        await im.bulk("cancel", state="done")


async def test_all_commands_by_json_alone(im: Client, desk: Desk) -> None:
    workflow = chain("by-json", "a", "wait", "b", grace=0)
    await workflow.deploy()
    desk.gate.clear()
    async with connected(im.url) as plain:
        execution = (await ask(plain, "start", workflow="by-json", input=1))["ok"]["execution"]
        await became(im, execution, "wait", "running")
        assert await ask(plain, "pause", execution=execution) == {"ok": {"execution": execution}}
        await became(im, execution, None, "paused")
        assert await ask(plain, "resume", execution=execution) == {"ok": {"execution": execution}}
        assert await ask(plain, "cancel", execution=execution, grace=0) == {"ok": {"execution": execution}}
        await became(im, execution, None, "cancelled")
        desk.gate.set()
        assert await ask(plain, "retry", execution=execution) == {"ok": {"execution": execution}}
        assert (await im.wait(execution, timeout=10)).status == "completed"
        forked = (await ask(plain, "fork", execution=execution, from_task="b", changes={"input": 5}))["ok"]
        assert forked == {"execution": f"{execution}-f1"}
        assert (await im.wait(forked["execution"], timeout=10)).outputs["b"]["input"] == 5
        assert (await ask(plain, "lineage", execution=execution))["ok"]["forks"] == [f"{execution}-f1"]
        asked = (await ask(plain, "bulk", command="cancel", workflow="by-json", dry_run=True))["ok"]
        assert asked == []
        for verb, body, kind in (
            ("retry", {"execution": execution}, "WrongState"),
            ("pause", {"execution": "never"}, "UnknownExecution"),
            ("compensate", {}, "BadRequest"),
            ("cancel", {"execution": execution, "grace": "1"}, "BadRequest"),
            ("cancel", {"execution": execution, "grace": -1}, "InvalidDefinition"),
            ("fork", {"execution": execution, "from_task": "z"}, "UnknownTask"),
            ("fork", {"execution": execution, "changes": 7}, "InvalidDefinition"),
            ("bulk", {"command": "stop", "all": True}, "InvalidDefinition"),
            ("bulk", {"command": "cancel"}, "BadRequest"),
            ("bulk", {"command": "cancel", "workfow": "by-json"}, "BadRequest"),
            ("purge", {}, "BadRequest"),
            ("purge", {"execution": "order-17"}, "BadRequest"),
            ("cancel", {"execution": "order-17", "reason": 7}, "BadRequest"),
            ("list", {"started_after": 10**400}, "BadRequest"),
            ("history", {"execution": "*"}, "UnknownExecution"),
            ("history", {"execution": "nobody"}, "UnknownExecution"),
            ("bulk", {"command": "cancel", "dry_run": "yes"}, "BadRequest"),
            ("list", {"state": "done"}, "BadRequest"),
            ("list", {"limit": 0}, "BadRequest"),
        ):
            assert (await ask(plain, verb, **body))["error"]["type"] == kind, (verb, body)
