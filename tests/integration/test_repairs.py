"""What a repair does before it publishes, in the order that makes it safe, on a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.repairs import Repairs

AGENT = "agent-x"
WAIT_S = 10.0
SUBJECTS = Subjects("im")
QUEUED, LOST, DONE = ("e1", "a", 1), ("e2", "a", 1), ("e3", "a", 1)


class Target:
    """A shard that keeps down what is asked of it; `DONE` turns out to be done when the head is read."""

    def __init__(self, api: JetStreamApi) -> None:
        self._api = api
        self.open = {QUEUED, LOST, DONE}
        self.published: list[Attempt] = []
        self.is_done = asyncio.Event()

    def agent_of(self, attempt: Attempt) -> str | None:
        return AGENT if attempt in self.open else None

    def publish_repair(self, attempt: Attempt) -> None:
        # As the shard does: what is no longer open is not published.
        if attempt in self.open:
            self.published.append(attempt)
        self.is_done.set()

    async def read_to_head(self) -> None:
        """While the log is read, the agent that had the queued work gives its outcome and acks it."""
        self.open.discard(DONE)
        await self._api.purge(SUBJECTS.work_stream, SUBJECTS.work(AGENT, *QUEUED))


@pytest.fixture
async def connection(server: EmbeddedServer) -> AsyncIterator[Connection]:
    connection = await Connection(Endpoint(server.connect_url)).open()
    await install(connection.session, shards=1)
    yield connection
    await connection.close()


async def test_a_repair_looks_into_the_queue_reads_the_log_and_then_publishes_what_is_still_open(
    connection: Connection,
) -> None:
    session = connection.session
    await session.request(SUBJECTS.work(AGENT, *QUEUED), b"{}")
    target = Target(JetStreamApi(session))
    repairs = Repairs(JetStreamApi(session), SUBJECTS, target)
    running = asyncio.create_task(repairs.run())
    try:
        for attempt in (QUEUED, DONE, LOST):
            repairs.add(attempt)
        await asyncio.wait_for(target.is_done.wait(), WAIT_S)
        assert target.published == [LOST]
        assert len(repairs) == 0
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
