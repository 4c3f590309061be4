"""Starting an id that is there: it is never started twice, and its further runs are found under it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from infinity_matrix import ExecutionExists, InvalidDefinition, InvalidInput, PayloadNotEncodable
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from plain import ask, connected

WORKFLOW = Workflow("sums", grace=0, tasks=[Task("only", "adder")])
WAIT = Task("wait", wait_for="go")
WAITING = Workflow("waits", grace=0, tasks=[WAIT])


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("adder")

    @agent.handler
    async def handle(work: Work) -> Any:
        if work.input < 0:
            raise Failure("negative", "that is no count", retryable=False)
        return work.input

    async with infinity_matrix.local(agents=[agent], sync="lazy") as client:
        yield client


async def test_by_default_the_same_again_is_answered_and_other_content_refused(im: Client) -> None:
    assert await WORKFLOW.start(1, "a") == await WORKFLOW.start(1, "a") == "a"
    with pytest.raises(ExecutionExists):
        await WORKFLOW.start(2, "a")
    with pytest.raises(ExecutionExists):
        await WORKFLOW.start(2, "a", if_exists="reject")


async def test_return_answers_what_is_there_whatever_its_content(im: Client) -> None:
    assert await WORKFLOW.start(1, "a", if_exists="return") == "a"
    assert await WORKFLOW.start(2, "a", if_exists="return") == "a"
    result = await WORKFLOW.execute(3, "a", if_exists="return")
    assert (result.execution_id, result.outputs) == ("a", {"only": 1})
    assert len(await im.list()) == 1


async def test_cancel_ends_what_is_open_and_starts_the_next_run(im: Client) -> None:
    assert await WAITING.start(1, "a", if_exists="cancel") == "a"
    assert await WAITING.start(1, "a", if_exists="cancel") == "a-r2"
    assert await WAITING.start(2, "a", if_exists="cancel") == "a-r3"
    await im.signal("a-r3", "go", "done")
    # Who waits for the first id hears of the last run; each run has its own status.
    result = await WAITING.wait("a", timeout=10)
    assert (result.execution_id, result.status, result.outputs) == ("a-r3", "completed", {"wait": "done"})
    states = {each.execution_id: (each.state, each.cause) for each in await im.list()}
    assert states == {
        "a": ("cancelled", {}),
        "a-r2": ("cancelled", {"rerun_of": "a", "run": 2}),
        "a-r3": ("completed", {"rerun_of": "a", "run": 3}),
    }
    status = await im.get_status("a")
    assert (status.state, status.latest_run) == ("cancelled", "a-r3")
    assert (await im.get_status("a-r3")).latest_run is None
    assert [await im.latest_run(id) for id in ("a", "a-r2", "a-r3")] == ["a-r3"] * 3
    # One that has ended has nothing to be cancelled.
    assert await WAITING.start(2, "a", if_exists="cancel") == "a-r4"


@pytest.mark.parametrize(
    ("workflow", "input", "id", "error"),
    [
        (Workflow("waits", grace=0, tasks=[WAIT], input_schema={"type": "integer"}), "x", "a", InvalidInput),
        (WAITING, 1, "a" * 62, InvalidDefinition),
        (WAITING, object(), "a", PayloadNotEncodable),
    ],
)
async def test_what_runs_is_not_cancelled_for_a_start_that_is_refused(
    im: Client, workflow: Workflow, input: Any, id: str, error: type[Exception]
) -> None:
    await WAITING.start(1, id)
    with pytest.raises(error):
        await workflow.start(input, id, if_exists="cancel")
    await im.signal(id, "go", "done")
    assert (await im.wait(id, timeout=10)).status == "completed"


@pytest.mark.parametrize("policy", ["return", "cancel"])
async def test_whoever_is_second_on_a_fresh_id_is_answered_as_the_policy_says(im: Client, policy: str) -> None:
    for number in range(5):
        starts = (WAITING.start(input, f"id-{number}", if_exists=policy) for input in range(6))
        runs = await asyncio.gather(*starts)
        assert len(set(runs)) == (1 if policy == "return" else 6), runs


async def test_what_failed_may_be_run_again_and_what_did_not_may_not(im: Client) -> None:
    assert (await WORKFLOW.execute(-1, "a", if_exists="rerun_failed")).status == "failed"
    assert (await WORKFLOW.execute(-1, "a", if_exists="rerun_failed")).execution_id == "a-r2"
    third = await WORKFLOW.execute(3, "a", if_exists="rerun_failed")
    assert (third.execution_id, third.outputs) == ("a-r3", {"only": 3})
    assert (await WORKFLOW.wait("a")).execution_id == "a-r3"
    assert await WORKFLOW.start(3, "a", if_exists="rerun_failed") == "a-r3"
    with pytest.raises(ExecutionExists):
        await WORKFLOW.start(4, "a", if_exists="rerun_failed")
    assert len(await im.list()) == 3


async def test_many_who_start_the_same_run_at_once_start_one(im: Client) -> None:
    await WORKFLOW.execute(-1, "a")
    ids = await asyncio.gather(*(WORKFLOW.start(5, "a", if_exists="rerun_failed") for _ in range(20)))
    assert set(ids) == {"a-r2"}
    await WORKFLOW.execute(-1, "b")
    ids = await asyncio.gather(*(WAITING.start(n, "b", if_exists="cancel") for n in range(3)))
    assert len(set(ids)) == 3
    assert await WAITING.start(9, "b", if_exists="return") == max(ids)


async def test_an_execution_that_only_has_the_name_of_a_run_is_passed_over(im: Client) -> None:
    await WORKFLOW.execute(-1, "a")
    await WORKFLOW.execute(7, "a-r2")
    assert await im.latest_run("a") == "a"
    assert await WORKFLOW.start(1, "a", if_exists="rerun_failed") == "a-r3"
    assert await im.latest_run("a") == "a-r3"
    assert await im.latest_run("a-r2") == "a-r2"
    assert (await WORKFLOW.wait("a")).outputs == {"only": 1}


async def test_a_word_that_is_no_policy_is_told_with_those_that_are(im: Client) -> None:
    with pytest.raises(InvalidDefinition, match=r"if_exists: 'rerun' is none .*one of reject, return, cancel, rerun_f"):
        await WORKFLOW.start(1, "a", if_exists="rerun")
    with pytest.raises(InvalidDefinition, match=r"priority: 'urgent' is none .*one of high, normal, low"):
        await WORKFLOW.start(1, "a", priority="urgent")
    with pytest.raises(InvalidDefinition, match="execution id"):
        await WORKFLOW.execute(-1, "x" * 63)
        await WORKFLOW.start(-1, "x" * 63, if_exists="rerun_failed")
    assert [each.execution_id for each in await im.list()] == ["x" * 63]


async def test_runs_and_priority_by_json_alone(im: Client) -> None:
    await WORKFLOW.deploy()
    await WORKFLOW.execute(-1, "a")
    async with connected(im.url) as plain:
        body = {"workflow": "sums", "input": 1, "execution": "a", "if_exists": "rerun_failed", "priority": "high"}
        assert await ask(plain, "start", **body) == {"ok": {"execution": "a-r2"}}
        await im.wait("a-r2")
        listed = (await ask(plain, "list", workflow="sums"))["ok"]
        assert [(each["execution_id"], each["priority"]) for each in listed] == [("a-r2", "high"), ("a", "normal")]
        lineage = (await ask(plain, "lineage", execution="a-r2"))["ok"]
        assert (lineage["rerun_of"], lineage["run"], lineage["latest_run"]) == ("a", 2, "a-r2")
        assert (await ask(plain, "lineage", execution="a"))["ok"]["latest_run"] == "a-r2"
        reply = await ask(plain, "start", workflow="sums", execution="a", if_exists="maybe")
        assert reply["error"]["type"] == "InvalidDefinition"
