"""Long pulls on a consumer: messages as plain calls, the next pull sent before the last one runs dry.

nats-py's fetch hangs over a restart of the server and hides why a pull ended; here a pull that is silent for two
heartbeats is over, and so is its owner's trust in the consumer.
"""

import asyncio
from collections.abc import Callable

from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.session import Session, Subscription

EXPIRES_S = 5.0
HEARTBEAT_S = 1.0
#: Silence after which the consumer is given up: two heartbeats missed, and some air.
#: Without a pull for longer than this, the consumer may have been deleted and made again unnoticed.
UNWATCHED_S = 0.25
SILENCE_MAX_S = 3.0
DRAIN_TIMEOUT_S = 2.0
#: Pulls of this consumer whose size is remembered; more are never open at once.
PULLS_REMEMBERED_MAX = 64
_NANOSECONDS = 1_000_000_000

#: Reasons that refuse a pull and say nothing against the consumer.
_PASSING = (b"Exceeded MaxWaiting", b"Server Shutdown")

#: subject, ack reply, payload
WorkCallback = Callable[[str, str, bytes], None]


class Puller:
    """Pulls from one consumer while its session lives.

    `capacity` says how many messages the owner can take now; `on_broken` is called once when the consumer does not
    answer or is gone, with the reason.
    """

    def __init__(
        self,
        session: Session,
        api_prefix: str,
        stream: str,
        consumer: str,
        capacity: Callable[[], int],
        on_message: WorkCallback,
        on_broken: Callable[[str], None],
    ) -> None:
        self._session = session
        self._next = f"{api_prefix}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._capacity = capacity
        self._on_message = on_message
        self._on_broken = on_broken
        self._inbox = session.client.new_inbox()
        self._subscription: Subscription | None = None
        #: Messages asked for that may still come. A pull's messages do not say which pull they answer, so there is one
        #: sum; the status that ends a pull says how much of it is left over.
        self._credit = 0
        self._pulls = 0
        self._sizes: dict[int, int] = {}
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._checked_at = self._heard_at
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_draining = False
        #: Since when nothing is asked for, and when the last such time ended that was not short (loop time).
        self._idle_from: float | None = None
        self.unwatched_until: float | None = None

    async def open(self) -> "Puller":
        """Begins to pull; raises SessionLost."""
        self._subscription = await self._session.subscribe(f"{self._inbox}.*", self._receive)
        self._heard_at = self._checked_at = self._loop.time()
        self._timer = self._loop.call_later(HEARTBEAT_S, self._check)
        self.pull()
        return self

    def pull(self) -> None:
        """Asks for as much as the owner can take beyond what is asked for already."""
        if self._is_closed or self._is_draining or self._session.is_lost:
            return
        room = self._capacity() - self._credit
        # A pull for every freed place would double the messages: wait until a good part is free.
        if room <= 0 or (self._credit and room < self._credit):
            return
        self._pulls += 1
        self._note_idle(is_over=True)
        request = {
            "batch": room,
            "expires": int(EXPIRES_S * _NANOSECONDS),
            "idle_heartbeat": int(HEARTBEAT_S * _NANOSECONDS),
        }
        self._session.publish(self._next, encode(request), f"{self._inbox}.{self._pulls}")
        self._credit += room
        self._sizes[self._pulls] = room
        if len(self._sizes) > PULLS_REMEMBERED_MAX:
            del self._sizes[next(iter(self._sizes))]

    async def drain(self) -> None:
        """Takes no more, and returns when all that was on its way is in the owner's hands, who can hand it back."""
        self._is_draining = True
        if self._timer is not None:
            self._timer.cancel()
        if self._subscription is not None:
            await self._subscription.drain(DRAIN_TIMEOUT_S)
        self._is_closed = True

    async def close(self) -> None:
        """Stops; messages on their way are delivered to nobody and come again after ack_wait."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._subscription is not None:
            await self._subscription.close()

    def _receive(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        self._heard_at = self._loop.time()
        # A message keeps its own subject; only a status comes on the inbox.
        if headers and subject.startswith(self._inbox):
            self._status(int(subject[len(self._inbox) + 1 :]), headers)
            return
        self._credit = max(0, self._credit - 1)
        self._note_idle()
        if not self._is_closed:
            try:
                self._on_message(subject, reply, data)
            finally:
                self.pull()

    def _status(self, number: int, headers: bytes) -> None:
        code = headers[9:12]
        if code == b"100":
            return
        line, _, rest = headers.partition(b"\r\n")
        size = self._sizes.pop(number, 0)
        pending = _header(rest, b"nats-pending-messages")
        # One that was refused names no rest: nothing of it comes.
        self._credit = max(0, self._credit - (int(pending) if pending.isdigit() else size))
        self._note_idle()
        if code in (b"404", b"408") or (code == b"409" and line.endswith(b"Batch Completed")):
            self.pull()
        elif code == b"409" and line.endswith(_PASSING):
            # Pulling again at once would be answered so at once; the next message or check does it.
            return
        else:
            self._break(line[9:].decode(errors="replace"))

    def _note_idle(self, *, is_over: bool = False) -> None:
        """Keeps in mind when nothing was asked for: who has no pull open is not told that its consumer was deleted."""
        if is_over:
            now = self._loop.time()
            if self._idle_from is not None and now - self._idle_from > UNWATCHED_S:
                self.unwatched_until = now
            self._idle_from = None
        elif not self._credit and self._idle_from is None:
            self._idle_from = self._loop.time()

    def _check(self) -> None:
        if self._is_closed or self._session.is_lost:
            return
        now = self._loop.time()
        was_away = now - self._checked_at > 2 * HEARTBEAT_S
        self._checked_at = now
        if self._credit == 0 or was_away:
            # Nothing was asked for, or this process did not run: what it has not read yet is no silence.
            self._heard_at = now
            self.pull()
        elif now - self._heard_at > SILENCE_MAX_S:
            self._break("the consumer is silent")
            return
        self._timer = self._loop.call_later(HEARTBEAT_S, self._check)

    def _break(self, reason: str) -> None:
        if not self._is_closed and not self._is_draining:
            self._is_closed = True
            self._on_broken(reason)


def _header(block: bytes, name: bytes) -> bytes:
    for line in block.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""
