"""The sweep of one shard: every while it looks for what was lost without anybody being told.

Work that is acked too early, purged, or gone with its stream is published again; consumers that are gone are made
again; slots whose holder has ended are freed; works that kill their agents, and works nobody is given any more, are
taken out.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.fact import TaskError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, shard_of

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.begun_again import begun_again
from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.leftovers import Leftovers
from infinity_matrix_coordinator.mailbox import Mailbox
from infinity_matrix_coordinator.repairs import BATCH_MAX, Repairs
from infinity_matrix_coordinator.slots import SlotKeys, Ticket
from infinity_matrix_coordinator.worn import WornWorks

SWEEP_INTERVAL_S = 30.0
#: Work younger than this is not swept: its publish may be under way.
SWEEP_AGE_MIN_S = 5.0
ConsumerMender = Callable[[set[str]], Awaitable[None]]
log = get_logger("infinity_matrix.coordinator")


class SweptShard(Protocol):
    """What a sweep needs of its shard."""

    number: int
    is_live: bool
    clock: StreamClock
    mailbox: Mailbox
    slots: SlotKeys

    def heed(self, info: dict[str, Any]) -> None:
        """Learns from what the server says of the log."""

    def condemn(self, attempt: Attempt, error: TaskError) -> None:
        """Closes an attempt whose work kills agents."""


class Sweep:
    """Sweeps one shard, and the first shard's also what belongs to none."""

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        shards: int,
        shard: SweptShard,
        repairs: Repairs,
        mend_consumers: ConsumerMender,
        interval_s: float,
    ) -> None:
        self._session = session
        self._subjects = subjects
        self._shards = shards
        self._shard = shard
        self._repairs = repairs
        self._mend_consumers = mend_consumers
        self._interval_s = interval_s
        self._api = JetStreamApi(session)
        self._worn = WornWorks(
            session,
            subjects,
            shard.clock,
            lambda execution: shard_of(execution, shards) == shard.number,
            self._begun_again,
            shard.condemn,
            repairs.add,
        )
        self._leftovers = Leftovers(self._api, subjects) if shard.number == 0 else None

    async def run(self) -> None:
        """Sweeps every `interval_s` while the shard is live, until cancelled."""
        try:
            await self._worn.listen()
        except SessionLost:
            return
        while True:
            await asyncio.sleep(self._interval_s)
            if not self._shard.is_live:
                continue
            for step in (self._look_at_log, self._free_slots, self._look_at_works, self._take_out, self._repair_lost):
                # What one of them cannot do, because of a consumer that is broken say, keeps nobody from the others.
                try:
                    await step()
                except InfinityMatrixError as error:
                    log.info("sweep_postponed", shard=self._shard.number, step=step.__name__, reason=str(error))

    async def close(self) -> None:
        await self._worn.close()

    async def _look_at_log(self) -> None:
        shard = self._shard
        shard.heed(await self._api.stream_info(self._subjects.facts_stream(shard.number)) or {})
        shard.mailbox.drop_orphans(shard.clock.now())

    async def _free_slots(self) -> None:
        await self._shard.slots.sweep(self._api, self._shard.clock.now(), self._has_finished)

    async def _look_at_works(self) -> None:
        waited_for = self._shard.mailbox.open_attempts(self._young())
        await self._mend_consumers(set(waited_for))
        await self._worn.look(waited_for)

    async def _take_out(self) -> None:
        if self._leftovers is not None:
            await self._leftovers.take_out()

    async def _repair_lost(self) -> None:
        young = self._young()
        attempts = [
            (execution.id, task, actor.attempt)
            for execution in list(self._shard.mailbox.executions.values())
            for task in (*execution.open, *execution.notices)
            if ((actor := execution.tasks[task]).dispatched_at or 0.0) < young
        ]
        for start in range(0, len(attempts), BATCH_MAX):
            for attempt in await self._repairs.absent(attempts[start : start + BATCH_MAX]):
                self._repairs.add(attempt)

    def _young(self) -> float:
        """Work that was published later than this may still be under way."""
        return self._shard.clock.now() - min(SWEEP_AGE_MIN_S, self._interval_s)

    async def _has_finished(self, ticket: Ticket) -> bool:
        """Whether who has a slot has ended, or is not there: a backup may hold its key and not the execution."""
        shard = shard_of(ticket.execution, self._shards)
        stream = self._subjects.facts_stream(shard)
        ended = self._subjects.finished(shard, ticket.execution, ticket.n)
        if await self._api.last_message(stream, ended) is not None:
            return True
        if await self._api.last_message(stream, self._subjects.started(shard, ticket.execution)) is not None:
            return False
        # Open for longer than the log keeps facts, perhaps.
        record = self._subjects.checkpoint(shard, ticket.execution)
        return await self._api.last_message(self._subjects.bucket_stream("checkpoints"), record) is None

    async def _begun_again(self, attempt: Attempt) -> int | None:
        execution = self._shard.mailbox.executions.get(attempt[0])
        if execution is None:
            return None
        return await begun_again(self._session, self._subjects, execution.plan.definition.name, *attempt)
