"""A bench for each test: a server of its own with a coordinator, which answers when an agent asks about work; and an
SMTP server."""

from collections.abc import AsyncIterator, Iterator

import pytest
from bench_of_agents import Bench
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator
from smtp_mailbox import AnyPort, Mailbox


@pytest.fixture
async def bench(server: EmbeddedServer) -> AsyncIterator[Bench]:
    coordinator = Coordinator(Endpoint(server.connect_url))
    connection = Connection(Endpoint(server.connect_url))
    try:
        await coordinator.start()
        await connection.open()
        assert coordinator.installation is not None
        bench = Bench(server.connect_url, connection, coordinator.installation)
        yield bench
        for runner in bench.runners:
            await runner.close(1.0)
    finally:
        await connection.close()
        await coordinator.stop()


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    """An SMTP server on loopback, named by IM_SMTP_URL."""
    mailbox = Mailbox()
    controller = AnyPort(mailbox, hostname="127.0.0.1", port=0)
    controller.start()
    monkeypatch.setenv("IM_SMTP_URL", f"smtp://127.0.0.1:{controller.port}")
    monkeypatch.setenv("IM_SMTP_FROM", "workflows@example.com")
    yield mailbox
    controller.stop()
