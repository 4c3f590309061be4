"""The chunks of an artifact: written with many under way, and read by direct gets, a page of many at a time.

A consumer for each read, as the format's own clients make one, takes ten times as long.
"""

import asyncio
from typing import Any

from infinity_matrix_bus.api import API_PREFIX, NO_MESSAGE, JetStreamError, parse_headers
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.publisher import Ack, Fate, Publisher
from infinity_matrix_bus.session import RequestTimeout, Session, SessionLost

#: Chunks without a PubAck; at 128 KiB each 4 MiB.
CHUNKS_IN_FLIGHT_MAX = 32
#: Without a PubAck or a page for this long, it failed.
TIMEOUT_S = 10.0
#: One request for chunks; the server ends a page at the chunk that passes it.
PAGE_BYTES = 8 * 1024 * 1024
PAGE_CHUNKS = 1024


class ChunkWriter:
    """Writes the chunks of one artifact to `subject`."""

    def __init__(self, session: Session, subject: str) -> None:
        self._session = session
        self._subject = subject
        self._publisher = Publisher(session)
        self._problem: Ack | None = None
        self._changed = asyncio.Event()

    async def write(self, data: bytes, chunk_bytes: int) -> None:
        """Returns once all are stored; raises JetStreamError, RequestTimeout, SessionLost.

        When it raises, the server has answered every chunk that was sent, unless it answers none: a purge that made
        room among chunks still under way would let the later ones in.
        """
        for start in range(0, len(data), chunk_bytes):
            await self._until(CHUNKS_IN_FLIGHT_MAX - 1)
            if self._problem is not None:
                break
            self._publisher.publish(self._subject, data[start : start + chunk_bytes], self._on_ack)
        await self._until(0)
        if self._problem is not None:
            raise self._error(self._problem)

    async def _until(self, in_flight_max: int) -> None:
        while self._publisher.in_flight > in_flight_max:
            self._changed.clear()
            # The publisher gives up on each after 5 s, so this ends; the deadline is for what nobody thought of.
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await self._changed.wait()
            except TimeoutError:
                raise RequestTimeout(f"no answer on {self._subject} within {TIMEOUT_S:g} s") from None

    def _error(self, problem: Ack) -> JetStreamError | SessionLost | RequestTimeout:
        if problem.fate is Fate.REFUSED:
            return JetStreamError(self._subject, 0, problem.reason)
        if self._session.is_lost:
            return SessionLost("the connection was lost while an artifact was stored")
        return RequestTimeout(f"a chunk on {self._subject} was not confirmed")

    def _on_ack(self, ack: Ack) -> None:
        if ack.fate is not Fate.STORED and self._problem is None:
            self._problem = ack
        self._changed.set()


class ChunkReader:
    """Reads the chunks on `subject`."""

    def __init__(self, session: Session, stream: str, subject: str) -> None:
        self._session = session
        self._subject = subject
        self._request = f"{API_PREFIX}.DIRECT.GET.{stream}"
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._bytes_max = 0
        self._sequence = 0
        self._status: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read(self, size_bytes: int) -> bytes:
        """What is there, up to `size_bytes` and a chunk; raises JetStreamError, RequestTimeout, SessionLost."""
        self._bytes_max = size_bytes
        while self._bytes < size_bytes:
            seen = self._sequence
            await self._page()
            if self._sequence == seen:
                break
        return b"".join(self._chunks)

    async def _page(self) -> None:
        request: dict[str, Any] = {
            "next_by_subj": self._subject,
            "seq": self._sequence + 1,
            "batch": PAGE_CHUNKS,
            "max_bytes": PAGE_BYTES,
        }
        self._status = asyncio.get_running_loop().create_future()
        token = self._session.request_many_with(self._request, encode(request), self._receive)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                headers = await self._status
        except TimeoutError:
            raise RequestTimeout(f"no answer on {self._request} within {TIMEOUT_S:g} s") from None
        finally:
            self._session.forget(token)
        if not headers:
            raise SessionLost("the connection was lost while an artifact was read")
        code = headers[9:12]
        if code == b"404":
            raise JetStreamError(self._request, NO_MESSAGE, "no chunks")
        if code != b"204":
            raise JetStreamError(self._request, int(code), "the chunks were refused")

    def _receive(self, data: bytes | None, headers: bytes | None) -> None:
        if self._status.done():
            return
        if data is None or headers is None:
            self._status.set_result(b"")
        elif headers.startswith(b"NATS/1.0 "):
            self._status.set_result(headers)
        elif self._bytes < self._bytes_max:
            # Whoever wrote more than they said has nobody's memory for it.
            self._chunks.append(data)
            self._bytes += len(data)
            self._sequence = int(parse_headers(headers)["nats-sequence"])
