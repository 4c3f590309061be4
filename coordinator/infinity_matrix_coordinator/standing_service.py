"""Tells how this coordinator stands, and folds again what it holds still, when somebody asks all coordinators."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from infinity_matrix_bus.codec import Undecodable, decode_record, encode
from infinity_matrix_bus.session import Session, Subscription
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.shard import Shard
from infinity_matrix_coordinator.standing import REFOLD, STANDING, Quarantined, ShardStanding, Standing

#: Quarantined executions told of by one coordinator; the oldest.
QUARANTINED_MAX = 100


class StandingService:
    """Answers for one coordinator on one session; `shards` are those it runs now."""

    def __init__(
        self, session: Session, subjects: Subjects, instance: str, shards: Callable[[], Mapping[int, Shard]]
    ) -> None:
        self._session = session
        self._subjects = subjects
        self._instance = instance
        self._shards = shards
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> "StandingService":
        for verb, answer in ((STANDING, self._on_standing), (REFOLD, self._on_refold)):
            self._subscriptions.append(await self._session.subscribe(self._subjects.api(verb), answer))
        return self

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for subscription in self._subscriptions:
            await subscription.close()

    def _on_standing(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        self._answer(reply, asdict(standing_of(self._instance, self._shards().values())))

    def _on_refold(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        task = asyncio.create_task(self._refold(reply, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _refold(self, reply: str, data: bytes) -> None:
        try:
            execution = str(decode_record(data).get("execution"))
        except Undecodable:
            execution = ""
        for shard in list(self._shards().values()):
            quarantine = shard.mailbox.quarantined.get(execution)
            if quarantine is None or not quarantine.is_fault or not shard.is_live:
                continue
            # Who asks waits longer for one that has it.
            self._answer(reply, {"instance": self._instance, "found": True})
            left = await shard.refold(execution)
            answer: dict[str, Any] = {"instance": self._instance, "found": True, "refolded": left is None}
            if left is not None:
                answer |= {"sequence": left.sequence, "reason": left.reason}
            self._answer(reply, answer)
            return
        self._answer(reply, {"instance": self._instance, "found": False})

    def _answer(self, reply: str, answer: dict[str, Any]) -> None:
        if reply and not self._session.is_lost:
            self._session.publish(reply, encode(answer))


def standing_of(instance: str, shards: Iterable[Shard]) -> Standing:
    """The standing of a coordinator that runs these shards."""
    found: list[ShardStanding] = []
    quarantined: list[Quarantined] = []
    for shard in sorted(shards, key=lambda shard: shard.number):
        mailbox, counters = shard.mailbox, shard.performer.counters
        found.append(
            ShardStanding(
                shard.number,
                shard.is_live,
                len(mailbox.executions) + len(mailbox.parked) + len(mailbox.reopening),
                len(mailbox.passive),
                shard.performer.backlog.held(),
                counters.facts,
                counters.garbage,
                counters.works,
                counters.repairs,
                counters.closings,
                counters.finished,
                counters.dead,
                round(shard.purging.filled, 4),
                shard.purging.purged,
            )
        )
        quarantined += [
            Quarantined(execution, one.sequence, one.reason)
            for execution, one in mailbox.quarantined.items()
            if one.is_fault
        ]
    return Standing(instance, tuple(found), tuple(quarantined[:QUARANTINED_MAX]))
