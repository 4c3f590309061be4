"""Executions that go on after a failure, on a real system: the order to stop that a failure sent stops nothing new."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_coordinator.views import ExecutionResult

TIMEOUT_S = 30.0
#: At once: orders and new works meet in the agent's socket in every order.
TIMES = 10


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("shaky", concurrency=100)

    @agent.handler
    async def handle(work: Work) -> str:
        if work.attempt <= work.config.get("fails", 0):
            raise Failure("Shaky", f"attempt {work.attempt} failed")
        return work.task

    async with infinity_matrix.local([agent], sync="lazy") as client:
        yield client


def tasks(fails: int) -> list[Task]:
    """One that fails, beside one that is done while that is being told; the last comes after both ways."""
    return [
        Task("a", "shaky", config={"fails": fails}),
        Task("b", "shaky", depends_on=["a"]),
        Task("c", "shaky"),
        Task("d", "shaky", depends_on=["b", "c"]),
    ]


async def executed(workflows: list[Workflow]) -> list[ExecutionResult]:
    return await asyncio.gather(*(workflow.execute(timeout=TIMEOUT_S) for workflow in workflows))


async def test_what_is_tried_again_is_not_stopped_by_the_order_that_was_sent_before(im: Client) -> None:
    again = {"action": "retry", "max_attempts": 2, "delay": 0}
    by_data = [Workflow(f"data-{number}", tasks=tasks(1), on_error=again) for number in range(TIMES)]
    by_function = [
        Workflow(f"function-{number}", tasks=tasks(1), on_error=lambda error: again) for number in range(TIMES)
    ]
    for result in await executed([*by_data, *by_function]):
        assert (result.status, sorted(result.outputs)) == ("completed", ["a", "b", "c", "d"]), result


async def test_what_goes_on_without_what_failed_is_not_stopped_either(im: Client) -> None:
    skipping = [Workflow(f"skip-{number}", tasks=tasks(9), on_error={"action": "skip"}) for number in range(TIMES)]
    for result in await executed(skipping):
        assert (result.status, sorted(result.outputs)) == ("completed", ["c", "d"]), result


async def test_people_are_told_although_their_execution_is_stopped_meanwhile(
    im: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IM_SMTP_URL", raising=False)
    tell: list[dict[str, Any]] = [{"action": "notify", "recipients": ["ops@example.com"]}, {"action": "fail"}]
    telling = [Workflow(f"tell-{number}", tasks=tasks(9), on_task_failure=tell) for number in range(TIMES)]
    results = await executed(telling)
    for result in results:
        lines = await im.get_logs(result.execution_id)
        # There is no mail server here: that is what the one who tells people says, and it could not if it was stopped.
        assert [line.event for line in lines if line.event == "not_configured"], result
