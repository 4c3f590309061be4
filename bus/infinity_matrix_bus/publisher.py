"""Publishing to streams: many in flight, and what became of each, by its PubAck.

A PubAck is the only commit. "Already there" is exactly the description `maximum messages per subject exceeded`; the
same code 10077 also says that a stream is full, and that is no success.
"""

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import NamedTuple

from infinity_matrix_actors.errors import PayloadTooLarge, StorageUnavailable

from infinity_matrix_bus.codec import Undecodable, decode_record
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import NO_RESPONDERS, InvalidSubject, Session, SessionLost

ALREADY_THERE = "maximum messages per subject exceeded"
#: Said by the leader of a replicated stream while the first publish with that Msg-Id is not yet stored.
IN_PROCESS = "duplicate message id is in process"
#: Without a PubAck for this long, what became of a publish is unknown.
ACK_TIMEOUT_S = 5.0
RETRY_DELAY_MIN_S = 0.05
RETRY_DELAY_MAX_S = 2.0
#: Publishes an outbox has under way at once; more wait their turn in it.
IN_FLIGHT_MAX = 4096

log = get_logger("infinity_matrix.bus")


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


class Ack(NamedTuple):
    """What became of a publish.

    A tuple, because there is one for each message and a frozen dataclass takes 3 times as long to make.
    """

    fate: Fate
    sequence: int = 0
    reason: str = ""

    @property
    def is_there(self) -> bool:
        """Whether a message on that subject is in the stream (a duplicate's may be gone again)."""
        return self.fate is Fate.STORED or self.fate is Fate.TAKEN


#: What nearly all PubAcks are; a third of the time that decoding them takes.
_STORED = re.compile(rb'\{"stream":"[^"\\]*", ?"seq":([0-9]+)\}')
AckCallback = Callable[[Ack], None]
UNKNOWN = Ack(Fate.UNKNOWN)


def read_ack(data: bytes | None, headers: bytes | None) -> Ack:
    """What a PubAck says."""
    if data is None:
        return UNKNOWN
    if headers is not None and headers.startswith(NO_RESPONDERS):
        return Ack(Fate.REFUSED, reason="no stream takes this subject, or it has no leader")
    stored = _STORED.fullmatch(data)
    if stored is not None:
        return Ack(Fate.STORED, int(stored[1]))
    try:
        record = decode_record(data)
        error = record.get("error")
        if error is not None:
            reason = str(error.get("description", error))
            if reason == IN_PROCESS:
                # Another's copy is on its way, and may still come to nothing.
                return Ack(Fate.UNKNOWN, reason=reason)
            return Ack(Fate.TAKEN if reason == ALREADY_THERE else Fate.REFUSED, reason=reason)
        return Ack(Fate.DUPLICATE if record.get("duplicate") else Fate.STORED, int(record.get("seq", 0)))
    except (Undecodable, AttributeError, TypeError, ValueError) as error:
        return Ack(Fate.UNKNOWN, reason=str(error))


def _settle(future: asyncio.Future[Ack], ack: Ack) -> None:
    if not future.done():
        future.set_result(ack)


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
        """Sends at once and calls `on_ack` exactly once, later.

        Raises SessionLost, PayloadTooLarge and InvalidSubject, sending nothing.
        """

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
            try:
                on_ack(UNKNOWN)
            except Exception:
                # The others have an end too.
                log.exception("callback_failed")


