"""Heartbeats: when an agent last showed progress, heard on its status subject. Only what is asked about is listened to.

A heartbeat is best effort: what was said while nobody listened counts as said when the listening began.
"""

import asyncio
from collections.abc import Callable

from infinity_matrix_bus.session import Session, Subscription
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.clock import StreamClock

#: Attempts listened to at once; those beyond are taken to be alive until one of these ends.
LISTENED_MAX = 100_000


class Heartbeats:
    """Answers `on_answer(attempt, seen_at)` for each attempt asked about."""

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        clock: StreamClock,
        on_answer: Callable[[Attempt, float | None], None],
    ) -> None:
        self._session = session
        self._subjects = subjects
        self._clock = clock
        self._on_answer = on_answer
        self._seen: dict[Attempt, float] = {}
        self._asked: list[Attempt] = []
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None

    def ask(self, execution: str, task: str, attempt: int) -> None:
        self._asked.append((execution, task, attempt))
        self._wake.set()

    async def run(self) -> None:
        """Answers until cancelled. The first question begins the listening, so that nobody else pays for it."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._subscription is None:
                    subject = self._subjects.all_progress
                    self._subscription = await self._session.subscribe(subject, self._hear)
                asked, self._asked = self._asked, []
                for attempt in asked:
                    if attempt not in self._seen and len(self._seen) >= LISTENED_MAX:
                        self._seen.pop(next(iter(self._seen)))
                    # One that is asked about for the first time has been listened to only from now on.
                    self._on_answer(attempt, self._seen.setdefault(attempt, self._clock.now()))
        finally:
            if self._subscription is not None and not self._session.is_lost:
                await self._subscription.close()

    def _hear(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        attempt = self._subjects.parse_progress(subject)
        if attempt in self._seen:
            self._seen[attempt] = self._clock.now()
