"""Waiting for a time on a real system: no agent and no message until it has come."""

import asyncio
import datetime
from collections.abc import AsyncIterator

import infinity_matrix
import pytest
from harness import until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow

WAIT_S = 20.0
#: Long enough to look at the execution meanwhile, on a machine that others use.
AHEAD_S = 3.0

ship = Agent("ship")


@ship.handler
async def handle(work: Work) -> str:
    return work.task


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    async with infinity_matrix.local(agents=[ship], sync="lazy") as client:
        yield client


def embargo(name: str, end: datetime.datetime) -> Workflow:
    return Workflow(name, tasks=[Task("embargo", until=end), Task("then", "ship", depends_on=["embargo"])])


async def test_a_task_waits_until_its_time_has_come_and_no_longer(im: Client) -> None:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=AHEAD_S)
    workflow = embargo("embargo", end)
    execution = await workflow.start()

    async def is_waiting() -> bool:
        return (await workflow.get_status(execution)).tasks["embargo"].state == "running"

    await until(is_waiting, AHEAD_S, "the wait")
    assert (await workflow.get_status(execution)).tasks["then"].state == "waiting"
    result = await workflow.wait(execution, timeout=WAIT_S)
    assert result.outputs == {"embargo": None, "then": "then"}
    task = (await workflow.get_status(execution)).tasks["embargo"]
    assert task.completed_at is not None
    assert 0 <= task.completed_at - end.timestamp() < WAIT_S - AHEAD_S


async def test_a_time_that_has_passed_is_over_at_once(im: Client) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    result = await asyncio.wait_for(embargo("late-embargo", yesterday).execute(), WAIT_S)
    assert result.outputs == {"embargo": None, "then": "then"}
