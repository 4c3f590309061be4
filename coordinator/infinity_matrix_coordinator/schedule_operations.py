"""What anyone may do with schedules: make, list, pause, resume, trigger, backfill and delete them.

Clients do these themselves, by compare-and-set and with no coordinator alive; firing is the coordinators'.
"""

import asyncio
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.errors import (
    InvalidDefinition,
    InvalidInput,
    StorageUnavailable,
    UnknownSchedule,
    WorkflowPaused,
)
from infinity_matrix_actors.names import check_name
from infinity_matrix_actors.schedule import Overlap, Schedule, new_schedule, times_between
from infinity_matrix_actors.schedule_state import (
    WAITING_MAX,
    ScheduleState,
    Tick,
    TickKind,
    asked,
    first_state,
    paused,
    replaced,
    resumed,
    upcoming,
)
from infinity_matrix_actors.schema import problem_of
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.schedules import INPUT_BYTES_MAX, ScheduleStore, StoredSchedule

from infinity_matrix_coordinator.operations import Operations, new_execution_id
from infinity_matrix_coordinator.schedule_ticks import execution_of, input_of, open_executions, write_tick

#: Others may change the same schedule meanwhile; so often it is read and changed again.
CHANGES_MAX = 20
UPCOMING_DEFAULT = 5
#: What was asked for and waits for nothing begins within milliseconds; so long whoever asked is kept waiting for it.
TRIGGER_WAIT_S = 1.0
TRIGGER_POLL_S = 0.02
WAITING_FOR_NOTHING = (Overlap.ALLOW_ALL, Overlap.CANCEL_OTHER, Overlap.TERMINATE_OTHER)


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule and where it stands. Times are seconds since the epoch; `upcoming` is text in the schedule's zone."""

    name: str
    workflow: str
    definition: str | None
    cron: str | None
    run_at: float | None
    timezone: str
    overlap: str
    catch_up: float
    jitter: float
    start_at: float | None
    end_at: float | None
    limit: int | None
    input: Any
    priority: str
    paused: bool
    reason: str
    upcoming: tuple[str, ...]
    last_at: float | None
    started: int
    skipped: int
    waiting: int
    running: tuple[str, ...]


