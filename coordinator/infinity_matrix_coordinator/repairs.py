"""Repairs: publishing work again without ever publishing what is done.

The order is the point. First see that the subject is absent from `IM_WORK`, then read the log's head, fold up to it,
and publish what is still open. An outcome precedes its ack, so work that is absent and then still open was never
finished. A repair says `"repair": true`, so that the agent asks before it runs. It goes out with its Msg-Id, which
burns it for owners that lag, and without it where the server remembers the id (of work that was purged or acked) and
swallows it. Repairs come in batches: a lagging owner gets faster, not slower.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.backlog import Attempt

BATCH_MAX = 256
RETRY_DELAY_S = 0.5
log = get_logger("infinity_matrix.coordinator")


class RepairTarget(Protocol):
    """What a repair needs of its shard."""

    def agent_of(self, attempt: Attempt) -> str | None:
        """The agent of an attempt that is open, None when it is not."""

    def publish_repair(self, attempt: Attempt) -> None: ...

    async def read_to_head(self) -> None:
        """Returns once everything that is in the log now is folded."""


class Repairs:
    """The attempts of one shard that wait for repair, and the task that repairs them."""

    def __init__(self, api: JetStreamApi, subjects: Subjects, target: RepairTarget) -> None:
        self._api = api
        self._subjects = subjects
        self._target = target
        self._waiting: dict[Attempt, None] = {}
        self._wake = asyncio.Event()

    def add(self, attempt: Attempt) -> None:
        self._waiting[attempt] = None
        self._wake.set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def run(self) -> None:
        """Repairs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = list(self._waiting)[:BATCH_MAX]
                for attempt in batch:
                    del self._waiting[attempt]
                await self._guarded(self._repair, batch)

    async def _guarded(self, repair: Callable[[list[Attempt]], Awaitable[None]], batch: list[Attempt]) -> None:
        try:
            await repair(batch)
        except InfinityMatrixError as error:
            log.info("repair_postponed", attempts=len(batch), reason=str(error))
            for attempt in batch:
                self._waiting[attempt] = None
            await asyncio.sleep(RETRY_DELAY_S)

    async def _repair(self, batch: list[Attempt]) -> None:
        absent = await self.absent(batch)
        if not absent:
            return
        await self._target.read_to_head()
        for attempt in absent:
            self._target.publish_repair(attempt)

    async def absent(self, batch: list[Attempt]) -> list[Attempt]:
        """Those of the open attempts that have no work in `IM_WORK`."""
        subjects: dict[str, Attempt] = {}
        for attempt in batch:
            agent = self._target.agent_of(attempt)
            if agent is not None:
                subjects[self._subjects.work(agent, *attempt)] = attempt
        if not subjects:
            return []
        stored = await self._api.multi_last(self._subjects.work_stream, list(subjects))
        present = {message.subject for message in stored or ()}
        return [attempt for subject, attempt in subjects.items() if subject not in present]
