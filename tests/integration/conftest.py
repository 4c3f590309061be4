"""A world for each test: a server of its own, and whatever processes the test adds."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import World, say
from infinity_matrix_bus.server import EmbeddedServer


@pytest.fixture
async def world(server: EmbeddedServer, tmp_path: Path) -> AsyncIterator[World]:
    """An empty world; what it printed is shown when the test fails."""
    world = World(server, tmp_path)
    try:
        yield world
    finally:
        world.close()
        say(world.logs())
