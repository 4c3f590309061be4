"""The supervised connection: one session after another, for ever, until it is closed.

Whoever needs subscriptions, consumers or pulls adds a listener; each new session calls all of them. Nothing is buffered
across sessions.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog
from infinity_matrix_actors.errors import InfinityMatrixError, Unreachable

from infinity_matrix_bus.session import Endpoint, Session, SessionLost

RECONNECT_DELAY_MIN_S = 0.05
RECONNECT_DELAY_MAX_S = 2.0

Listener = Callable[[Session], Awaitable[None]]
log = structlog.get_logger("infinity_matrix.bus")


class Connection:
    """Keeps a session to an endpoint. `await open()` first, `await close()` at the end."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session: Session | None = None
        self._listeners: list[Listener] = []
        self._supervisor: asyncio.Task[None] | None = None
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
        """Calls `listener` with the session of now and with every later one. Raises what the first call raises."""
        self._listeners.append(listener)
        if self.is_connected:
            await listener(self.session)

    def remove_listener(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    async def connected(self, timeout_s: float) -> Session:
        """The session, waiting for one up to `timeout_s`; raises Unreachable."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not self.is_connected:
            remaining_s = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._connected.wait(), max(0.0, remaining_s))
            except TimeoutError:
                raise Unreachable(self.endpoint.url.rpartition("@")[2], f"no connection for {timeout_s:g} s") from None
            if not self.is_connected:
                self._connected.clear()
        return self.session

    async def close(self) -> None:
        """Ends the session and the supervision; safe to call twice."""
        self.is_closed = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _supervise(self) -> None:
        while True:
            assert self._session is not None
            await self._session.lost.wait()
            self._connected.clear()
            await self._session.close()
            log.info("connection_lost", name=self.endpoint.name, reason=self._session.last_error)
            self._session = await self._reconnect()
            self.sessions += 1
            self._connected.set()
            log.info("connected_again", name=self.endpoint.name)
            await self._call_listeners(self._session)

    async def _reconnect(self) -> Session:
        delay_s = RECONNECT_DELAY_MIN_S
        while True:
            try:
                return await Session.connect(self.endpoint)
            except Unreachable:
                # Jittered, so that a thousand agents do not come back in one instant.
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
                delay_s = min(delay_s * 2, RECONNECT_DELAY_MAX_S)

    async def _call_listeners(self, session: Session) -> None:
        for listener in list(self._listeners):
            try:
                await listener(session)
            except InfinityMatrixError as error:
                if session.is_lost:
                    return
                log.warning("listener_failed", reason=str(error))
                # A listener that cannot set up leaves its owner deaf: try it all again on a new session.
                await asyncio.sleep(RECONNECT_DELAY_MIN_S)
                await session.close()
                return
