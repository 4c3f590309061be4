"""What the tests share: a real nats-server of each test's own."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from infinity_matrix_bus.server import EmbeddedServer

# Python 3.11 makes a loop for the first test that asks whether there is one, and nobody closes it: its complaint would
# strike whichever test runs when it is collected. Where one was set, none is made.
asyncio.set_event_loop(None)
# A shell that runs the tests in the background has them ignore Ctrl-C, and so would all processes they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A running server on a random port, its store under `tmp_path`; lazy, as no test cuts the power."""
    async with EmbeddedServer(tmp_path / "store", sync="lazy") as server:
        yield server
