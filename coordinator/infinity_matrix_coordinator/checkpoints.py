"""Checkpoints of one shard: what is open for long is stored, and what only waits leaves memory until it is called.

Short executions never touch the store. The mark follows what is stored: a new owner reads the records, then the log
from the mark on, and skips of each execution what its record has folded.
"""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol, TypeVar

from infinity_matrix_actors.effect import Arm
from infinity_matrix_actors.errors import InfinityMatrixError, PayloadTooLarge, StorageUnavailable
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.checkpoint_store import Checkpoint, CheckpointStore, Mark
from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.execution import CLEAN
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.log_identity import LogIdentity
from infinity_matrix_coordinator.mailbox import Mailbox, is_decided_here
from infinity_matrix_coordinator.snapshot import restore, snapshot

#: How long an execution is open, or has been changed, before it is stored.
CHECKPOINT_AFTER_S = 20.0
CHECKPOINT_INTERVAL_S = 5.0
#: How long the record of an execution that ended is kept while the mark is held before its end. Whoever has not read
#: the end by then was away for so long that it is a new owner, and reads up to it before it does anything.
ENDED_KEPT_S = 30.0
#: Records written at once, and by one turn; what is left is written by the next.
WRITES_AT_ONCE = 128
WRITES_A_TURN = 4096
#: With more executions of a shard in memory than this, those that only wait are stored at once and leave it,
ACTIVE_MAX = 2500
#: down to this share of it. Where too few of them wait it is tried again when there are so many times more.
ACTIVE_SHARE = 0.9
CROWD_GROWTH = 1.25
#: With more than this the log is read no faster than they leave. Those with work under way are not held up by that.
IN_MEMORY_MAX = 5000
#: What waits for less stays in memory: it would be back at once.
SOON_S = 10.0
#: Ends looked for with one request.
ENDS_A_REQUEST = 256
Item = TypeVar("Item")
log = get_logger("infinity_matrix.coordinator")


class CheckpointTarget(Protocol):
    """What the checkpoints need of their shard."""

    mailbox: Mailbox
    clock: StreamClock
    is_live: bool

    @property
    def next_sequence(self) -> int: ...

    def position(self) -> int: ...

    def note_identity(self) -> LogIdentity | None: ...

    def read_on(self) -> None:
        """Reads the log again, where that had to wait."""
        ...

    def is_awaited(self, execution: str) -> bool:
        """Whether facts of it are on their way to it: it must be there when they come."""
        ...

    async def plan_of_digest(self, digest: str) -> Plan | None: ...


