"""Approvals to their effect: what waits is listed, the first decision counts, deadlines decide, assignees are told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix import PayloadTooLarge
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import NotAnAssignee, UnknownTask, WrongState
from plain import ask, connected


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("echo")

    @agent.handler
    async def handle(work: Work) -> Any:
        return work.upstream or work.input

    async with infinity_matrix.local(agents=[agent], sync="lazy") as client:
        yield client


def asking(name: str = "release", **approval: Any) -> Workflow:
    tasks = [
        Task("build", "echo"),
        Task("ok", depends_on=["build"], approval=approval),
        Task("publish", "echo", depends_on=["ok"]),
    ]
    return Workflow(name, tasks=tasks)


async def asked(im: Client, count: int = 1) -> list[Any]:
    """What waits for a decision, once that is so much."""
    found: list[Any] = []

    async def is_asked() -> bool:
        found[:] = await im.approvals()
        return len(found) == count

    await until(is_asked, 10.0, f"{count} approvals being asked for")
    return found


async def test_what_waits_is_listed_and_a_decision_goes_on_with_its_data(im: Client) -> None:
    workflow = asking(assignees=["ada", "grace"], deadline="1h")
    # Without an approval, and one that has ended: neither is asked about.
    await Workflow("plain", tasks=[Task("wait", wait_for="go")]).start()
    execution = await workflow.start(input={"build": 7})
    (found,) = await asked(im)
    assert (found.execution_id, found.workflow, found.task_id) == (execution, "release", "ok")
    assert found.assignees == ("ada", "grace")
    assert found.upstream == {"build": {"build": 7}}
    assert found.due_at == pytest.approx(found.asked_at + 3600, abs=1)
    assert await im.approvals("other") == []
    await im.approve(execution, "ok", by="ada", comment="fine", data={"channel": "beta"})
    result = await workflow.wait(execution, timeout=10)
    decision = {"decision": "approved", "by": "ada", "comment": "fine", "data": {"channel": "beta"}}
    assert result.outputs == {"build": {"build": 7}, "ok": decision, "publish": {"ok": decision}}
    assert await im.approvals() == []


async def test_a_rejection_fails_the_task_or_is_its_result(im: Client) -> None:
    strict, lenient = asking("strict"), asking("lenient", on_reject="complete")
    executions = [await workflow.start() for workflow in (strict, lenient)]
    await asked(im, 2)
    for execution in executions:
        await im.reject(execution, by="ada", comment="no")
    result = await strict.wait(executions[0], timeout=10)
    assert result.error == {"type": "rejected", "message": "rejected by ada: no", "retryable": False, "task": "ok"}
    result = await lenient.wait(executions[1], timeout=10)
    assert (result.status, result.outputs["ok"]["decision"]) == ("completed", "rejected")


async def test_only_an_assignee_decides_and_those_escalated_to_after_the_deadline(im: Client) -> None:
    workflow = asking(assignees=["ada"], deadline="300ms", on_deadline="escalate", escalate_to=["grace"])
    execution = await workflow.start()

    async def is_escalated() -> bool:
        return [each.assignees for each in await im.approvals()] == [("grace",)]

    patient = asking("patient", assignees=["ada"])
    other = await patient.start()
    await asked(im, 2)
    with pytest.raises(NotAnAssignee, match="bob may not decide 'ok'; it is up to: ada"):
        await im.approve(other, by="bob")
    with pytest.raises(NotAnAssignee, match="nobody named may not"):
        await im.reject(other)
    await im.approve(other, by="ada")
    await until(is_escalated, 10.0)
    await im.approve(execution, by="grace")
    assert (await workflow.wait(execution, timeout=10)).outputs["ok"]["by"] == "grace"


async def test_the_first_decision_counts_and_a_later_one_is_refused(im: Client) -> None:
    workflow = asking()
    execution = await workflow.start()
    await asked(im)
    decisions = (im.approve(execution, "ok", by="ada"), im.reject(execution, "ok", by="bob"))
    answers = await asyncio.gather(*decisions, return_exceptions=True)
    result = await workflow.wait(execution, timeout=10)
    is_approved = result.status == "completed"
    assert is_approved == ((await im.get_status(execution)).tasks["ok"].error is None)
    # Who came second is told so.
    assert answers[0 if is_approved else 1] is None
    assert isinstance(answers[1 if is_approved else 0], WrongState)
    with pytest.raises(WrongState, match=r"task 'ok' is (completed|failed): it waits for no decision"):
        await im.approve(execution, "ok")


async def test_a_decision_about_nothing_is_refused_with_what_there_is(im: Client) -> None:
    twice = Workflow("twice", tasks=[Task("one", approval={}), Task("two", approval={}), Task("w", wait_for="go")])
    execution = await twice.start()
    await asked(im, 2)
    with pytest.raises(WrongState, match="it waits for one, two: say which"):
        await im.approve(execution)
    for task in ("w", "three"):
        with pytest.raises(UnknownTask, match=f"has no task '{task}' for this; it has: one, two"):
            await im.approve(execution, task)
    with pytest.raises(infinity_matrix.UnknownExecution):
        await im.approve("never", "one")
    with pytest.raises(PayloadTooLarge, match="the decision is"):
        await im.approve(execution, "one", data="x" * 300_000)
    await im.approve(execution, "one")
    await asked(im, 1)
    await im.approve(execution)
    await asked(im, 0)


async def test_approvals_by_json_alone(im: Client) -> None:
    workflow = asking(assignees=["ada"])
    execution = await workflow.start(input=1)
    await asked(im)
    async with connected(im.url) as plain:
        (found,) = (await ask(plain, "approvals"))["ok"]
        assert (found["execution_id"], found["task_id"], found["assignees"]) == (execution, "ok", ["ada"])
        assert (await ask(plain, "approve", execution=execution, by="bob"))["error"]["type"] == "NotAnAssignee"
        reply = await ask(plain, "approve", execution=execution, task="ok", by="ada", data=[1])
        assert reply == {"ok": {"execution": execution, "task": "ok"}}
        assert (await im.wait(execution, timeout=10)).outputs["ok"]["data"] == [1]
        assert (await ask(plain, "reject", execution=execution))["error"]["type"] == "WrongState"
