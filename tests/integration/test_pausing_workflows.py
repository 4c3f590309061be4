"""A workflow that is paused: nothing starts it, by whatever way, until it is resumed."""

from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Trigger, Workflow
from infinity_matrix_actors.errors import InvalidName, UnknownVersion, WorkflowPaused
from plain import ask, connected


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("echo")

    @agent.handler
    async def handle(work: Work) -> Any:
        return work.input

    async with infinity_matrix.local(agents=[agent], sync="lazy") as client:
        yield client


def orders(version: str = "1", **config: Any) -> Workflow:
    tasks = [Task("only", "echo", config=config)]
    return Workflow("orders", version, triggers=[Trigger("orders.created")], tasks=tasks)


async def test_a_paused_workflow_is_started_by_nobody(im: Client) -> None:
    workflow = orders()
    await workflow.deploy()
    await im.pause_workflow("orders")
    for start in (workflow.start, workflow.execute, lambda: im.start("orders"), lambda: im.execute("orders")):
        with pytest.raises(WorkflowPaused, match=r"the workflow 'orders' is paused.*imx workflows resume orders"):
            await start()
    async with connected(im.url) as plain:
        assert (await ask(plain, "start", workflow="orders"))["error"]["type"] == "WorkflowPaused"
    # A new version of it is as paused as the one before.
    await orders("2").deploy()
    with pytest.raises(WorkflowPaused):
        await im.start("orders")
    assert await im.list() == []


async def test_an_event_starts_a_workflow_only_while_it_is_not_paused(im: Client) -> None:
    await orders().deploy()
    await im.trigger("orders.created", 1)

    async def count() -> int:
        return len(await im.list("orders", "completed"))

    async def has_one() -> bool:
        return await count() == 1

    await until(has_one, 10.0)
    other = Workflow("other", triggers=[Trigger("orders.created")], tasks=[Task("only", "echo")])
    await other.deploy()
    await im.pause_workflow("orders")
    for number in (2, 3):
        await im.trigger("orders.created", number)

    async def others_ran() -> bool:
        return len(await im.list("other", "completed")) == 2

    # An event is given to all workflows at once: by now both were kept from this one.
    await until(others_ran, 10.0)
    await im.resume_workflow("orders")
    await im.trigger("orders.created", 4)

    async def has_two() -> bool:
        return await count() == 2

    await until(has_two, 10.0)
    results = {(await im.wait(each.execution_id)).outputs["only"] for each in await im.list("orders")}
    assert results == {1, 4}


async def test_a_child_of_a_paused_workflow_begins_when_that_is_resumed(im: Client) -> None:
    await orders().deploy()
    await Workflow("other", tasks=[Task("only", "echo")]).deploy()
    await im.pause_workflow("orders")
    parents = Workflow("parents", tasks=[Task("call", workflow="orders", input={"n": 1})])
    held, cancelled = await parents.start(), await parents.start()
    others = Workflow("others", tasks=[Task("call", workflow="other", input={"n": 2})])
    assert (await others.execute(timeout=10.0)).status == "completed"
    await im.cancel(cancelled, grace=0)
    assert (await im.wait(cancelled, timeout=10.0)).status == "cancelled"
    # Its child was never begun: it had been cancelled before.
    assert [child.state for child in await im.list("orders")] == ["cancelled"]
    assert (await im.get_status(held)).state == "running"
    await im.resume_workflow("orders")
    assert (await im.wait(held, timeout=10.0)).outputs == {"call": {"only": {"n": 1}}}
    assert sorted(child.state for child in await im.list("orders")) == ["cancelled", "completed"]


async def test_a_workflow_that_is_not_there_cannot_be_paused(im: Client) -> None:
    with pytest.raises(infinity_matrix.UnknownWorkflow):
        await im.pause_workflow("never")
    with pytest.raises(InvalidName):
        await im.resume_workflow("*")


async def test_versions_are_listed_with_what_runs_on_each_and_compared(im: Client) -> None:
    waiting = Task("wait", wait_for="go")
    first = Workflow("staged", "1", tasks=[waiting])
    second = Workflow("staged", "2", tasks=[waiting, Task("more", "echo", depends_on=["wait"])])
    await first.deploy()
    old = [await first.start() for _ in range(2)]
    await second.deploy()
    new = await second.start()
    listed = await im.versions("staged")
    assert [(each.version, each.is_deployed, each.open) for each in listed] == [("2", True, 1), ("1", False, 2)]
    assert [each.definition for each in listed] == [second.definition().digest(), first.definition().digest()]
    for execution in (*old, new):
        await im.signal(execution, "go")
    # Each goes on with the definition it was started with.
    assert [set((await im.wait(execution)).outputs) for execution in (*old, new)] == [
        {"wait"}, {"wait"}, {"wait", "more"},
    ]  # fmt: skip
    assert [each.open for each in await im.versions("staged")] == [0, 0]

    hash_start = first.definition().digest()[:10]
    for before, after in (("1", "2"), (hash_start, "deployed")):
        assert [each.path for each in await im.diff("staged", before, after)] == ["tasks.more", "version"]
    with pytest.raises(UnknownVersion, match="'3' names no one version of 'staged'; there are: 1 "):
        await im.diff("staged", "1", "3")
    with pytest.raises(infinity_matrix.UnknownWorkflow):
        await im.versions("never")


async def test_versions_and_their_differences_by_json_alone(im: Client) -> None:
    await orders("1", n=1).deploy()
    await orders("2", n=2).deploy()
    async with connected(im.url) as plain:
        listed = (await ask(plain, "workflow.versions", workflow="orders"))["ok"]
        assert [(each["version"], each["is_deployed"], each["is_armed"]) for each in listed] == [
            ("2", True, True), ("1", False, False),
        ]  # fmt: skip
        assert (await ask(plain, "workflow.diff", workflow="orders", before="1", after="deployed"))["ok"] == [
            {"path": "tasks.only.config.n", "before": 1, "after": 2},
            {"path": "version", "before": "1", "after": "2"},
        ]
        reply = await ask(plain, "workflow.diff", workflow="orders", before="1", after="9")
        assert reply["error"]["type"] == "UnknownVersion"
        assert (await ask(plain, "workflow.pause", workflow="orders")) == {"ok": []}
        assert (await ask(plain, "workflow.versions", workflow="orders"))["ok"][0]["is_paused"] is True