class ScheduleOperations:
    """Operations on the schedules of one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def deploy(self, definition: WorkflowDefinition) -> str:
        """Deploys a workflow and stores the schedules in its definition; answers its hash. Raises as `create` does.

        A schedule that an earlier version had and this one has not is left as it is.
        """
        schedules = [new_schedule(workflow=definition.name, **fields) for fields in definition.schedules]
        store = await self._store()
        for schedule in schedules:
            # All of them first: a workflow is deployed with its schedules or not at all.
            self._check_input(schedule, definition)
            _state(schedule, await store.read(schedule.name), await store.now())
        digest = await self._operations.deploy(definition)
        for schedule in schedules:
            await self.create(schedule)
        return digest

    async def create(self, schedule: Schedule, *, is_paused: bool = False, asked_s_ago: float = 0.0) -> ScheduleView:
        """Stores a schedule, in place of one of that name; what is stored already is left as it is.

        What was counted stays, and so does a pause; `is_paused` pauses one that was not. `asked_s_ago` is how long it
        took to come here: a time that has come meanwhile was to come when it was asked for, and is due at once. Raises
        UnknownWorkflow, InvalidDefinition for one that never comes due, or whose name another workflow's has,
        InvalidInput, PayloadTooLarge, PayloadNotEncodable, StorageUnavailable.
        """
        digest = schedule.definition
        if digest is None:
            digest = (await self._operations.deployment_of(schedule.workflow)).definition
        self._check_input(schedule, (await self._operations.plan(digest)).definition)
        for _ in range(CHANGES_MAX):
            store = await self._store()
            stored, now = await store.read(schedule.name), await store.now() - asked_s_ago
            state = _state(schedule, stored, now, is_paused=is_paused)
            if stored is None:
                if await store.create(schedule, state):
                    break
            elif (stored.schedule == schedule and stored.state == state) or await store.write(
                replace(stored, schedule=schedule, state=state)
            ) is not None:
                break
        else:
            raise _contended(schedule.name)
        return await self.show(schedule.name)

    @staticmethod
    def _check_input(schedule: Schedule, definition: WorkflowDefinition) -> None:
        """Raises InvalidInput for what its executions would be given and refuse, PayloadTooLarge."""
        encode(schedule.input, f"the input of the schedule {schedule.name!r}", INPUT_BYTES_MAX)
        if definition.input_schema is None:
            return
        tick = Tick(0.0, TickKind.SCHEDULED)
        problem = problem_of(definition.input_schema, input_of(schedule, tick))
        if problem is not None:
            raise InvalidInput(definition.name, problem)

    async def show(self, name: str, count: int = UPCOMING_DEFAULT) -> ScheduleView:
        """A schedule with its next `count` due times; raises UnknownSchedule."""
        stored = await (await self._store()).read(name)
        if stored is None:
            raise UnknownSchedule(name)
        return (await self._views([stored], count))[0]

    async def list(self, workflow: str | None = None, count: int = 1) -> Sequence[ScheduleView]:
        """All schedules, or those of a workflow, by name, each with its next `count` due times."""
        found = await (await self._store()).all()
        return await self._views([one for one in found if workflow is None or one.schedule.workflow == workflow], count)

    async def pause(self, name: str, reason: str = "") -> None:
        """Lets nothing more of a schedule come due; raises UnknownSchedule. What was asked for by hand still runs."""
        await self._change(name, lambda stored, now: paused(stored.state, reason))

    async def resume(self, name: str) -> None:
        """Ends a pause; what came due meanwhile is not made up. Raises UnknownSchedule."""
        await self._change(name, lambda stored, now: resumed(stored.schedule, stored.state, now))

    async def trigger(self, name: str, overlap: Overlap | None = None, request: str | None = None) -> str | None:
        """Asks for an execution now, also of a schedule that is paused; the same `request` asks once.

        Answers the execution's id, None for who may not read the installation's secret; once it is a fact, where a
        coordinator is there and it waits for nothing. It waits for one that is open unless `overlap` says otherwise.
        Raises UnknownSchedule, UnknownWorkflow, WorkflowPaused, InvalidName.
        """
        request = new_execution_id() if request is None else check_name("request", request)
        ticks: list[Tick] = []
        has_others = False

        def change(stored: StoredSchedule, now: float) -> ScheduleState:
            nonlocal has_others
            has_others = bool(stored.state.running or stored.state.waiting)
            # To the millisecond, so that the time is the same once it has been text.
            ticks[:] = [Tick(round(now, 3), TickKind.TRIGGERED, request, overlap or Overlap.BUFFER_ALL)]
            known = [tick for tick in stored.state.waiting if tick.request == request]
            ticks[:] = known or ticks
            return asked(stored.state, ticks, f"schedule {name!r}")

        await self._check_startable(name)
        await self._change(name, change)
        execution = self._executions(name, ticks)[0]
        if execution is not None and (not has_others or overlap in WAITING_FOR_NOTHING):
            await self._until_started(execution)
        return execution

    async def _until_started(self, execution: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TRIGGER_WAIT_S
        while loop.time() < deadline:
            if await self._operations.started_of(execution) is not None:
                return
            await asyncio.sleep(TRIGGER_POLL_S)

    async def backfill(
        self, name: str, begin: float, end: float, overlap: Overlap | None = None, request: str | None = None
    ) -> Sequence[str | None]:
        """Asks for an execution for every due time in [begin, end], times in seconds since the epoch.

        One after another unless `overlap` says otherwise; the same `request` asks once. Answers the executions' ids, as
        `trigger`. Raises UnknownSchedule, UnknownWorkflow, WorkflowPaused, InvalidName, and InvalidDefinition for a
        range with no due time, or too many.
        """
        request = new_execution_id() if request is None else check_name("request", request)
        where = f"schedule {name!r}"
        ticks: list[Tick] = []

        def change(stored: StoredSchedule, now: float) -> ScheduleState:
            times = times_between(stored.schedule, begin, end, WAITING_MAX + 1)
            if not times:
                raise InvalidDefinition("nothing comes due in that time", where=where)
            kind, policy = TickKind.BACKFILLED, overlap or Overlap.BUFFER_ALL
            ticks[:] = [Tick(at, kind, request, policy) for at in times]
            return asked(stored.state, ticks, where)

        await self._check_startable(name)
        await self._change(name, change)
        return self._executions(name, ticks)

    async def delete(self, name: str) -> None:
        """Deletes a schedule: nothing of it starts once this returns, what runs goes on. Raises UnknownSchedule."""
        for _ in range(CHANGES_MAX):
            store = await self._store()
            stored = await store.read(name)
            if stored is None:
                raise UnknownSchedule(name)
            if await store.delete(stored):
                break
        else:
            raise _contended(name)
        if not self._operations.installation.secret:
            return
        # A coordinator may be about to start what it has claimed: whoever comes first has the place in the log.
        session = await self._operations.session()
        place = (session, self._operations.subjects, self._operations.installation.shards)
        schedule = stored.schedule
        if stored.state.waiting:
            definition = schedule.definition or (await self._operations.deployment_of(schedule.workflow)).definition
            for tick in stored.state.waiting:
                await write_tick(*place, schedule, tick, definition, skips=True)

    async def _change(self, name: str, change: Callable[[StoredSchedule, float], ScheduleState]) -> None:
        for _ in range(CHANGES_MAX):
            store = await self._store()
            stored = await store.read(name)
            if stored is None:
                raise UnknownSchedule(name)
            state = change(stored, await store.now())
            if state == stored.state or await store.write(replace(stored, state=state)) is not None:
                return
        raise _contended(name)

    async def _check_startable(self, name: str) -> None:
        stored = await (await self._store()).read(name)
        if stored is None:
            raise UnknownSchedule(name)
        if (await self._operations.deployment_of(stored.schedule.workflow)).is_paused:
            raise WorkflowPaused(stored.schedule.workflow)

    async def _views(self, found: Sequence[StoredSchedule], count: int) -> Sequence[ScheduleView]:
        session = await self._operations.session()
        reads = GatheredReads(session)
        running = [execution for stored in found for execution in stored.state.running]
        try:
            still_open = await open_executions(
                session, self._operations.subjects, self._operations.installation.shards, reads, running
            )
        finally:
            reads.close()
        return [_view(stored, still_open, count) for stored in found]

    def _executions(self, name: str, ticks: Sequence[Tick]) -> Sequence[str | None]:
        if not self._operations.installation.secret:
            return [None] * len(ticks)
        return [execution_of(self._operations.subjects, name, tick) for tick in ticks]

    async def _store(self) -> ScheduleStore:
        return ScheduleStore(await self._operations.session(), self._operations.subjects)


def _view(stored: StoredSchedule, still_open: set[str], count: int) -> ScheduleView:
    schedule, state = stored.schedule, stored.state
    zone = ZoneInfo(schedule.timezone)
    times = upcoming(schedule, state, count)
    return ScheduleView(
        schedule.name,
        schedule.workflow,
        schedule.definition,
        schedule.cron,
        schedule.run_at,
        schedule.timezone,
        str(schedule.overlap),
        schedule.catch_up_s,
        schedule.jitter_s,
        schedule.start_at,
        schedule.end_at,
        schedule.limit,
        schedule.input,
        str(schedule.priority),
        state.is_paused,
        state.reason,
        tuple(datetime.datetime.fromtimestamp(at, zone).isoformat() for at in times),
        state.last_at,
        state.started,
        state.skipped,
        len(state.waiting),
        tuple(execution for execution in state.running if execution in still_open),
    )


def _state(schedule: Schedule, stored: StoredSchedule | None, now: float, *, is_paused: bool = False) -> ScheduleState:
    """Where a schedule stands once it is stored; raises InvalidDefinition where it cannot be."""
    if stored is None:
        return first_state(schedule, now, is_paused=is_paused)
    if stored.schedule.workflow != schedule.workflow:
        raise InvalidDefinition(
            f"there is a schedule of that name already, of the workflow {stored.schedule.workflow!r}",
            where=f"schedule {schedule.name!r}",
            hint="choose another name, or delete that one first",
        )
    state = stored.state if stored.schedule == schedule else replaced(stored.schedule, stored.state, schedule, now)
    return paused(state, state.reason) if is_paused else state


def _contended(name: str) -> StorageUnavailable:
    return StorageUnavailable(f"the schedule {name!r} was changed by others {CHANGES_MAX} times; try again")
