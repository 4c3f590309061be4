"""Small things that the tests of the bus have in common."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session

DEADLINE_S = 10.0
WRITE_ONCE: dict[str, Any] = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}


async def eventually(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def connected(server: EmbeddedServer) -> AsyncIterator[Connection]:
    """An open connection to a server."""
    connection = await Connection(Endpoint(server.connect_url)).open()
    try:
        yield connection
    finally:
        await connection.close()


async def make_stream(session: Session, name: str, subject: str, **config: Any) -> None:
    """A stream for tests, with whatever config besides."""
    await JetStreamApi(session).create_stream(
        {"name": name, "subjects": [subject], "storage": "file", "allow_direct": True, **config}
    )


async def messages_in(session: Session, stream: str) -> int:
    info = await JetStreamApi(session).stream_info(stream)
    assert info is not None
    return int(info["state"]["messages"])


def open_sockets() -> int:
    """How many sockets this process holds."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


async def freeze(server: EmbeddedServer) -> None:
    """Pauses the server, and returns when all its threads stand still: a signal takes a moment to reach them."""
    server.pause()
    threads = Path(f"/proc/{server.pid}/task")

    def states() -> set[str]:
        return {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads.iterdir()}

    await eventually(lambda: states() == {"T"}, "a server that stands still")
