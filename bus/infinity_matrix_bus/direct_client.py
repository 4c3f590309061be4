"""nats-py's client, kept from what would hang it, end its read loop unseen, or print on a user's terminal.

Messages of chosen subscriptions are handed on as plain calls: no task, no queue, no header parsing. The rest mends what
nats-py 2.16.0 does when things break: it waits for a socket that takes no more, and anything raised under its parser
ends the read loop while the client goes on saying that it is connected.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.errors import Error as NatsError

from infinity_matrix_bus import failpoint
from infinity_matrix_bus.direct_parser import DirectParser
from infinity_matrix_bus.log import get_logger

#: subject, reply, payload, raw headers; runs under the parser, so it must be quick. What it raises is logged.
MessageCallback = Callable[[str, str, bytes, bytes | None], None]

CANCEL_AGAIN_S = 0.1
Answer = TypeVar("Answer")

log = get_logger("infinity_matrix.bus")


class DirectClient(Client):
    """One connection to one server; never reconnects."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = DirectParser(self)
        self.direct: dict[int, MessageCallback] = {}
        #: Whether the connection is closed on purpose, so that what was written last still goes out.
        self.is_parting = False
        #: Whether the token, or anything else, may only be sent encrypted.
        self.wants_tls = False

    @property
    def is_sound(self) -> bool:
        """Whether the connection is up and nats-py's own loops, which read and ping, are alive."""
        loops = (self._reading_task, self._ping_interval_task)
        return self.is_connected and all(loop is not None and not loop.done() for loop in loops)

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        transport = self._socket
        return 0 if transport is None else transport.get_write_buffer_size()

    @failpoint.sending
    def write(self, data: bytes) -> None:
        """Gives bytes to the socket; does nothing once it is closing (asyncio would log each such write)."""
        transport = self._socket
        if transport is not None and not transport.is_closing():
            transport.write(data)

    async def drained(self) -> None:
        """Waits until the socket has taken everything; raises ConnectionError when it is closed first."""
        writer = self._writer
        if writer is not None:
            writer.transport.set_write_buffer_limits(0)
            await writer.drain()

    def hush(self) -> None:
        """Keeps asyncio from complaining at the end of every TLS connection that nats-py does not say it is one."""
        transport = self._socket
        if transport is not None and transport.get_extra_info("sslcontext") is not None:
            protocol = transport.get_protocol()
            if hasattr(protocol, "_over_ssl"):
                protocol._over_ssl = True

    def abort(self) -> None:
        """Closes the socket at once, whatever it has not taken yet."""
        transport = self._socket
        if transport is not None:
            # Python 3.11's transport raises this when it has been closed already.
            with contextlib.suppress(AttributeError):
                transport.abort()

    async def part(self, timeout_s: float) -> None:
        """Closes the connection, giving the socket `timeout_s` to take what was written; leaves no task behind."""
        self.is_parting = True
        # Not a timeout: cancelling the wait for a stream's end cancels that wait for everyone.
        timer = asyncio.get_running_loop().call_later(timeout_s, self.abort)
        parting = asyncio.create_task(self.close())
        try:
            # In the end by force: after a TLS handshake that failed the stream's end never comes.
            await asyncio.wait([parting], timeout=timeout_s * 2)
        finally:
            await ended(parting)
            timer.cancel()
            self.abort()
        writer = self._writer
        if writer is not None:
            closing = asyncio.create_task(_closed(writer))
            await asyncio.wait([closing], timeout=timeout_s)
            await ended(closing)
        for loop in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if loop is not None:
                await ended(loop)

    @property
    def _writer(self) -> asyncio.StreamWriter | None:
        return getattr(self._transport, "_io_writer", None)

    @property
    def _socket(self) -> asyncio.WriteTransport | None:
        writer = self._writer
        return None if writer is None else writer.transport

    @failpoint.receiving
    def receive(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> Awaitable[None] | None:
        """Takes a message from the parser; answers what is left to await when it is for nats-py."""
        callback = self.direct.get(sid)
        if callback is None:
            return self._process_msg(sid, subject, reply, data, headers)
        try:
            callback(subject.decode(), reply.decode(), data, headers)
        except Exception:
            log.exception("callback_failed", subject=subject.decode(errors="replace"))
        return None

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception:
            # Anything raised under the parser would end nats-py's read loop and leave a connection that looks alive.
            log.exception("callback_failed", subject=subject.decode(errors="replace"))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.wants_tls and not info.get("tls_required"):
            # nats-py asks for TLS only where the server insists on it, and would say its token in the clear otherwise:
            # also where somebody in between has taken that out of what the server says.
            if not info.get("tls_available"):
                raise NatsError("the server offers no TLS, and nothing is said to it without")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # A flush that timed out cancelled its future; setting a result on that would end the read loop.
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _flush_pending(self, force_flush: bool = False) -> None:
        # At once, and not by nats-py's flusher, which stands still while the socket takes no more: who puts into its
        # queue then may wait for ever.
        pending, self._pending = self._pending, []
        self._pending_data_size = 0
        if pending and self.is_connected:
            self.write(b"".join(pending))

    async def _request_new_style(self, *arguments: Any, **options: Any) -> Any:
        return await cancellable(super()._request_new_style(*arguments, **options))

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # nats-py waits until the socket has taken everything before it reports the loss: a frozen server would put
        # that off for ever.
        self._pending.clear()
        self._pending_data_size = 0
        if not self.is_parting:
            self.abort()
        await super()._close(status, do_cbs)


async def cancellable(work: Coroutine[Any, Any, Answer]) -> Answer:
    """What `work` answers; a cancellation ends it, also where nats-py swallows it.

    In a task of its own: in Python 3.11 `wait_for`, which nats-py uses, can swallow a cancellation, and who is told to
    stop would go on to what comes next, and wait there for ever.
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait([working])
    except asyncio.CancelledError:
        await ended(working)
        raise
    return working.result()


async def _closed(writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


async def ended(task: "asyncio.Task[Any]") -> None:
    """Cancels a task and waits for its end, whatever it ends with.

    It is cancelled again and again: in Python 3.11 `wait_for`, which nats-py uses, can swallow a cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("task_failed", task=task.get_name(), reason=str(error))
