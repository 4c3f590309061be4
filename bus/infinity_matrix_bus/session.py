"""A session: one life of one connection, with synchronous publish and callbacks.

nats-py's own reconnect replays buffered publishes and leaves pulls hanging, so it is switched off: when anything
breaks, the session is over, everything in flight is reported lost, and the `Connection` makes a new one. Publishing is
one buffer append and one write a loop turn, and a message is one plain call.
"""

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError, PayloadTooLarge, StorageUnavailable, Unreachable
from nats.errors import Error as NatsError
from nats.errors import NoServersError

from infinity_matrix_bus.codec import MESSAGE_BYTES_MAX
from infinity_matrix_bus.direct_client import DirectClient, MessageCallback, cancellable, ended
from infinity_matrix_bus.endpoint import Endpoint as Endpoint
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.subjects import SUBJECT_BYTES_MAX

#: All servers of an endpoint together; one that does not answer leaves time for another.
CONNECT_TIMEOUT_S = 5.0
SERVER_TIMEOUT_S = 2
#: A dead peer is noticed after two unanswered pings.
PING_INTERVAL_S = 2
PINGS_OUTSTANDING_MAX = 2
WATCHDOG_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 2.0
#: So much is sent at once, while more is being made: the first of a fork's 1,000 works waits for 3 ms, not for 40.
#: Above the 64 KiB from which uvloop writes without waiting for the loop's turn to end.
FLUSH_BYTES = 72 * 1024
NO_RESPONDERS = b"NATS/1.0 503"

#: payload and raw headers of a reply, or None when the session was lost first.
ReplyCallback = Callable[[bytes | None, bytes | None], None]

log = get_logger("infinity_matrix.bus")


class SessionLost(StorageUnavailable):
    """Raised when the connection broke; whether what was in flight arrived is unknown. Try on the next session."""


class NoResponders(InfinityMatrixError):
    """Raised when nobody subscribes to a request's subject."""


class RequestTimeout(StorageUnavailable):
    """Raised when a request had no reply before its deadline; whether it arrived is unknown."""


class InvalidSubject(InfinityMatrixError):
    """Raised when a subject is empty or has white space in it, before anything is sent. Correct the subject."""