@dataclass(slots=True)
class _Letter:
    subject: str
    payload: bytes
    on_done: AckCallback
    #: Further tries while the server is there; None for as many as it takes.
    tries: int | None
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
        self._in_flight = 0
        self._session: Session | None = None
        self._publisher: Publisher | None = None
        self._refusal = ""
        self._empty = asyncio.Event()
        self._empty.set()
        self._timers: set[asyncio.TimerHandle] = set()
        #: Until when each is waited for. One timer has all of them: clients start thousands a second.
        self._awaited: dict[asyncio.Future[Ack], float] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def on_session(self, session: Session) -> None:
        """The listener to add to the connection."""
        self._session = session
        self._publisher = Publisher(session)
        self._send()

    @property
    def pending(self) -> int:
        """Facts that are not acknowledged: waiting, in flight, or waiting to be tried again."""
        return len(self._waiting) + self._in_flight + len(self._timers)

    @property
    def is_full(self) -> bool:
        return self.pending >= IN_FLIGHT_MAX

    def post(self, subject: str, payload: bytes, on_done: AckCallback, tries: int | None = None) -> None:
        """Publishes until stored or taken; then calls `on_done`, once. Never raises.

        A fact that no server would take (too large, no subject) is done too, as refused; and one that was refused, or
        heard nothing of, so many `tries`. Once closed, nothing is sent and nothing is called.
        """
        if self._is_closed:
            return
        self._empty.clear()
        self._waiting.append(_Letter(subject, payload, on_done, tries))
        self._send()

    async def publish(self, subject: str, payload: bytes, timeout_s: float) -> Ack:
        """`post`, awaited; raises StorageUnavailable when nothing was confirmed in time, or never will be.

        After the time the fact is still tried until it is there: the caller knows less, not nothing.
        """
        if self._is_closed:
            raise StorageUnavailable(f"{subject} was not written: the outbox is closed")
        future: asyncio.Future[Ack] = self._loop.create_future()
        deadline = self._awaited[future] = self._loop.time() + timeout_s
        if self._expiry is None or deadline < self._expiry.when():
            self._expire_at(deadline)
        self.post(subject, payload, partial(_settle, future))
        try:
            ack = await future
        finally:
            del self._awaited[future]
        if ack is UNKNOWN:
            reason = f": {self._refusal}" if self._refusal else ""
            raise StorageUnavailable(f"the server confirmed no write to {subject} within {timeout_s:g} s{reason}")
        if not ack.is_there:
            raise StorageUnavailable(f"{subject} was not written: {ack.reason}")
        return ack

    async def drained(self, timeout_s: float) -> bool:
        """Waits until everything is acknowledged; False when `timeout_s` passed first, or the outbox was closed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return not self.pending

    def drop(self, prefix: str) -> None:
        """Drops what waits to be published on subjects that begin so: the log it rests on is another one now."""
        self._waiting = deque(letter for letter in self._waiting if not letter.subject.startswith(prefix))

    def close(self) -> None:
        """Gives up what is not acknowledged: it may or may not be in the stream. Who awaits it is told at once."""
        self._is_closed = True
        for timer in self._timers:
            timer.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        for future in self._awaited:
            if not future.done():
                future.set_result(Ack(Fate.UNKNOWN, reason="the outbox was closed first"))
        # What is given up stays counted in `pending`, so that `drained` does not call it written.
        self._empty.set()

    def _expire_at(self, deadline: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        self._expiry = None
        for future, deadline in self._awaited.items():
            if deadline <= now:
                _settle(future, UNKNOWN)
        later = [deadline for deadline in self._awaited.values() if deadline > now]
        if later:
            self._expire_at(min(later))

    def _send(self) -> None:
        publisher = self._publisher
        if publisher is None or self._is_closed:
            return
        while self._waiting and self._in_flight < IN_FLIGHT_MAX:
            letter = self._waiting[0]
            try:
                publisher.publish(letter.subject, letter.payload, lambda ack, letter=letter: self._on_ack(letter, ack))  # type: ignore[misc]
            except SessionLost:
                return
            except (PayloadTooLarge, InvalidSubject) as error:
                self._waiting.popleft()
                self._done(letter, Ack(Fate.REFUSED, reason=str(error)))
            else:
                self._waiting.popleft()
                self._in_flight += 1

    def _on_ack(self, letter: _Letter, ack: Ack) -> None:
        self._in_flight -= 1
        if self._is_closed:
            return
        if ack.is_there:
            self._refusal = ""
            self._done(letter, ack)
        elif self._session is None or self._session.is_lost:
            self._waiting.append(letter)
        elif letter.tries == 1:
            self._done(letter, ack)
        else:
            if letter.tries is not None:
                letter.tries -= 1
            # Full, no leader, no answer, duplicate (the log sends no Msg-Id, so that is none of ours): try again.
            timer: asyncio.TimerHandle
            timer = self._loop.call_later(letter.delay_s, lambda: self._again(letter, timer))
            self._timers.add(timer)
            letter.delay_s = min(letter.delay_s * 2, RETRY_DELAY_MAX_S)
            if ack.fate is Fate.REFUSED and ack.reason != self._refusal:
                # Once: a full stream refuses thousands, again and again.
                self._refusal = ack.reason
                log.warning("fact_refused", subject=letter.subject, reason=ack.reason)
        self._send()

    def _done(self, letter: _Letter, ack: Ack) -> None:
        try:
            letter.on_done(ack)
        except Exception:
            # One owner's fault must not hold up the facts of the others.
            log.exception("callback_failed", subject=letter.subject)
        if not self.pending:
            self._empty.set()

    def _again(self, letter: _Letter, timer: asyncio.TimerHandle) -> None:
        self._timers.discard(timer)
        self._waiting.append(letter)
        self._send()
