"""Schedules: executions that begin by themselves, with no leader and no lock.

A due time is claimed by compare-and-set before it may start anything; its execution's id follows from (schedule, due
time), so that whoever starts it, and however often, the log keeps one. A tick that is passed over takes its place in
the log too, as `started` with `"skipped": true`: a coordinator that lags cannot fire it later. Each schedule has a
coordinator that goes first; the others help when that one does nothing for a while.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from zlib import crc32

from infinity_matrix_actors.errors import InfinityMatrixError, UnknownWorkflow
from infinity_matrix_actors.schedule import Schedule
from infinity_matrix_actors.schedule_state import (
    Action,
    ScheduleState,
    claim,
    claim_at,
    decide,
    may_settle,
    missed_until,
    settle,
    without_ended,
)
from infinity_matrix_bus.codec import rfc3339
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.fill import Fills
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.schedules import ScheduleStore, StoredSchedule
from infinity_matrix_bus.session import Session, Subscription
from infinity_matrix_bus.subjects import Subjects, shard_of

from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.members import owner_of
from infinity_matrix_coordinator.schedule_ticks import execution_of, open_executions, stop_for, write_tick

#: How long a schedule's own coordinator has before the others do its work.
HELP_AFTER_S = 2.0
#: Between two looks at the executions a tick waits for, should it not be heard that they end.
BLOCKED_LOOK_S = 1.0
LISTENED_MAX = 16
#: An end is announced a moment before it is in the log.
ANNOUNCED_S = 0.02
FAILURE_DELAY_S = 5.0
#: Changes are heard of at once; what was not heard of is seen after this.
READ_ALL_S = 30.0
#: A change is heard of before it is stored: it is looked for so long after, until it is there.
LOOKS_S = (0.0, 0.02, 0.2, 2.0)
#: Schedules worked on at a time.
ADVANCING_MAX = 32
READ_AT_ONCE = 64
log = get_logger("infinity_matrix.coordinator")


@dataclass(slots=True)
class _Change:
    """A change that was heard of: the revision it takes the place of, and when it is next looked for."""

    replaces: int
    look_at: float
    looks: int = 0


class Schedules:
    """All schedules, on one session. `members` answers the live coordinators, this one among them."""

    def __init__(
        self, session: Session, subjects: Subjects, shards: int, instance: str, members: Callable[[], set[str]]
    ) -> None:
        self._session = session
        self._subjects = subjects
        self._context = (session, subjects, shards)
        self._instance = instance
        self._members = members
        self._store = ScheduleStore(session, subjects)
        self._definitions = DefinitionStore(session, subjects)
        self._reads = GatheredReads(session)
        self._fills = Fills(self._session_of_now)
        self._loop = asyncio.get_running_loop()
        self.clock = StreamClock()
        self._known: dict[str, StoredSchedule] = {}
        #: By the loop's clock: when a schedule is next looked at, should there be something to do for it.
        self._not_before: dict[str, float] = {}
        self._heard: dict[str, _Change] = {}
        self._awake = asyncio.Event()
        self._read_all_at = 0.0
        #: Where a schedule waits for executions: which, and how their ends are heard.
        self._listening: dict[str, tuple[tuple[str, ...], list[Subscription]]] = {}
        #: Schedules for which an end was heard since they were last worked on.
        self._ended: set[str] = set()
        self._advancing: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(ADVANCING_MAX)
        self._owned: tuple[set[str], dict[str, bool]] = (set(), {})

    @property
    def armed(self) -> int:
        """Schedules with something to come."""
        return sum(
            bool(stored.state.waiting) or (stored.state.next_at is not None and not stored.state.is_paused)
            for stored in self._known.values()
        )

    async def _session_of_now(self) -> Session:
        return self._session

    async def run(self) -> None:
        """Fires schedules until the session is lost."""
        self._session.when_lost(self._awake.set)
        watching = await self._store.watch(self._hear)
        try:
            while not self._session.is_lost:
                self._awake.clear()
                try:
                    await self._read_changed()
                except InfinityMatrixError as error:
                    log.info("schedules_not_read", reason=str(error))
                    self._read_all_at = self._loop.time() + FAILURE_DELAY_S
                await self._sleep(self._begin_due())
        finally:
            self._session.not_when_lost(self._awake.set)
            tasks = list(self._advancing.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._reads.close()
            self._fills.close()
            for name in list(self._listening):
                await self._listen(name, ())
            await watching.close()

    # What there is.

    def _hear(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        name, replaces = self._store.name_of(subject), self._store.replaced_by(headers)
        known = self._known.get(name)
        if known is not None and replaces is not None and known.revision > replaces:
            # Its own change, or one that is refused.
            return
        if replaces is None:
            replaces = 0 if known is None else known.revision
        self._heard[name] = _Change(replaces, self._loop.time())
        self._awake.set()

    async def _read_changed(self) -> None:
        now = self._loop.time()
        if now < self._read_all_at:
            names = [name for name, change in self._heard.items() if change.look_at <= now]
            try:
                for begin in range(0, len(names), READ_AT_ONCE):
                    some = names[begin : begin + READ_AT_ONCE]
                    changes = [self._heard[name] for name in some]
                    found = await asyncio.gather(*map(self._store.read, some))
                    for name, change, stored in zip(some, changes, found, strict=True):
                        self._remember(name, stored)
                        self._look_again(name, change, stored)
            except InfinityMatrixError:
                for name in names:
                    if name in self._heard:
                        self._heard[name].look_at = now + FAILURE_DELAY_S
                raise
            return
        self.clock.learn(await self._store.now())
        everything = {stored.schedule.name: stored for stored in await self._store.all()}
        for name in self._known.keys() - everything.keys():
            self._remember(name, None)
        for name, stored in everything.items():
            self._remember(name, stored)
        self._read_all_at = self._loop.time() + READ_ALL_S

    def _look_again(self, name: str, change: _Change, stored: StoredSchedule | None) -> None:
        if self._heard.get(name) is not change:
            return
        change.looks += 1
        if (stored is not None and stored.revision > change.replaces) or change.looks == len(LOOKS_S):
            del self._heard[name]
        else:
            change.look_at = self._loop.time() + LOOKS_S[change.looks]

    def _remember(self, name: str, stored: StoredSchedule | None) -> None:
        known = self._known.get(name)
        if stored is None:
            self._known.pop(name, None)
            self._not_before.pop(name, None)
        elif known is None or stored.revision > known.revision:
            self._known[name] = stored
            self._not_before[name] = self._loop.time() + self._patience_s(name)

    def _patience_s(self, name: str) -> float:
        """How long this coordinator leaves a schedule to another; 0 where it goes first."""
        members = self._members()
        if members != self._owned[0]:
            self._owned = (set(members), {})
        owned = self._owned[1]
        if name not in owned:
            owned[name] = owner_of(crc32(name.encode()), members) == self._instance
        return 0.0 if owned[name] else HELP_AFTER_S

    # When there is something to do.

    def _begin_due(self) -> float:
        """Begins the work on every schedule that is due; answers when the next one is, by the loop's clock."""
        now = self._loop.time()
        stream_now = self.clock.now()
        next_at = min((change.look_at for change in self._heard.values()), default=self._read_all_at)
        next_at = min(next_at, self._read_all_at)
        for name, stored in self._known.items():
            if name in self._advancing:
                continue
            at = self._due_at(name, stored, now - stream_now)
            if at <= now:
                task = asyncio.create_task(self._advance(name), name=f"schedule-{name}")
                self._advancing[name] = task
                task.add_done_callback(lambda task, name=name: self._advanced(name))  # type: ignore[misc]
            else:
                next_at = min(next_at, at)
        return next_at

    def _due_at(self, name: str, stored: StoredSchedule, offset_s: float) -> float:
        not_before = self._not_before[name]
        if may_settle(stored.state):
            return not_before
        at = claim_at(stored.schedule, stored.state)
        return float("inf") if at is None else max(not_before, at + offset_s + self._patience_s(name))

    async def _sleep(self, until: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, until - self._loop.time())):
                await self._awake.wait()
        except TimeoutError:
            return

    def _advanced(self, name: str) -> None:
        self._advancing.pop(name, None)
        self._awake.set()

    # What is done.

    async def _advance(self, name: str) -> None:
        """Claims what is due of a schedule, and settles what waits."""
        self._ended.discard(name)
        delay_s = BLOCKED_LOOK_S
        try:
            async with self._room:
                stored = await self._store.read(name)
                self._remember(name, stored)
                if stored is not None:
                    await self._work_on(stored)
        except InfinityMatrixError as error:
            log.warning("schedule_postponed", schedule=name, reason=str(error))
            delay_s = FAILURE_DELAY_S
        except Exception:
            # One schedule's fault must not stop the others.
            log.exception("schedule_failed", schedule=name)
            delay_s = READ_ALL_S
        if name in self._ended:
            delay_s = ANNOUNCED_S
        if name in self._known:
            self._not_before[name] = self._loop.time() + delay_s + self._patience_s(name)

    async def _work_on(self, stored: StoredSchedule) -> None:
        schedule, now = stored.schedule, self.clock.now()
        missed = missed_until(schedule, stored.state, now)
        claimed = claim(schedule, stored.state, now)
        if claimed is not None:
            if missed is not None:
                log.warning("schedule_missed", schedule=schedule.name, until=rfc3339(missed))
            written = await self._store.write(replace(stored, state=claimed))
            if written is None:
                # Another was quicker, and goes on.
                return
            stored = written
            self._remember(schedule.name, stored)
        settled = await self._settled(schedule, stored.state)
        if settled != stored.state:
            written = await self._store.write(replace(stored, state=settled))
            if written is not None:
                self._remember(schedule.name, written)
        is_first = not self._patience_s(schedule.name)
        awaited = settled.running[-LISTENED_MAX:] if is_first and may_settle(settled) else ()
        if await self._listen(schedule.name, awaited):
            # What ended before it was listened to was not heard.
            self._ended.add(schedule.name)

    async def _settled(self, schedule: Schedule, state: ScheduleState) -> ScheduleState:
        """The state once each waiting tick that can be decided now has its place in the log."""
        if not state.waiting:
            return state
        still_open = await self._open(state.running)
        state = without_ended(state, set(state.running) - still_open)
        definition, is_paused = await self._definition(schedule)
        for tick in state.waiting:
            action = Action.SKIP if is_paused else decide(schedule, state, tick, bool(still_open))
            if action is Action.WAIT:
                continue
            if action in (Action.CANCEL, Action.TERMINATE):
                await stop_for(*self._context, schedule, tick, still_open, terminates=action is Action.TERMINATE)
                continue
            if action is not Action.SKIP:
                shard = shard_of(execution_of(self._subjects, schedule.name, tick), self._context[2])
                await self._fills.check(self._subjects.facts_stream(shard))
            place = await write_tick(*self._context, schedule, tick, definition, skips=action is Action.SKIP)
            execution = None if place.is_skipped else execution_of(self._subjects, schedule.name, tick)
            state = settle(schedule, state, tick, execution)
            log.info("schedule_fired", schedule=schedule.name, due=rfc3339(tick.due_at), execution=execution)
            if execution is not None:
                # One that was there already may have ended before its starter could say so.
                still_open |= {execution} if place.is_new else await self._open([execution])
        return state

    async def _open(self, executions: Iterable[str]) -> set[str]:
        return await open_executions(*self._context, self._reads, executions)

    async def _definition(self, schedule: Schedule) -> tuple[str, bool]:
        """The hash of what is started, and whether the workflow is paused; raises UnknownWorkflow."""
        deployment = await self._definitions.deployment(schedule.workflow)
        is_paused = deployment is not None and deployment.is_paused
        if schedule.definition is not None:
            return schedule.definition, is_paused
        if deployment is None:
            raise UnknownWorkflow(schedule.workflow)
        return deployment.definition, is_paused

    async def _listen(self, name: str, executions: tuple[str, ...]) -> bool:
        """Hears the ends of these executions on behalf of a schedule, in place of others; answers whether it is new."""
        listened, subscriptions = self._listening.get(name, ((), []))
        if executions == listened:
            return False
        self._listening.pop(name, None)
        for subscription in subscriptions:
            await subscription.close()

        def hear(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
            self._ended.add(name)
            if name in self._not_before:
                self._not_before[name] = min(self._not_before[name], self._loop.time() + ANNOUNCED_S)
                self._awake.set()

        if executions:
            pattern = self._subjects.status_of
            self._listening[name] = (
                executions,
                [await self._session.subscribe(pattern(execution), hear) for execution in executions],
            )
        return bool(executions)
