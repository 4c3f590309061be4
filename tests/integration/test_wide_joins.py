"""Joins so wide that their work fits no message: it is stored in part, given out once, and arrives whole."""

import asyncio
from collections.abc import AsyncIterator

import infinity_matrix
import pytest
from harness import World
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.artifacts import is_reference
from large_values import giver, taker, text

WAIT_S = 30.0


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    """A whole system in this process, without agents."""
    async with infinity_matrix.local(sync="lazy") as client:
        yield client


@pytest.mark.parametrize(
    ("count", "size_bytes"),
    [(5, 200_000), (60, 20_000)],
    ids=["a few of them are stored one by one", "of many the whole map is"],
)
async def test_a_wide_join_gets_what_no_message_holds(im: Client, count: int, size_bytes: int) -> None:
    results = {f"part-{number}": text(size_bytes) for number in range(count)}
    agent, works = taker("takes")
    await im.serve([giver("gives", results), agent])
    tasks = [Task(id, "gives") for id in results]
    result = await Workflow("wide", tasks=[*tasks, Task("join", "takes", depends_on=list(results))]).execute(
        timeout=WAIT_S
    )
    assert result.outputs["join"] == "taken"
    assert works[0].upstream == results
    assert is_reference(works[0].record["upstream"]) == (count > 16)


async def test_two_owners_of_a_shard_give_a_wide_join_out_once(world: World) -> None:
    await asyncio.gather(*(world.coordinator(owns_all=True) for _ in range(2)))
    results = {f"part-{number}": text(150_000) for number in range(5)}
    agent, works = taker("takes")
    tasks = [Task(id, "gives") for id in results]
    workflow = Workflow("wide", tasks=[*tasks, Task("join", "takes", depends_on=list(results))])
    async with world.client() as client:
        await client.serve([giver("gives", results), agent])
        ended = await asyncio.gather(*(workflow.execute(timeout=WAIT_S) for _ in range(10)))
    assert [result.status for result in ended] == ["completed"] * 10
    assert len(works) == 10
    assert all(work.upstream == results for work in works)


async def test_a_child_is_given_and_gives_what_no_message_holds(im: Client) -> None:
    results = {f"part-{number}": text(200_000) for number in range(4)}
    inner, inner_works = taker("takes-inside")
    outer, outer_works = taker("takes")
    await im.serve([giver("gives", results), inner, outer])
    inside = [*(Task(id, "gives") for id in results), Task("look", "takes-inside")]
    await Workflow("inner", tasks=inside).deploy()
    tasks = [Task("child", workflow="inner", input="input"), Task("after", "takes", depends_on=["child"])]
    large = {"text": text(900_000)}
    result = await Workflow("outer", tasks=tasks).execute(large, timeout=WAIT_S)
    assert result.error is None
    assert inner_works[0].input == large
    assert outer_works[0].upstream == {"child": {**results, "look": "taken"}}
    assert result.outputs["child"] == {**results, "look": "taken"}


async def test_the_large_results_of_a_map_arrive_as_a_list(im: Client) -> None:
    parts = [text(300_000 if number % 2 else 90_000) for number in range(10)]
    mapper, agent_works = Agent("maps"), taker("takes")
    agent, works = agent_works

    @mapper.handler
    async def give(work: Work) -> str:
        assert work.item == work.index
        return parts[work.item]

    await im.serve([giver("gives", {"list": list(range(10))}), mapper, agent])
    tasks = [
        Task("list", "gives"),
        Task("each", "maps", for_each="list.result", depends_on=["list"]),
        Task("join", "takes", depends_on=["each"]),
    ]
    result = await Workflow("mapped", tasks=tasks).execute(timeout=WAIT_S)
    assert result.error is None
    assert works[0].upstream == {"each": parts}
    assert result.outputs["each"] == parts