class Checkpoints:
    """The records of one shard, as this owner knows them."""

    def __init__(
        self,
        store: CheckpointStore,
        target: CheckpointTarget,
        api: JetStreamApi,
        subjects: Subjects,
        shard: int,
        after_s: float = CHECKPOINT_AFTER_S,
    ) -> None:
        self._store = store
        self._target = target
        self._api = api
        self._subjects = subjects
        self._shard = shard
        self._after_s = after_s
        self._is_crowded = asyncio.Event()
        self._is_letting_go = False
        target.mailbox.crowd_at, target.mailbox.on_crowd = ACTIVE_MAX, self._is_crowded.set
        self._interval_s = min(CHECKPOINT_INTERVAL_S, after_s)
        #: The revision of what is stored of each.
        self._records: dict[str, int] = {}
        #: Executions that ended, with the sequence the mark must pass before their records may go, and since when.
        self._ended: dict[str, tuple[int, float]] = {}
        self._ended_seen = 0
        #: Those being stored, with the first fact that is not in what is stored before.
        self._saving: dict[str, int] = {}
        self.mark = Mark()
        #: Executions that are to go on as soon as they can be read.
        self.postponed: list[str] = []

    # Taking over.

    async def load(
        self, arm: Callable[[str, str | None, float], None], in_the_log: Container[str] | None = None
    ) -> list[str]:
        """Reads the records: what only waits stays where it is and its timers are armed, the rest is restored.

        `in_the_log` is given where the log is not the one that was folded: executions it still has from their start
        are folded from there, and of the others every fact that is left is folded once more. Answers the executions
        restored, which are to be resumed at the head. Raises StorageUnavailable, SessionLost.
        """
        mailbox = self._target.mailbox
        working: list[Checkpoint] = []
        #: Those that ended before and were taken up again, with how often they did.
        ends: dict[str, int] = {}

        def take(checkpoint: Checkpoint) -> None:
            if not is_decided_here(checkpoint.decide):
                # All that matters of it is in its record: the mark may pass.
                mailbox.leave_alone(checkpoint.execution, checkpoint.decide, CLEAN)
                return
            if checkpoint.finishes:
                ends[checkpoint.execution] = checkpoint.finishes
            if in_the_log is not None:
                if checkpoint.execution in in_the_log:
                    self._know(checkpoint)
                else:
                    working.append(replace(checkpoint, folded=0))
            elif checkpoint.is_waiting:
                # Of a hundred thousand no more is kept than this.
                self._know(checkpoint)
                mailbox.passive[checkpoint.execution] = checkpoint.folded
                for task, at in checkpoint.timers:
                    arm(checkpoint.execution, task, at)
            else:
                working.append(checkpoint)

        await self._store.each(take)
        ended = await self._find_ended([*mailbox.passive, *(one.execution for one in working)], ends)
        for execution in ended:
            self._records.pop(execution, None)
            mailbox.passive.pop(execution, None)
        restored = []
        for checkpoint in working:
            if checkpoint.execution in ended:
                continue
            try:
                if await self._restore(checkpoint):
                    restored.append(checkpoint.execution)
            except SessionLost:
                raise
            except StorageUnavailable as error:
                # Its definition, or a part of its state, is out of reach: it waits, and the others go on.
                log.warning("checkpoint_postponed", execution=checkpoint.execution, reason=str(error))
                self._know(checkpoint)
                mailbox.passive[checkpoint.execution] = checkpoint.folded
                self.postponed.append(checkpoint.execution)
        for execution in ended:
            await self._store.delete(execution)
        return restored

    async def activate(self, execution: str) -> bool:
        """Brings an execution that left memory back; answers whether there is one. Raises StorageUnavailable."""
        checkpoint = await self._store.read(execution)
        if checkpoint is None:
            # Another owner saw its end, and took the record out.
            self._target.mailbox.passive.pop(execution, None)
            return False
        return await self._restore(checkpoint)

    async def _restore(self, checkpoint: Checkpoint) -> bool:
        plan = await self._target.plan_of_digest(checkpoint.definition)
        if plan is None:
            raise StorageUnavailable(f"the definition {checkpoint.definition[:16]} is not readable")
        try:
            actor = restore(await self._store.snapshot_of(checkpoint), plan, CLEAN)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            log.error("checkpoint_unreadable", execution=checkpoint.execution, reason=reason)
            return False
        actor.folded = checkpoint.folded
        self._know(checkpoint)
        self._target.mailbox.restored(actor)
        return True

    def _know(self, checkpoint: Checkpoint) -> None:
        self._records[checkpoint.execution] = checkpoint.revision

    async def _find_ended(self, executions: Sequence[str], ends: Mapping[str, int]) -> set[str]:
        """Executions that ended before the mark: a lagging owner may have stored one again. Nobody reads their ends."""
        found: set[str] = set()
        stream = self._subjects.facts_stream(self._shard)
        for some in _chunks(executions, ENDS_A_REQUEST):
            subjects = {self._subjects.finished(self._shard, one, ends.get(one, 0) + 1): one for one in some}
            for message in await self._api.multi_last(stream, list(subjects)) or ():
                if message.sequence < self.mark.sequence:
                    found.add(subjects[message.subject])
        return found

    @property
    def is_behind(self) -> bool:
        """There are more executions in memory than may be, and some are on their way out of it."""
        return self._is_letting_go and len(self._target.mailbox.executions) > IN_MEMORY_MAX

    def __contains__(self, execution: str) -> bool:
        """Whether anything of an execution is stored, or being stored."""
        return execution in self._records or execution in self._ended or execution in self._saving

    # Storing.

    def position(self, next_sequence: int) -> int:
        """The sequence a new owner must read from, as far as it hangs on what is being stored."""
        return min([next_sequence, *self._saving.values()])

    async def run(self) -> None:
        """Stores, raises the mark and tidies until cancelled; between these turns it lets a crowd leave memory."""
        loop = asyncio.get_running_loop()
        heads: deque[int] = deque(maxlen=max(1, round(self._after_s / self._interval_s)))
        turn_at = loop.time() + self._interval_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(turn_at):
                    await self._is_crowded.wait()
            self._is_crowded.clear()
            if self._target.is_live:
                await self._guarded(self.thin_out())
            if loop.time() < turn_at:
                continue
            turn_at = loop.time() + self._interval_s
            if self._target.is_live:
                before = heads[0] if len(heads) == heads.maxlen else 0
                await self._guarded(self._turn(before))
                heads.append(self._target.next_sequence)

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except SessionLost:
            return
        except InfinityMatrixError as error:
            log.info("checkpoints_postponed", shard=self._shard, reason=str(error))

    async def _turn(self, before: int) -> None:
        await self.save(before)
        position = self._target.position()
        if position > self.mark.sequence:
            self.mark = await self._store.raise_mark(self.mark, position, self._target.note_identity())
        await self._tidy()

    async def save(self, before: int) -> None:
        """Stores every execution with a fact older than the sequence `before` that is not stored."""
        executions = self._target.mailbox.executions
        due = [one for one in executions.values() if one.sequence < before and not one.is_decided]
        for chunk in _chunks(due[:WRITES_A_TURN], WRITES_AT_ONCE):
            await asyncio.gather(*(self._save(execution) for execution in chunk))

    async def thin_out(self) -> None:
        """Lets executions that only wait leave memory, the oldest first, where there are too many in it."""
        mailbox = self._target.mailbox
        executions = mailbox.executions
        # Not called again while at it, nor before the next turn when the store fails.
        mailbox.crowd_at = sys.maxsize
        before = len(executions)
        wanted, left = min(before - int(ACTIVE_MAX * ACTIVE_SHARE), WRITES_A_TURN), 0
        if before > ACTIVE_MAX:
            soon = self._target.clock.now() + SOON_S
            waiting = (one for one in executions.values() if one.sequence < CLEAN and _only_waits(one, soon))
            leaving = list(islice(waiting, wanted))
            self._is_letting_go = bool(leaving)
            try:
                for chunk in _chunks(leaving, WRITES_AT_ONCE):
                    await asyncio.gather(*(self._save(execution) for execution in chunk))
            finally:
                self._is_letting_go = False
            left = sum(one.id not in executions for one in leaving)
            self._target.read_on()
        has_failed = left < wanted // 2
        mailbox.crowd_at = max(ACTIVE_MAX, int((before - left) * CROWD_GROWTH)) if has_failed else ACTIVE_MAX
        if len(executions) > mailbox.crowd_at:
            # Too many for one turn, or more came meanwhile.
            self._is_crowded.set()

    async def _save(self, execution: ExecutionActor) -> None:
        if execution.id in self._saving or self._target.mailbox.executions.get(execution.id) is not execution:
            return
        timers = tuple((one.task, one.at) for one in execution.outstanding() if isinstance(one, Arm))
        checkpoint = Checkpoint(
            execution.id,
            execution.started.definition,
            execution.folded,
            timers,
            _only_waits(execution),
            execution.finishes,
            None,
            self._records.get(execution.id, 0),
            execution.plan.definition.name,
            str(execution.state),
            execution.started.at,
            execution.started.decide,
        )
        self._saving[execution.id] = first = execution.sequence
        execution.sequence = CLEAN
        try:
            revision = await self._store.save(checkpoint, snapshot(execution))
            if revision is None:
                await self._adopt(execution, first)
            else:
                self._records[execution.id] = revision
        except PayloadTooLarge as error:
            # It keeps its place in the log instead, for as long as that is kept.
            execution.sequence = min(first, execution.sequence)
            log.error("checkpoint_too_large", execution=execution.id, reason=str(error))
        except BaseException:
            execution.sequence = min(first, execution.sequence)
            raise
        finally:
            del self._saving[execution.id]
        if execution.sequence == CLEAN and _only_waits(execution) and not self._target.is_awaited(execution.id):
            self._target.mailbox.passivate(execution)

    async def _adopt(self, execution: ExecutionActor, first: int) -> None:
        """Another owner stored it: what is folded as far is as good as this owner's own."""
        stored = await self._store.read(execution.id)
        if stored is not None:
            self._know(stored)
        if stored is None or stored.folded < execution.folded:
            execution.sequence = min(first, execution.sequence)

    async def _tidy(self) -> None:
        """Takes out the records of executions whose end nobody needs to read any more.

        Where something holds the mark for long they must be gone before their ends are: an end that is too old for the
        log would leave a record of an execution that goes on.
        """
        mailbox = self._target.mailbox
        now = asyncio.get_running_loop().time()
        if mailbox.ended != self._ended_seen:
            self._ended_seen = mailbox.ended
            for execution in self._records.keys() - mailbox.executions.keys() - mailbox.passive.keys():
                # One that stands still in quarantine has not ended: its record may be all there is of it.
                if execution not in mailbox:
                    self._ended.setdefault(execution, (self._target.next_sequence, now))
        for execution, (sequence, since) in list(self._ended.items()):
            if execution in mailbox.executions:
                del self._ended[execution]
            elif self.mark.sequence >= sequence or now - since > ENDED_KEPT_S:
                await self._store.delete(execution)
                del self._ended[execution]
                self._records.pop(execution, None)


def _only_waits(execution: ExecutionActor, soon: float = 0.0) -> bool:
    """Nothing of it is under way: only a fact goes on with it, or a timer that is not due before `soon`."""
    return not (
        execution.open
        or execution.notices
        or execution.calls
        or execution.holds
        or execution.stopped_at is not None
        or execution.is_decided
        or any(
            actor.closed or (actor.retry_at is not None and actor.retry_at < soon and actor.is_delayed)
            for actor in execution.tasks.values()
        )
    )


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
