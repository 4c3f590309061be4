"""A session: one life of one nats-py client, with synchronous publish and callbacks.

nats-py's own reconnect replays buffered publishes and leaves pulls hanging, so it is switched off: when anything
breaks, the session is over, everything in flight is reported lost, and the `Connection` makes a new one. Publishing is
one buffer append and one write a loop turn, and a message is one plain call: no task, no queue, no header parsing.
That needs nats-py's `_process_msg`, `_pending`, `_transport` and `_reading_task`; its version is pinned for them.
"""

import asyncio
import itertools
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from infinity_matrix_actors.errors import InfinityMatrixError, PayloadTooLarge, Unreachable
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infinity_matrix_bus.codec import MESSAGE_BYTES_MAX
from infinity_matrix_bus.subjects import SUBJECT_BYTES_MAX

CONNECT_TIMEOUT_S = 5.0
#: A dead peer is noticed after two unanswered pings.
PING_INTERVAL_S = 2
PINGS_OUTSTANDING_MAX = 2
WATCHDOG_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 2.0
NO_RESPONDERS = b"NATS/1.0 503"

#: subject, reply, payload, raw headers; runs under the parser, so it must be quick. What it raises is logged.
MessageCallback = Callable[[str, str, bytes, bytes | None], None]
#: payload and raw headers of a reply, or None when the session was lost first.
ReplyCallback = Callable[[bytes | None, bytes | None], None]

log = structlog.get_logger("infinity_matrix.bus")


class SessionLost(InfinityMatrixError):
    """Raised when the connection broke; whether what was in flight arrived is unknown. Try again on the next session."""


class NoResponders(InfinityMatrixError):
    """Raised when nobody subscribes to a request's subject."""


class RequestTimeout(InfinityMatrixError):
    """Raised when a request had no reply before its deadline; whether it arrived is unknown."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect and as whom."""

    url: str
    name: str = "infinity-matrix"
    credentials: str | None = None
    tls: ssl.SSLContext | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    inbox_prefix: str = "_INBOX"

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"servers": self.url.split(","), "name": self.name, "inbox_prefix": self.inbox_prefix}
        if self.credentials is not None:
            options["user_credentials"] = self.credentials
        if self.tls is not None:
            options["tls"] = self.tls
        for key in ("user", "password", "token"):
            if getattr(self, key) is not None:
                options[key] = getattr(self, key)
        return options


class _DirectClient(Client):
    """nats-py's client, with messages of chosen subscriptions handed on at once."""

    def __init__(self) -> None:
        super().__init__()
        self.direct: dict[int, MessageCallback] = {}

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        callback = self.direct.get(sid)
        if callback is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            callback(subject.decode(), reply.decode(), data, headers)
        except Exception:
            # Anything raised under the parser would end nats-py's read loop and leave a connection that looks alive.
            log.exception("callback_failed", subject=subject.decode(errors="replace"))


@dataclass(slots=True)
class Subscription:
    """A subscription of a session; over when the session is."""

    session: "Session"
    sid: int
    inner: Any = field(repr=False)

    async def close(self) -> None:
        """Unsubscribes; does nothing on a session that is over."""
        self.session.client.direct.pop(self.sid, None)
        if not self.session.is_lost:
            try:
                await self.inner.unsubscribe()
            except NatsError:
                return