@dataclass(slots=True)
class Subscription:
    """A subscription of a session; over when the session is."""

    session: "Session"
    sid: int
    inner: Any = field(repr=False)

    async def drain(self, timeout_s: float) -> None:
        """Unsubscribes, and returns when everything that was on its way has been received, or after `timeout_s`."""
        if not self.session.is_lost:
            try:
                await self.inner.unsubscribe()
                # The answer to a ping comes after everything the server had sent before it heard of this.
                await self.session.client.flush(timeout=max(1, round(timeout_s)))
            except NatsError as error:
                log.debug("drain_failed", reason=str(error))
        self.session.client.direct.pop(self.sid, None)

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
        self.client = DirectClient()
        self.lost = asyncio.Event()
        #: The same as `lost.is_set()`, for who asks with each message.
        self.is_lost = False
        self.inbox = ""
        self._replies: dict[str, ReplyCallback] = {}
        #: Those of requests with many replies, which stay until they are forgotten.
        self._many: dict[str, ReplyCallback] = {}
        self._tokens = itertools.count()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._loop = asyncio.get_running_loop()
        self._on_lost: list[Callable[[], None]] = []
        self._watchdog: asyncio.Task[None] | None = None
        #: Why the session is over, or what the server complained about last.
        self.last_error = ""

    @classmethod
    async def connect(cls, endpoint: Endpoint) -> "Session":
        """Connects once, to any of the servers; raises Unreachable when none of them answers."""
        servers = endpoint.url.split(",")
        # Clients spread over a cluster.
        random.shuffle(servers)
        ends_at = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
        while True:
            session = cls(endpoint)
            try:
                async with asyncio.timeout_at(ends_at):
                    await session._connect(servers.pop())
                    session.inbox = session.client.new_inbox() + "."
                    await session.subscribe(session.inbox + "*", session._on_reply)
            except GeneratorExit:
                # Its loop has ended: there is nothing to wait on.
                raise
            except BaseException as error:
                reason = session._reason(error)
                await session.close()
                if not isinstance(error, Exception):
                    raise
                if not servers or session._loop.time() >= ends_at:
                    # Not chained: the cause may quote a part of the URL that is a secret.
                    raise Unreachable(endpoint.shown_url, reason) from None
            else:
                session._watchdog = asyncio.create_task(session._watch(), name="session-watchdog")
                return session

    async def _connect(self, server: str) -> None:
        # One at a time: nats-py itself tries no other after one that takes the connection and says nothing, as a frozen
        # server does.
        options = {**self.endpoint.options(), "servers": [server]}
        self.client.wants_tls = self.endpoint.wants_tls(server)
        await cancellable(
            self.client.connect(
                **options,
                allow_reconnect=False,
                # A server is tried twice, at once; nats-py would go on for two minutes.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=SERVER_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=PINGS_OUTSTANDING_MAX,
                error_cb=self._note_error,
                closed_cb=self._on_closed,
                disconnected_cb=self._on_closed,
            )
        )
        self.client.hush()

    @property
    def max_payload_bytes(self) -> int:
        return min(MESSAGE_BYTES_MAX, self.client.max_payload)

    @property
    def buffered_bytes(self) -> int:
        """What the socket has not taken yet."""
        return self.client.unsent_bytes

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

        Raises, before anything is sent: SessionLost; PayloadTooLarge (the server would close the connection);
        InvalidSubject (white space would end the subject, and what follows it be taken for another command).
        """
        if self.is_lost:
            raise SessionLost("the connection is lost")
        size = len(payload) + len(headers)
        if size > self.client.max_payload or size > MESSAGE_BYTES_MAX:
            raise PayloadTooLarge(f"the message to {subject}", size, self.max_payload_bytes)
        if len(subject) > SUBJECT_BYTES_MAX or not subject.isascii():
            _check_length(subject)
        if not subject or " " in subject or "\n" in subject or "\r" in subject or "\t" in subject:
            raise InvalidSubject(f"{subject!r} is no subject: it is empty or has white space in it")
        target = f"{subject} {reply} " if reply else f"{subject} "
        if headers:
            command = f"HPUB {target}{len(headers)} {size}\r\n"
        else:
            command = f"PUB {target}{size}\r\n"
        if not self._buffer:
            self._loop.call_soon(self._flush)
        # Joined once, when they are sent: half a microsecond less for each message of 1 KiB.
        self._buffer += (command.encode(), headers, payload, b"\r\n")
        self._buffered += size
        if self._buffered > FLUSH_BYTES:
            self._flush()

    def request_with(self, subject: str, payload: bytes, callback: ReplyCallback, headers: bytes = b"") -> str:
        """Publishes with a reply inbox; answers its token. `callback` has the reply, None when the session is lost."""
        token = str(next(self._tokens))
        self.publish(subject, payload, self.inbox + token, headers)
        self._replies[token] = callback
        return token

    def request_many_with(self, subject: str, payload: bytes, callback: ReplyCallback) -> str:
        """`request_with` for many replies: `callback` has each until its token is forgotten.

        On the session's own inbox: a subscription for each request cost server and client more than the request.
        """
        token = str(next(self._tokens))
        self.publish(subject, payload, self.inbox + token)
        self._many[token] = callback
        return token

    def forget(self, token: str) -> None:
        """Gives up on replies; the callback is not called any more."""
        self._replies.pop(token, None)
        self._many.pop(token, None)

    async def request(self, subject: str, payload: bytes = b"", timeout_s: float = 5.0, headers: bytes = b"") -> bytes:
        """The reply to one request; raises NoResponders, RequestTimeout, SessionLost and what `publish` raises."""
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
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            # A refused permission is told apart from the request, and in lower case.
            hint = f": {self.last_error}" if subject.lower() in self.last_error else ""
            raise RequestTimeout(f"no reply on {subject} within {timeout_s:g} s{hint}") from None
        finally:
            self.forget(token)

    async def subscribe(self, subject: str, callback: MessageCallback, queue: str = "") -> Subscription:
        """Subscribes; `callback` is called for each message, under the parser. Raises SessionLost, InvalidSubject."""
        if self.is_lost:
            raise SessionLost("the connection is lost")
        try:
            inner = await self.client.subscribe(subject, queue=queue)
        except NatsError as error:
            if self.client.is_connected:
                raise InvalidSubject(f"{subject!r} cannot be subscribed to: {error}") from error
            raise SessionLost("the connection is lost") from error
        self.client.direct[inner._id] = callback
        return Subscription(self, inner._id, inner)

    async def close(self) -> None:
        """Ends the session; what the socket has not taken after 2 s is dropped. Safe to call twice."""
        if not self.is_lost:
            self._flush()
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            await ended(watchdog)
        try:
            await self.client.part(CLOSE_TIMEOUT_S)
        finally:
            self._lose("closed")

    def give_up(self, reason: str) -> None:
        """Ends the session at once: for who finds that it is of no use."""
        self._lose(reason)

    async def flushed(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Waits until the socket has taken what was published; raises SessionLost, RequestTimeout after `timeout_s`."""
        if self.is_lost:
            raise SessionLost("the connection is lost")
        self._flush()
        try:
            async with asyncio.timeout(timeout_s):
                await self.client.drained()
        except TimeoutError:
            raise RequestTimeout(f"the server took not all that was published within {timeout_s:g} s") from None
        except OSError as error:
            raise SessionLost("the connection was lost before everything was sent") from error

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, []
        self._buffered = 0
        if buffer and not self.is_lost:
            self.client.write(b"".join(buffer))

    def _on_reply(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        token = subject[len(self.inbox) :]
        callback = self._replies.pop(token, None) or self._many.get(token)
        if callback is not None:
            callback(data, headers)

    async def _note_error(self, error: Exception) -> None:
        # Raising here would end nats-py's read loop.
        self.last_error = str(error) or type(error).__name__
        if "permissions violation" in self.last_error:
            log.warning("not_permitted", reason=self.last_error)
        else:
            log.debug("connection_error", reason=self.last_error)

    async def _on_closed(self) -> None:
        self._lose(str(self.client.last_error or ""))

    async def _watch(self) -> None:
        """Ends a session whose read loop died: nats-py goes on saying it is connected then."""
        while not self.is_lost:
            await asyncio.sleep(WATCHDOG_INTERVAL_S)
            if not self.client.is_sound:
                self._lose("the client's read loop ended")

    def _lose(self, reason: str) -> None:
        if self.is_lost:
            return
        self.last_error = reason or self.last_error
        self.is_lost = True
        self.lost.set()
        self.client.abort()
        self._buffer.clear()
        replies = [*self._replies.values(), *self._many.values()]
        self._replies.clear()
        self._many.clear()
        hooks, self._on_lost = self._on_lost, []
        for callback in replies:
            _call(lambda callback=callback: callback(None, None))  # type: ignore[misc]
        for hook in hooks:
            _call(hook)

    def _reason(self, error: BaseException) -> str:
        """Why there is no connection, for who reads it on a terminal."""
        text = self.last_error if isinstance(error, NoServersError) else str(error)
        if "uthorization" in text or "uthentication" in text:
            complaint = text.removeprefix("nats: ").strip("'").lower()
            return f"the server refused the credentials ({complaint})"
        if isinstance(error, TimeoutError):
            return "it accepts the connection, if at all, and says nothing"
        return text or type(error).__name__


def _call(callback: Callable[[], None]) -> None:
    """Calls one of many that must all be called."""
    try:
        callback()
    except Exception:
        log.exception("callback_failed")


def _check_length(subject: str) -> None:
    size = len(subject.encode())
    if size > SUBJECT_BYTES_MAX:
        raise PayloadTooLarge(f"the subject {subject[:80]}...", size, SUBJECT_BYTES_MAX)
