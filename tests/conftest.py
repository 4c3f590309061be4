"""What the tests share: a real nats-server of each test's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from infinity_matrix_bus.server import EmbeddedServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A running server on a random port, its store under `tmp_path`; lazy, as no test cuts the power."""
    async with EmbeddedServer(tmp_path / "store", sync="lazy") as server:
        yield server