class Session:
    """One connected life. Made by `Session.connect`; over when `is_lost`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.client = _DirectClient()
        self.lost = asyncio.Event()
        self.inbox = ""
        self._replies: dict[str, ReplyCallback] = {}
        self._tokens = itertools.count()
        self._buffer: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._on_lost: list[Callable[[], None]] = []
        self._watchdog: asyncio.Task[None] | None = None
        self.last_error = ""

    @classmethod
    async def connect(cls, endpoint: Endpoint) -> "Session":
        """Connects once; raises Unreachable."""
        session = cls(endpoint)
        try:
            await asyncio.wait_for(
                session.client.connect(
                    **endpoint.options(),
                    allow_reconnect=False,
                    connect_timeout=int(CONNECT_TIMEOUT_S),
                    ping_interval=PING_INTERVAL_S,
                    max_outstanding_pings=PINGS_OUTSTANDING_MAX,
                    error_cb=session._note_error,
                    closed_cb=session._on_closed,
                    disconnected_cb=session._on_closed,
                ),
                CONNECT_TIMEOUT_S,
            )
            session.inbox = session.client.new_inbox() + "."
            await session.subscribe(session.inbox + "*", session._on_reply)
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            await session.close()
            reason = str(error) or type(error).__name__
            raise Unreachable(_without_secret(endpoint.url), reason) from error
        session._watchdog = asyncio.create_task(session._watch(), name="session-watchdog")
        return session

    @property
    def is_lost(self) -> bool:
        return self.lost.is_set()

    @property
    def max_payload_bytes(self) -> int:
        return min(MESSAGE_BYTES_MAX, self.client.max_payload)

    @property
    def buffered_bytes(self) -> int:
        """What the socket has not taken yet."""
        transport = self.client._transport
        writer = getattr(transport, "_io_writer", None)
        return 0 if writer is None else int(writer.transport.get_write_buffer_size())

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, when the session is over."""
        if self.is_lost:
            callback()
        else:
            self._on_lost.append(callback)

    def not_when_lost(self, callback: Callable[[], None]) -> None:
        """Takes back `when_lost`."""
        if callback in self._on_lost:
            self._on_lost.remove(callback)

    def publish(self, subject: str, payload: bytes, reply: str = "", headers: bytes = b"") -> None:
        """Sends without waiting. `headers` is a whole block, beginning with NATS/1.0.

        Raises SessionLost, and PayloadTooLarge before anything is sent (the server would close the connection).
        """
        if self.is_lost:
            raise SessionLost("the connection is lost")
        size = len(payload) + len(headers)
        if size > self.max_payload_bytes:
            raise PayloadTooLarge(f"the message to {subject}", size, self.max_payload_bytes)
        if len(subject) > SUBJECT_BYTES_MAX:
            raise PayloadTooLarge(f"the subject {subject[:80]}...", len(subject), SUBJECT_BYTES_MAX)
        target = f"{subject} {reply} " if reply else f"{subject} "
        if headers:
            command = f"HPUB {target}{len(headers)} {size}\r\n".encode()
        else:
            command = f"PUB {target}{size}\r\n".encode()
        if not self._buffer:
            self._loop.call_soon(self._flush)
        self._buffer.append(command + headers + payload + b"\r\n")

    def request_with(self, subject: str, payload: bytes, callback: ReplyCallback, headers: bytes = b"") -> str:
        """Publishes with a reply inbox; `callback` has the reply, or None when the session is lost. Answers its token."""
        token = str(next(self._tokens))
        self.publish(subject, payload, self.inbox + token, headers)
        self._replies[token] = callback
        return token

    def forget(self, token: str) -> None:
        """Gives up on a reply; its callback is not called any more."""
        self._replies.pop(token, None)

    async def request(self, subject: str, payload: bytes = b"", timeout_s: float = 5.0, headers: bytes = b"") -> bytes:
        """The reply to one request; raises NoResponders, RequestTimeout or SessionLost."""
        future: asyncio.Future[bytes] = self._loop.create_future()

        def settle(data: bytes | None, reply_headers: bytes | None) -> None:
            if future.done():
                return
            if data is None:
                future.set_exception(SessionLost("the connection was lost while waiting for a reply"))
            elif reply_headers is not None and reply_headers.startswith(NO_RESPONDERS):
                future.set_exception(NoResponders(f"nobody answers on {subject}"))
            else:
                future.set_result(data)

        token = self.request_with(subject, payload, settle, headers)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise RequestTimeout(f"no reply on {subject} within {timeout_s:g} s") from None
        finally:
            self.forget(token)

    async def subscribe(self, subject: str, callback: MessageCallback, queue: str = "") -> Subscription:
        """Subscribes; `callback` is called for each message, under the parser."""
        inner = await self.client.subscribe(subject, queue=queue)
        self.client.direct[inner._id] = callback
        self._flush()
        return Subscription(self, inner._id, inner)

    async def close(self) -> None:
        """Ends the session; what was not flushed may be lost."""
        if not self.is_lost and self.client.is_connected:
            self._flush()
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.cancel()
            await asyncio.gather(watchdog, return_exceptions=True)
        try:
            await asyncio.wait_for(self.client.close(), CLOSE_TIMEOUT_S)
        except (NatsError, OSError, TimeoutError) as error:
            log.debug("close_failed", reason=str(error))
        self._lose()

    async def flushed(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Waits until the socket has taken what was published, at most `timeout_s`."""
        self._flush()
        transport = self.client._transport
        if transport is not None and not self.is_lost:
            await asyncio.wait_for(transport.drain(), timeout_s)  # type: ignore[no-untyped-call]

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, []
        client = self.client
        if client._pending:
            # What nats-py itself has queued (SUB, PONG) goes first: a reply may come before its inbox exists otherwise.
            buffer[:0] = client._pending
            client._pending = []
            client._pending_data_size = 0
        if buffer and not self.is_lost and client._transport:
            client._transport.write(b"".join(buffer))

    def _on_reply(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        callback = self._replies.pop(subject[len(self.inbox) :], None)
        if callback is not None:
            callback(data, headers)

    async def _note_error(self, error: Exception) -> None:
        # Raising here would end nats-py's read loop.
        self.last_error = str(error) or type(error).__name__
        log.debug("connection_error", reason=self.last_error)

    async def _on_closed(self) -> None:
        self._lose()

    async def _watch(self) -> None:
        """Ends a session whose read loop died: nats-py goes on saying it is connected then."""
        while not self.is_lost:
            await asyncio.sleep(WATCHDOG_INTERVAL_S)
            reading = self.client._reading_task
            if not self.client.is_connected or reading is None or reading.done():
                self._lose()

    def _lose(self) -> None:
        if self.is_lost:
            return
        self.lost.set()
        replies, self._replies = self._replies, {}
        for callback in replies.values():
            callback(None, None)
        for hook in list(self._on_lost):
            hook()


def _without_secret(url: str) -> str:
    """The URL as it may be shown: without user, password or token."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url.rpartition("@")[2]
