"""Quiet attempts: taken or still queued? Plain agents never send `taken`, so their consumer is asked.

One CONSUMER.INFO an agent answers for all its attempts: `delivered.stream_seq` at or above the work's sequence means
taken, below means queued.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.clock import StreamClock

RETRY_DELAY_S = 0.5
#: First sightings remembered; forgetting one only gives an attempt its timeout again.
SEEN_MAX = 100_000
log = get_logger("infinity_matrix.coordinator")


class QuietAttempts:
    """Answers `on_answer(attempt, is_queued, seen_taken_at)` for each attempt asked about."""

    def __init__(
        self,
        api: JetStreamApi,
        subjects: Subjects,
        clock: StreamClock,
        on_answer: Callable[[Attempt, bool, float | None], None],
        sequence_of: Callable[[str, Attempt], int],
    ) -> None:
        self._api = api
        self._subjects = subjects
        self._clock = clock
        self._on_answer = on_answer
        self._sequence_of = sequence_of
        self._asked: dict[str, dict[Attempt, None]] = {}
        self._seen: OrderedDict[Attempt, float] = OrderedDict()
        self._wake = asyncio.Event()

    def ask(self, agent: str, attempt: Attempt) -> None:
        self._asked.setdefault(agent, {})[attempt] = None
        self._wake.set()

    async def run(self) -> None:
        """Answers until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked, {}
            for agent, attempts in asked.items():
                try:
                    await self._answer(agent, list(attempts))
                except InfinityMatrixError as error:
                    log.info("quiet_postponed", agent=agent, reason=str(error))
                    await asyncio.sleep(RETRY_DELAY_S)
                    for attempt in attempts:
                        self.ask(agent, attempt)

    async def _answer(self, agent: str, attempts: list[Attempt]) -> None:
        info = await self._api.consumer_info(self._subjects.work_stream, agent)
        delivered = int(info["delivered"]["stream_seq"]) if info is not None else 0
        for attempt in attempts:
            # Known of all that this owner published, so that one question answers for ten thousand queued attempts.
            sequence = self._sequence_of(agent, attempt) or await self._stored(agent, attempt)
            if sequence is None or sequence > delivered:
                self._seen.pop(attempt, None)
                self._on_answer(attempt, True, None)
                continue
            seen_at = self._seen.setdefault(attempt, self._clock.now())
            if len(self._seen) > SEEN_MAX:
                self._seen.popitem(last=False)
            self._on_answer(attempt, False, seen_at)

    async def _stored(self, agent: str, attempt: Attempt) -> int | None:
        work = await self._api.last_message(self._subjects.work_stream, self._subjects.work(agent, *attempt))
        # No work at all: it was refused so far (the stream is full) or is lost, and waits for its repair. Taken for
        # begun it would be, for an agent that never comes, as good as without its `queue_timeout`. If it was done, its
        # outcome has the subject that a closing would take.
        return None if work is None else work.sequence
