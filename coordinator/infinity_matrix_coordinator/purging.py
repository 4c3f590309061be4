"""Purging: a log that is nearly full lets go of executions that ended, whole ones, the oldest first.

Only those whose end is before the mark, so that no new owner needs to read it, and never one that is open: this owner
holds those, in memory or as a checkpoint.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.fill import fill_of
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.log_reader import Entry, LogReader
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.checkpoints import Checkpoints
from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.slots import KEY_PREFIX

#: Above this share of its `max_bytes` a log is purged, down to the other. Both are below the share at which starts are
#: refused: room is made before anybody is turned away.
PURGE_FILL_MIN = 0.60
PURGE_FILL_TARGET = 0.55
LOOK_INTERVAL_S = 5.0
#: Clients still read the end of what ended just now.
PURGE_AGE_MIN_S = 60.0
#: Ends read, and so executions purged, by one turn; what is left follows.
ENDS_A_TURN = 2000
ENDS_TIMEOUT_S = 10.0
#: A purge takes the server 10 ms; it answers others meanwhile.
PURGES_AT_ONCE = 4
log = get_logger("infinity_matrix.coordinator")


class Holds(Protocol):
    """A place where executions stand."""

    def __contains__(self, execution: str) -> bool: ...


class Purging:
    """Looks after the size of one log, on one session."""

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        shard: int,
        clock: StreamClock,
        checkpoints: Checkpoints,
        held: Sequence[Holds],
        *,
        interval_s: float = LOOK_INTERVAL_S,
        age_min_s: float = PURGE_AGE_MIN_S,
    ) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._subjects = subjects
        self._shard = shard
        self._stream = subjects.facts_stream(shard)
        self._clock = clock
        self._checkpoints = checkpoints
        #: Where executions stand that are open, or of which anything may be needed yet.
        self._held = held
        self._interval_s = interval_s
        self._age_min_s = age_min_s
        #: Ends before this place are purged, or were open again.
        self._cursor = 1
        #: The share of its `max_bytes` the log holds, and how many executions were purged, for people.
        self.filled = 0.0
        self.purged = 0

    async def run(self, is_live: Callable[[], bool]) -> None:
        """Looks until cancelled, once the owner has read the log: before that it knows not what is open."""
        while True:
            await asyncio.sleep(self._interval_s)
            if not is_live():
                continue
            try:
                await self._look()
            except SessionLost:
                return
            except InfinityMatrixError as error:
                log.info("purging_postponed", shard=self._shard, reason=str(error))

    async def _look(self) -> None:
        if await self._fill() <= PURGE_FILL_MIN:
            return
        before = self.purged
        while self.filled > PURGE_FILL_TARGET:
            ended = await self._ended()
            if not ended:
                # From the beginning next time: what was open again may have ended since.
                self._cursor = 1
                break
            for start in range(0, len(ended), PURGES_AT_ONCE * 16):
                await self._purge(ended[start : start + PURGES_AT_ONCE * 16])
                if await self._fill() <= PURGE_FILL_TARGET:
                    break
        if self.purged > before:
            log.warning("log_purged", shard=self._shard, executions=self.purged - before, filled=round(self.filled, 3))

    async def _fill(self) -> float:
        info = await self._api.stream_info(self._stream)
        self.filled = 0.0 if info is None else fill_of(info)
        return self.filled

    async def _ended(self) -> list[tuple[str, int]]:
        """The executions of the next ends, oldest first, that may go; with the places of their ends."""
        before = self._checkpoints.mark.sequence
        young = self._clock.now() - self._age_min_s
        entries: list[Entry] = []
        done = asyncio.Event()

        def take(entry: Entry) -> None:
            if entry.sequence >= before or entry.at > young or len(entries) >= ENDS_A_TURN:
                done.set()
                return
            entries.append(entry)
            if entry.pending == 0:
                done.set()

        reader = LogReader(
            self._session,
            self._stream,
            take,
            from_sequence=self._cursor,
            filters=(self._subjects.all_finished(self._shard),),
            capacity=lambda: 0 if done.is_set() else ENDS_A_TURN,
        )
        await reader.open()
        self._session.when_lost(done.set)
        try:
            if reader.pending:
                async with asyncio.timeout(ENDS_TIMEOUT_S):
                    await done.wait()
        except TimeoutError:
            log.debug("ends_not_read", shard=self._shard)
        finally:
            self._session.not_when_lost(done.set)
            await reader.close()
        found: dict[str, int] = {}
        for entry in entries:
            subject = self._subjects.parse_fact(entry.subject)
            if subject is not None and subject.is_genuine and not self._is_held(subject.execution):
                found[subject.execution] = entry.sequence
        if entries and not found:
            # All of these are open again; those after them may not be.
            self._cursor = entries[-1].sequence + 1
            return await self._ended()
        return list(found.items())

    def _is_held(self, execution: str) -> bool:
        return execution.startswith(KEY_PREFIX) or any(execution in place for place in self._held)

    async def _purge(self, ended: list[tuple[str, int]]) -> None:
        room = asyncio.Semaphore(PURGES_AT_ONCE)

        async def purge(execution: str) -> None:
            async with room:
                # Asked once more: it may have been taken up again a moment ago.
                if not self._is_held(execution):
                    await self._api.purge(self._stream, self._subjects.facts_of(self._shard, execution))
                    self.purged += 1

        await asyncio.gather(*(purge(execution) for execution, _ in ended))
        self._cursor = max(self._cursor, ended[-1][1] + 1)
