"""How bare nats-py is driven at its fastest: pipelined publishes with counted PubAcks, and long pulls.

Only the stock client's public calls; a subclass of it would measure another client.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic_core import to_json

from bench.bare_wire import SECOND_NS

PULL_EXPIRES_S = 5
PENDING_BYTES_MAX = 64 << 20
"""Bytes the client may hold before a publish waits for the socket; above any burst of these workloads."""

PULL_EXPIRED = "408"


class Session:
    """A connection whose first error ends the run: a benchmark with errors has no figures."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._closing = False
        self.connection = Client()

    async def open(self, url: str) -> Client:
        """Connect and answer the connection. Raises what the client raises."""
        await self.connection.connect(
            url,
            allow_reconnect=False,
            pending_size=PENDING_BYTES_MAX,
            skip_subject_validation=True,
            error_cb=self._fail,
        )
        return self.connection

    async def close(self) -> None:
        """Disconnect; callbacks that still run then find a closed connection, which is no failure any more."""
        self._closing = True
        with contextlib.suppress(OSError):  # the server may be gone already
            await self.connection.close()

    async def _fail(self, error: Exception) -> None:
        if not self._closing and not self.failed.done():
            print(f"bench: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self.failed.set_result(error)


class PubAcks:
    """Pipelined publishes: any number in flight, their PubAcks on one inbox, told apart by a number.

    `settled` is called with the note given to `publish` when the PubAck is in, only for publishes with a note.
    """

    def __init__(self, connection: Client, settled: Callable[[str], Awaitable[None]]) -> None:
        self._connection = connection
        self._settled = settled
        self._inbox = connection.new_inbox()
        self._token_at = len(self._inbox) + 1
        self._count = 0
        self._notes: dict[str, str] = {}

    async def open(self) -> None:
        """Subscribe to the inbox."""
        await self._connection.subscribe(f"{self._inbox}.*", cb=self._on_ack)

    async def publish(
        self, subject: str, payload: bytes, note: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish without waiting for the PubAck."""
        self._count += 1
        token = str(self._count)
        self._notes[token] = note
        await self._connection.publish(subject, payload, f"{self._inbox}.{token}", headers)

    async def _on_ack(self, message: Msg) -> None:
        note = self._notes.pop(message.subject[self._token_at :])
        if b'"error"' in message.data or not message.data:
            raise RuntimeError(f"refused: {message.data.decode() or message.headers}")
        if note:
            await self._settled(note)


class LongPull:
    """Messages of one pull consumer, asked for ahead, in batches as large as there is room.

    `done` must be called once for every message handled, when its place is free again.
    """

    def __init__(
        self, connection: Client, stream: str, consumer: str, room: int, handle: Callable[[Msg], Awaitable[None]]
    ) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = connection.new_inbox()
        self._handle = handle
        self._room = room
        self._refill = max(1, room // 2)

    async def open(self) -> None:
        """Subscribe and ask for the first batch."""
        await self._connection.subscribe(self._inbox, cb=self._on_message)
        await self._ask()

    async def done(self) -> None:
        """Free the place of one message."""
        self._room += 1
        if self._room >= self._refill:
            await self._ask()

    async def _ask(self) -> None:
        batch, self._room = self._room, 0
        body = to_json({"batch": batch, "expires": PULL_EXPIRES_S * SECOND_NS})
        await self._connection.publish(self._subject, body, self._inbox)

    async def _on_message(self, message: Msg) -> None:
        if message.reply:
            await self._handle(message)
            return
        # Only the end of a pull has no reply subject; it says how many of the batch never came.
        headers = message.headers or {}
        if headers.get("Status") != PULL_EXPIRED:
            raise RuntimeError(f"pull ended: {headers}")
        self._room += int(headers["Nats-Pending-Messages"])
        if self._room >= self._refill:
            await self._ask()
