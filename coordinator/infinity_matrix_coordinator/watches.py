"""Hears when executions may have ended, by their status messages: quick, but best effort, so whoever waits also looks.

A few waits have a subscription each. Many share one that hears all ends: subscribing and unsubscribing for each
execution cost the server more than a third of what the execution itself did, with 500 in flight.
"""

import asyncio
from types import TracebackType
from typing import Self

from infinity_matrix_actors.state import TERMINAL
from infinity_matrix_bus.session import Session, Subscription
from infinity_matrix_bus.subjects import Subjects

#: Waits with a subscription of their own: what a client hears of others' executions is worth it only above this.
OWN_MAX = 8
#: The shared subscription outlives its last wait by this, so that a client that goes on waiting does not make it again.
LINGER_S = 2.0


class Watch:
    """One execution being waited for; an async context manager."""

    def __init__(self, watches: "Watches", execution: str) -> None:
        self.session = watches.session
        self.execution = execution
        self.own: Subscription | None = None
        self._watches = watches
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._is_hinted = False

    async def __aenter__(self) -> Self:
        await self._watches.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._watches.remove(self)

    def hint(self) -> None:
        """Takes in that the execution may have ended, or that nothing can be heard any more."""
        self._is_hinted = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def hinted(self, timeout_s: float) -> bool:
        """Waits for a hint; False when `timeout_s` passed without one."""
        if not self._is_hinted:
            waiter = self._waiter = self._loop.create_future()
            # A timer and a future: `wait_for` is a task or a context more for each of many thousand waits a second.
            timer = self._loop.call_later(timeout_s, _settle, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
        hinted, self._is_hinted = self._is_hinted, False
        return hinted

    def on_status(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        if not subject.endswith(".running"):
            self.hint()


class Watches:
    """All waits of one client on one session."""

    def __init__(self, session: Session, subjects: Subjects) -> None:
        self.session = session
        self._subjects = subjects
        self._watches: dict[str, set[Watch]] = {}
        self._own = 0
        self._sharers = 0
        self._shared: list[Subscription] = []
        self._sharing = asyncio.Lock()
        self._lingering: asyncio.Task[None] | None = None
        session.when_lost(self._lose)

    def watch(self, execution: str) -> Watch:
        return Watch(self, execution)

    async def add(self, watch: Watch) -> None:
        """Returns when the watch hears; raises SessionLost."""
        if self._own < OWN_MAX and not self._shared:
            self._own += 1
            try:
                watch.own = await self.session.subscribe(self._subjects.status_of(watch.execution), watch.on_status)
            except BaseException:
                self._own -= 1
                raise
        else:
            # Counted first, so that nobody takes the subscription away in between.
            self._sharers += 1
            try:
                await self._share()
            except BaseException:
                self._sharers -= 1
                raise
        self._watches.setdefault(watch.execution, set()).add(watch)

    async def remove(self, watch: Watch) -> None:
        watches = self._watches[watch.execution]
        watches.discard(watch)
        if not watches:
            del self._watches[watch.execution]
        if watch.own is not None:
            self._own -= 1
            await watch.own.close()
            return
        self._sharers -= 1
        if not self._sharers and self._lingering is None:
            self._lingering = asyncio.create_task(self._linger(), name="watches-linger")

    def close(self) -> None:
        """Hears nothing more; a shared subscription ends with the session."""
        self.session.not_when_lost(self._lose)
        for subscription in self._shared:
            self.session.client.direct.pop(subscription.sid, None)
        if self._lingering is not None:
            self._lingering.cancel()

    async def _share(self) -> None:
        async with self._sharing:
            if not self._shared:
                subjects = [self._subjects.all_ends(state) for state in sorted(TERMINAL)]
                self._shared = [await self.session.subscribe(subject, self._on_end) for subject in subjects]

    async def _unshare(self) -> None:
        async with self._sharing:
            if not self._sharers:
                shared, self._shared = self._shared, []
                for subscription in shared:
                    await subscription.close()

    async def _linger(self) -> None:
        await asyncio.sleep(LINGER_S)
        self._lingering = None
        await self._unshare()

    def _on_end(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        for watch in self._watches.get(self._subjects.execution_of_status(subject), ()):
            watch.hint()

    def _lose(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.hint()


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
