"""A change is heard of before it is stored: who looks at once finds what was there before, and has to look again."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness import World, until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Trigger, Workflow
from infinity_matrix_actors.schedule import new_schedule
from infinity_matrix_bus.definitions import DefinitionStore, Deployment
from infinity_matrix_bus.schedules import ScheduleStore, StoredSchedule
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator import schedules, triggers
from infinity_matrix_coordinator.process import Coordinator
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

#: Well below the times after which everything is read again.
SOON_S = 3.0
#: What was read too early is taken for what is.
SETTLED_S = 0.3


class LateSchedules(ScheduleStore):
    """Whoever reads a schedule the first two times does so before it is stored."""

    reads: int = 0

    async def read(self, name: str) -> StoredSchedule | None:
        self.reads += 1
        return None if self.reads <= 2 else await super().read(name)


class LateDefinitions(DefinitionStore):
    """Who reads what is deployed for the first time since something is, does so before it is stored."""

    known: frozenset[str] = frozenset()

    async def deployments(self) -> list[Deployment]:
        found = await super().deployments()
        stale = [each for each in found if each.workflow in self.known]
        self.known = frozenset(each.workflow for each in found)
        return stale


@pytest.fixture
async def im(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(schedules, "ScheduleStore", LateSchedules)
    monkeypatch.setattr(triggers, "DefinitionStore", LateDefinitions)
    coordinator = await Coordinator(Endpoint(world.server.connect_url)).start()
    agent = Agent("echo")

    @agent.handler
    async def handle(work: Work) -> Any:
        return work.input

    try:
        async with world.client() as client:
            await client.serve([agent])
            yield client
    finally:
        await coordinator.stop()


async def completed(im: Client, workflow: str) -> None:
    async def is_so() -> bool:
        return len(await im.list(workflow, "completed")) == 1

    await until(is_so, SOON_S, f"an execution of {workflow}")


async def test_an_event_after_a_deployment_starts_it_though_it_was_looked_for_too_early(im: Client) -> None:
    await Workflow("armed", triggers=[Trigger("tick")], tasks=[Task("a", "echo")]).deploy()
    await asyncio.sleep(SETTLED_S)
    await im.trigger("tick", 1)
    await completed(im, "armed")


async def test_a_schedule_that_was_looked_for_too_early_is_found_and_fires(im: Client) -> None:
    await Workflow("nightly", tasks=[Task("a", "echo")]).deploy()
    due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.5)
    await ScheduleOperations(im.operations).create(new_schedule("once", "nightly", run_at=due))
    await completed(im, "nightly")
