"""Forks that must not be: of what will be undone, past the checks of a definition, and one in the place of another."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix import ExecutionExists, InvalidDefinition
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow


class Desk:
    """An agent that fails and holds as its task's config says, and notes what it began."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.gate = asyncio.Event()
        self.agent = Agent("desk", concurrency=64)
        self.agent.handler(self.handle)

    async def handle(self, work: Work) -> Any:
        self.begun.append((work.execution, work.task))
        if work.config.get("holds"):
            await self.gate.wait()
        if work.config.get("fails"):
            raise Failure("refused", work.task, retryable=False)
        return work.task


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def im(desk: Desk) -> AsyncIterator[Client]:
    async with infinity_matrix.local(agents=[desk.agent], sync="lazy") as client:
        yield client
        desk.gate.set()


async def test_what_is_to_be_undone_is_done_again_by_a_fork(im: Client, desk: Desk) -> None:
    undo = {name: Task(f"undo-{name}", "desk", config={"holds": True}) for name in ("a", "b")}
    tasks = [
        Task("a", "desk", compensation=undo["a"]),
        Task("free", "desk"),
        Task("b", "desk", depends_on=["a"], compensation=undo["b"]),
        Task("pay", "desk", depends_on=["b", "free"], config={"fails": True}),
    ]
    execution = await Workflow("trip", tasks=tasks).start()
    await until(lambda: (execution, "undo-b") in desk.begun, 10.0, "the compensation of b")
    fork = await im.fork(execution, from_task="pay", changes={"config": {"pay": {"fails": False}}})
    assert (await im.wait(fork, timeout=10.0)).status == "completed"
    assert sorted(task for of, task in desk.begun if of == fork) == ["a", "b", "pay"]
    desk.gate.set()
    assert (await im.wait(execution, timeout=10.0)).compensated == ("b", "a")


@pytest.mark.parametrize(
    "config",
    [{"a": {"result": "${{ b.result }}"}}, {"b": {"text": "${{ input."}}, {"b": {"count": "many"}}],
)
async def test_a_changed_config_is_checked_like_one_that_is_defined(im: Client, config: dict[str, Any]) -> None:
    schema = {"properties": {"count": {"type": "integer"}}}
    workflow = Workflow("two", tasks=[Task("a", "desk"), Task("b", "desk", depends_on=["a"], config_schema=schema)])
    result = await workflow.execute(timeout=10.0)
    with pytest.raises(InvalidDefinition):
        await im.fork(result.execution_id, from_task="a", changes={"config": config})
    assert len(await im.list()) == 1


async def test_each_fork_is_one_of_its_own_and_the_same_again_is_answered(im: Client) -> None:
    workflow = Workflow("three", tasks=[Task("a", "desk"), Task("b", "desk", depends_on=["a"])])
    origin = (await workflow.execute(timeout=10.0)).execution_id
    forks = [
        {"from_task": "a"},
        {"from_task": "b"},
        {"from_task": "b", "changes": {"results": {"a": 7}}},
    ]
    ids = await asyncio.gather(*(im.fork(origin, **fork) for fork in forks))
    assert len(set(ids)) == 3
    results = [await im.wait(id, timeout=10.0) for id in ids]
    assert [result.outputs["a"] for result in results] == ["a", "a", 7]
    assert (
        await im.fork(origin, **forks[2], new_id="mine") == await im.fork(origin, **forks[2], new_id="mine") == "mine"
    )
    for other in (forks[1], forks[0]):
        with pytest.raises(ExecutionExists):
            await im.fork(origin, **other, new_id="mine")
    with pytest.raises(ExecutionExists):
        await im.fork(origin, from_task="a", new_id=origin)
