"""What the tests of the bus share: a session, and that nothing is left behind or printed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session


@pytest.fixture(autouse=True)
def quiet_terminal(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither nats-py nor asyncio complains: without a handler of the user's own, that would be on the terminal."""
    yield
    records = caplog.get_records("call") + caplog.get_records("teardown")
    loud = [f"{record.name}: {record.getMessage()} {record.exc_info}" for record in records if _is_loud(record)]
    assert not loud


def _is_loud(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and record.name.split(".")[0] in ("nats", "asyncio")


@pytest.fixture
async def session(server: EmbeddedServer) -> AsyncIterator[Session]:
    """A session to the test's server; closing it leaves no task."""
    before = asyncio.all_tasks()
    session = await Session.connect(Endpoint(server.connect_url))
    yield session
    await session.close()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left
