"""The supervised connection: one session after another, for ever, until it is closed.

Whoever needs subscriptions, consumers or pulls adds a listener; each new session calls all of them. Nothing is buffered
across sessions.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from infinity_matrix_actors.errors import InfinityMatrixError, Unreachable

from infinity_matrix_bus.direct_client import ended
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Endpoint, Session, SessionLost

RECONNECT_DELAY_MIN_S = 0.05
RECONNECT_DELAY_MAX_S = 2.0
#: Before all is tried again because a listener could not set up.
LISTENER_RETRY_S = 0.25

Listener = Callable[[Session], Awaitable[None]]
log = get_logger("infinity_matrix.bus")


class Connection:
    """Keeps a session to an endpoint. `await open()` first, `await close()` at the end."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session: Session | None = None
        self._listeners: list[Listener] = []
        self._supervisor: asyncio.Task[None] | None = None
        self._setup: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self.is_closed = False
        #: Sessions made so far.
        self.sessions = 0

    @property
    def session(self) -> Session:
        """The session of now; raises SessionLost while there is none."""
        session = self._session
        if session is None or session.is_lost:
            raise SessionLost(f"not connected to {self.endpoint.name}")
        return session

    @property
    def is_connected(self) -> bool:
        return self._session is not None and not self._session.is_lost

    async def open(self) -> "Connection":
        """Connects; raises Unreachable when the first try fails. Later losses are mended in the background."""
        self._session = await Session.connect(self.endpoint)
        self.sessions += 1
        self._connected.set()
        self._supervisor = asyncio.create_task(self._supervise(), name="connection-supervisor")
        return self

    async def add_listener(self, listener: Listener) -> None:
        """Calls `listener` with the session of now, if there is one, and with every later one.

        Raises what the first call raises, and the listener is not added then; but a session that is lost during the
        call is no failure: the listener is called with the next one. A listener that fails later on a session that
        is alive ends that session, and all listeners are called with a new one.
        """
        self._listeners.append(listener)
        session = self._session
        if session is None or session.is_lost:
            return
        try:
            await listener(session)
        except InfinityMatrixError:
            if not session.is_lost:
                self.remove_listener(listener)
                raise
        except BaseException:
            self.remove_listener(listener)
            raise

    def remove_listener(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    async def connected(self, timeout_s: float) -> Session:
        """The session, waiting for one up to `timeout_s`; raises Unreachable."""
        session = self._session
        if session is not None and not session.is_lost and not self.is_closed:
            return session
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_connected and not self.is_closed:
                    await self._connected.wait()
                    if not self.is_connected:
                        # The supervisor has not seen the loss yet.
                        self._connected.clear()
        if self.is_closed or not self.is_connected:
            reason = "the connection is closed" if self.is_closed else f"no connection for {timeout_s:g} s"
            raise Unreachable(self.endpoint.shown_url, reason)
        return self.session

    async def close(self) -> None:
        """Ends the session and the supervision; safe to call twice."""
        self.is_closed = True
        self._connected.set()
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            await ended(supervisor)
        await self._end_setup()
        if self._session is not None:
            await self._session.close()

    async def _supervise(self) -> None:
        while not self.is_closed:
            assert self._session is not None
            await self._session.lost.wait()
            self._connected.clear()
            await self._end_setup()
            await self._session.close()
            log.info("connection_lost", name=self.endpoint.name, reason=self._session.last_error)
            self._session = await self._reconnect()
            self.sessions += 1
            self._connected.set()
            log.info("connected_again", name=self.endpoint.name)
            # Beside the supervision, so that a listener that waits for ever does not hide the next loss.
            self._setup = asyncio.create_task(self._call_listeners(self._session), name="connection-setup")

    async def _reconnect(self) -> Session:
        delay_s = RECONNECT_DELAY_MIN_S
        reason = ""
        while True:
            try:
                return await Session.connect(self.endpoint)
            except Unreachable as error:
                if str(error) != reason:
                    # Once, and again when it is something else: nobody but the log can say that a token is wrong now.
                    reason = str(error)
                    log.info("not_connected", name=self.endpoint.name, reason=reason)
                # Jittered, so that a thousand agents do not come back in one instant.
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
                delay_s = min(delay_s * 2, RECONNECT_DELAY_MAX_S)

    async def _call_listeners(self, session: Session) -> None:
        for listener in list(self._listeners):
            if session.is_lost:
                return
            try:
                await listener(session)
            except InfinityMatrixError as error:
                if session.is_lost:
                    return
                log.warning("listener_failed", reason=str(error))
            except Exception:
                log.exception("listener_failed")
            else:
                continue
            # A listener that cannot set up leaves its owner deaf: try it all again on a new session.
            await asyncio.sleep(LISTENER_RETRY_S)
            session.give_up("a listener could not set up")
            return

    async def _end_setup(self) -> None:
        setup, self._setup = self._setup, None
        if setup is not None:
            await ended(setup)
