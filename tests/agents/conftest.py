"""A bench for each test: a server of its own with a coordinator, which answers when an agent asks about work."""

from collections.abc import AsyncIterator

import pytest
from bench_of_agents import Bench
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator


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
