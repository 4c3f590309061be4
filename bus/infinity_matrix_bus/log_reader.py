"""Reads a stream in order from a known sequence, without acks, for as long as the session lives.

An ephemeral pull consumer: a push consumer was cut off as a slow consumer under a full replay. When it breaks it is
made again from the next sequence, so the reader's owner sees every message once and in order.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from infinity_matrix_bus.api import API_PREFIX, JetStreamApi, JetStreamError
from infinity_matrix_bus.direct_client import ended
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.puller import Puller
from infinity_matrix_bus.session import RequestTimeout, Session, SessionLost

#: Messages asked for at once: enough that a pull outlasts a round trip, few enough to stop soon when paused.
BATCH = 2000
INACTIVE_S = 60.0
RETRY_DELAY_MIN_S = 0.25
RETRY_DELAY_MAX_S = 2.0
#: Pulls that may be open at once: each asks for at least as much as is under way, so a few would do.
PULLS_MAX = 64
_NANOSECONDS = 1_000_000_000
log = get_logger("infinity_matrix.bus")


class Entry(NamedTuple):
    """One message of a stream. `at` is the stream's time in seconds since the epoch, `pending` how many follow it.

    A tuple, because there is one for each message and a frozen dataclass takes 3 times as long to make.
    """

    subject: str
    data: bytes
    sequence: int
    at: float
    pending: int


def parse_ack_reply(reply: str) -> tuple[int, int, int, float, int]:
    """(deliveries, stream sequence, consumer sequence, time, pending) of a message's ack reply (ADR-15, both forms)."""
    tokens = reply.split(".")
    offset = 4 if len(tokens) == 9 else 6
    return (
        int(tokens[offset]),
        int(tokens[offset + 1]),
        int(tokens[offset + 2]),
        int(tokens[offset + 3]) / _NANOSECONDS,
        int(tokens[offset + 4]),
    )


class LogReader:
    """Calls `on_entry` for each message from `from_sequence` on that matches `filters` (none: all).

    `capacity` limits what is under way (0 pauses; call `resume` afterwards).
    """

    def __init__(
        self,
        session: Session,
        stream: str,
        on_entry: Callable[[Entry], None],
        *,
        from_sequence: int = 1,
        filters: tuple[str, ...] = (),
        capacity: Callable[[], int] = lambda: BATCH,
        new_only: bool = False,
    ) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._stream = stream
        self._on_entry = on_entry
        self._filters = filters
        self._capacity = capacity
        self._new_only = new_only
        self.next_sequence = from_sequence
        self._consumer = ""
        self._consumer_sequence = 0
        self._puller: Puller | None = None
        self._mending: asyncio.Task[None] | None = None
        self._is_closed = False
        #: Messages the stream had for this reader when it was opened.
        self.pending = 0

    async def open(self) -> "LogReader":
        """Begins to read; raises JetStreamError when the stream is not there."""
        config: dict[str, Any] = {
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(INACTIVE_S * _NANOSECONDS),
            "deliver_policy": "new" if self._new_only else "by_start_sequence",
            "max_waiting": PULLS_MAX,
        }
        if not self._new_only:
            config["opt_start_seq"] = max(1, self.next_sequence)
        if self._filters:
            config["filter_subjects"] = list(self._filters)
        self._consumer = self._session.client._nuid.next().decode()
        self._consumer_sequence = 0
        info = await self._api.create_consumer(self._stream, self._consumer, config)
        if self._new_only:
            # From here on "new" would skip what comes while a broken consumer is made again.
            self._new_only = False
            self.next_sequence = int(info["delivered"]["stream_seq"]) + 1
        self.pending = int(info.get("num_pending", 0))
        self._puller = await Puller(
            self._session, API_PREFIX, self._stream, self._consumer, self._capacity, self._receive, self._on_broken
        ).open()
        return self

    def resume(self) -> None:
        """Asks for more, after `capacity` had been 0."""
        if self._puller is not None:
            self._puller.pull()

    async def remaining(self) -> int:
        """How many messages the stream has for this reader now; raises RequestTimeout and SessionLost."""
        info = await self._api.consumer_info(self._stream, self._consumer)
        # Without a consumer there is a reader that mends itself, from where it was.
        return 1 if info is None else int(info.get("num_pending", 0))

    async def close(self) -> None:
        """Stops reading and deletes the consumer."""
        self._is_closed = True
        mending, self._mending = self._mending, None
        if mending is not None:
            await ended(mending)
        await self._drop()

    async def _drop(self) -> None:
        puller, self._puller = self._puller, None
        if puller is not None:
            await puller.close()
        if not self._session.is_lost:
            try:
                await self._api.delete_consumer(self._stream, self._consumer)
            except (JetStreamError, RequestTimeout, SessionLost) as error:
                log.debug("consumer_not_deleted", reason=str(error))

    def _receive(self, subject: str, reply: str, data: bytes) -> None:
        _, sequence, consumer_sequence, at, pending = parse_ack_reply(reply)
        if self._is_closed or self._mending is not None:
            return
        if consumer_sequence != self._consumer_sequence + 1:
            self._on_broken(f"message {self._consumer_sequence + 1} of the consumer is missing")
            return
        self._consumer_sequence = consumer_sequence
        self.next_sequence = sequence + 1
        self._on_entry(Entry(subject, data, sequence, at, pending))

    def _on_broken(self, reason: str) -> None:
        if self._is_closed or self._session.is_lost or self._mending is not None:
            return
        log.info("reader_broken", stream=self._stream, reason=reason)
        self._mending = asyncio.create_task(self._mend(), name="log-reader-mend")

    async def _mend(self) -> None:
        delay_s = RETRY_DELAY_MIN_S
        while not self._session.is_lost and not self._is_closed:
            await self._drop()
            try:
                await self.open()
            except (JetStreamError, RequestTimeout, SessionLost) as error:
                log.info("reader_not_mended", stream=self._stream, reason=str(error))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_DELAY_MAX_S)
            else:
                self._mending = None
                self.resume()
                return
