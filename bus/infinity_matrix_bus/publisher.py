"""Publishing to streams: many in flight, and what became of each, by its PubAck.

A PubAck is the only commit. "Already there" is exactly the description `maximum messages per subject exceeded`; the
same code 10077 also says that a stream is full, and that is no success.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from infinity_matrix_actors.errors import StorageUnavailable

from infinity_matrix_bus.codec import Undecodable, decode_record
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.session import NO_RESPONDERS, Session, SessionLost

ALREADY_THERE = "maximum messages per subject exceeded"
#: Without a PubAck for this long, what became of a publish is unknown.
ACK_TIMEOUT_S = 5.0
RETRY_DELAY_MIN_S = 0.05
RETRY_DELAY_MAX_S = 2.0
#: Publishes an outbox has under way at once; more wait their turn in it.
IN_FLIGHT_MAX = 4096


class Fate(Enum):
    """What became of a publish."""

    STORED = "stored"
    #: A duplicate of a remembered Msg-Id: nothing was stored.
    DUPLICATE = "duplicate"
    #: The write-once subject is taken.
    TAKEN = "taken"
    #: The server said no: full, not permitted, no such stream.
    REFUSED = "refused"
    #: Nobody knows: the connection broke or no answer came.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ack:
    fate: Fate
    sequence: int = 0
    reason: str = ""

    @property
    def is_there(self) -> bool:
        """Whether a message on that subject is in the stream (a duplicate's may be gone again)."""
        return self.fate is Fate.STORED or self.fate is Fate.TAKEN


AckCallback = Callable[[Ack], None]
UNKNOWN = Ack(Fate.UNKNOWN)


def read_ack(data: bytes | None, headers: bytes | None) -> Ack:
    """What a PubAck says."""
    if data is None:
        return UNKNOWN
    if headers is not None and headers.startswith(NO_RESPONDERS):
        return Ack(Fate.REFUSED, reason="no stream takes this subject, or it has no leader")
    try:
        record = decode_record(data)
        error = record.get("error")
        if error is not None:
            reason = str(error.get("description", error))
            return Ack(Fate.TAKEN if reason == ALREADY_THERE else Fate.REFUSED, reason=reason)
        return Ack(Fate.DUPLICATE if record.get("duplicate") else Fate.STORED, int(record.get("seq", 0)))
    except (Undecodable, AttributeError, TypeError, ValueError) as error:
        return Ack(Fate.UNKNOWN, reason=str(error))


class Publisher:
    """Pipelined publishes of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._in_flight: OrderedDict[str, tuple[float, AckCallback]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def publish(self, subject: str, payload: bytes, on_ack: AckCallback, headers: bytes = b"") -> None:
        """Sends at once and calls `on_ack` exactly once, later. Raises SessionLost and PayloadTooLarge, sending nothing."""

        def settle(data: bytes | None, reply_headers: bytes | None) -> None:
            self._in_flight.pop(token, None)
            on_ack(read_ack(data, reply_headers))

        token = self._session.request_with(subject, payload, settle, headers)
        self._in_flight[token] = (self._loop.time() + ACK_TIMEOUT_S, on_ack)
        if self._timer is None:
            self._timer = self._loop.call_later(ACK_TIMEOUT_S, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        self._timer = None
        while self._in_flight:
            token, (deadline, on_ack) = next(iter(self._in_flight.items()))
            if deadline > now and not self._session.is_lost:
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            self._in_flight.pop(token)
            self._session.forget(token)
            on_ack(UNKNOWN)


@dataclass(slots=True)
class _Letter:
    subject: str
    payload: bytes
    on_done: AckCallback
    delay_s: float = RETRY_DELAY_MIN_S


class Outbox:
    """Facts on their way: each is published again until a PubAck says it is there, across sessions.

    Only for write-once subjects, where a second copy is refused. Holds what is not acknowledged; `is_full` tells its
    owner to take in no more.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Letter] = deque()
        self._retrying = 0
        self._publisher: Publisher | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._is_closed = False

    async def on_session(self, session: Session) -> None:
        """The listener to add to the connection."""
        self._publisher = Publisher(session)
        self._send()

    @property
    def pending(self) -> int:
        in_flight = self._publisher.in_flight if self._publisher is not None else 0
        return len(self._waiting) + self._retrying + in_flight

    @property
    def is_full(self) -> bool:
        return self.pending >= IN_FLIGHT_MAX

    def post(self, subject: str, payload: bytes, on_done: AckCallback) -> None:
        """Publishes until stored, taken or refused for good; then calls `on_done`. Raises PayloadTooLarge never here:
        a payload that passed `encode` fits."""
        self._empty.clear()
        self._waiting.append(_Letter(subject, payload, on_done))
        self._send()

    async def publish(self, subject: str, payload: bytes, timeout_s: float) -> Ack:
        """`post`, awaited; raises StorageUnavailable when nothing was confirmed in time."""
        future: asyncio.Future[Ack] = self._loop.create_future()
        self.post(subject, payload, lambda ack: None if future.done() else future.set_result(ack))
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise StorageUnavailable(f"the server confirmed no write to {subject} within {timeout_s:g} s") from None

    async def drained(self, timeout_s: float) -> bool:
        """Waits until everything is acknowledged; False when `timeout_s` passed first."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Gives up what is not acknowledged."""
        self._is_closed = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()

    def _send(self) -> None:
        publisher = self._publisher
        while self._waiting and publisher is not None and publisher.in_flight < IN_FLIGHT_MAX:
            letter = self._waiting.popleft()
            try:
                publisher.publish(letter.subject, letter.payload, lambda ack, letter=letter: self._on_ack(letter, ack))  # type: ignore[misc]
            except SessionLost:
                self._waiting.appendleft(letter)
                return

    def _on_ack(self, letter: _Letter, ack: Ack) -> None:
        if self._is_closed:
            return
        if ack.is_there:
            letter.on_done(ack)
        else:
            # Full, no leader, no answer, duplicate (the log sends no Msg-Id, so that is none of ours): try again.
            self._retrying += 1
            timer: asyncio.TimerHandle
            timer = self._loop.call_later(letter.delay_s, lambda: self._again(letter, timer))
            self._timers.add(timer)
            letter.delay_s = min(letter.delay_s * 2, RETRY_DELAY_MAX_S)
        if self._waiting:
            self._send()
        if not self.pending:
            self._empty.set()

    def _again(self, letter: _Letter, timer: asyncio.TimerHandle) -> None:
        self._timers.discard(timer)
        self._retrying -= 1
        self._waiting.append(letter)
        self._send()
