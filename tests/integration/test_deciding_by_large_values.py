"""What decides by a value too large for a message sees the value: conditions, items of maps, templates."""

import os
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow

WAIT_S = 30.0
PADDING = os.urandom(200_000).hex()
LARGE = {"rows": 7, "names": ["a", "b", "c"], "padding": PADDING}


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    """A whole system in this process, with an agent that gives `LARGE` and one that gives its work back."""
    gives, echoes = Agent("gives"), Agent("echoes")

    @gives.handler
    async def give(work: Work) -> Any:
        return LARGE

    @echoes.handler
    async def echo(work: Work) -> Any:
        return {"config": work.config, "item": work.item}

    async with infinity_matrix.local(agents=[gives, echoes], sync="lazy") as client:
        yield client


async def completed(workflow: Workflow, input: Any = None) -> dict[str, Any]:
    result = await workflow.execute(input, timeout=WAIT_S)
    assert result.error is None, result.error
    return result.outputs


async def test_a_condition_sees_a_large_result(im: Client) -> None:
    tasks = [
        Task("big", "gives"),
        Task("yes", "echoes", depends_on=["big"], condition="big.result.rows == 7"),
        Task("no", "echoes", depends_on=["big"], condition="big.result.rows > 7"),
    ]
    workflow = Workflow("conditions", tasks=tasks)
    result = await workflow.execute(timeout=WAIT_S)
    assert result.outputs.keys() == {"big", "yes"}
    assert result.outputs["big"] == LARGE
    # Who folds the log alone comes to the same.
    status = await im.get_status(result.execution_id)
    assert {name: task.state for name, task in status.tasks.items()} == {
        "big": "completed",
        "yes": "completed",
        "no": "skipped",
    }


async def test_a_condition_sees_a_large_input(im: Client) -> None:
    tasks = [Task("yes", "echoes", condition="input.rows == 7"), Task("no", "echoes", condition="input.rows > 7")]
    assert (await completed(Workflow("inputs", tasks=tasks), LARGE)).keys() == {"yes"}


async def test_a_map_takes_its_items_from_a_large_result(im: Client) -> None:
    tasks = [Task("big", "gives"), Task("each", "echoes", for_each="big.result.names", depends_on=["big"])]
    outputs = await completed(Workflow("items", tasks=tasks))
    assert [result["item"] for result in outputs["each"]] == ["a", "b", "c"]


async def test_a_template_is_filled_from_a_large_result(im: Client) -> None:
    tasks = [
        Task("big", "gives"),
        Task("filled", "echoes", depends_on=["big"], config={"count": "${{ big.result.rows }}"}),
    ]
    assert (await completed(Workflow("templates", tasks=tasks)))["filled"]["config"] == {"count": 7}


async def test_a_condition_sees_a_large_result_of_a_child(im: Client) -> None:
    await Workflow("inner", tasks=[Task("big", "gives")]).deploy()
    tasks = [
        Task("child", workflow="inner"),
        Task("yes", "echoes", depends_on=["child"], condition="child.result.big.rows == 7"),
    ]
    assert (await completed(Workflow("children", tasks=tasks))).keys() == {"child", "yes"}
