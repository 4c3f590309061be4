"""Effects that waited for something else first, and by then are those of a task that is settled or gone."""

import asyncio

import pytest
from infinity_matrix_actors.definition import TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.effect import PublishWork, PurgeWork
from infinity_matrix_actors.fact import Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.publisher import Outbox
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.performer import Performer
from infinity_matrix_coordinator.slots import SlotKeys

WAIT_S = 10.0
SUBJECTS = Subjects("im")


@pytest.mark.parametrize("fate", ["gone", "settled", "at its next attempt"])
async def test_work_that_waited_for_a_purge_is_not_published_when_its_task_is_settled_by_then(
    server: EmbeddedServer, fate: str
) -> None:
    connection = await Connection(Endpoint(server.connect_url)).open()
    try:
        await install(connection.session, shards=1)
        definition = WorkflowDefinition("late", tasks=tuple(TaskDefinition(id, "agent-x") for id in ("a", "b")))
        execution = ExecutionActor(Started("e1", 0.0, "late", "d", None), Plan.of(definition, "d"))
        execution.receive(execution.started)
        repaired: asyncio.Queue[Attempt] = asyncio.Queue()
        outbox = Outbox(connection)
        performer = Performer(
            connection.session,
            SUBJECTS,
            0,
            1,
            outbox,
            StreamClock(),
            "test",
            repaired.put_nowait,
            lambda *_: None,
            lambda *_: None,
            SlotKeys(SUBJECTS, 1, outbox),
            lambda: None,
        )
        effects = [PurgeWork("a", 1), PublishWork("a", 1, 0.0), PublishWork("b", 1, 0.0)]
        performer.perform(execution, effects, is_fresh=True)
        # Another owner is quicker.
        if fate == "gone":
            del execution.tasks["a"]
        elif fate == "settled":
            execution.tasks["a"].is_open = False
        else:
            execution.tasks["a"].attempt = 2
        assert await asyncio.wait_for(repaired.get(), WAIT_S) == ("e1", "b", 1)
        assert repaired.empty()
        await performer.close()
    finally:
        await connection.close()
