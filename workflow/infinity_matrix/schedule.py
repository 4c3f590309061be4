"""`workflow.schedule(...)`: checked at once, stored before it returns, or, in a running event loop, soon after.

In a loop nothing can be waited for without `await`. So the error of one that could not be stored is raised by the next
await on its workflow, and whoever must be sure awaits the handle.
"""

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

from infinity_matrix_actors.errors import InvalidDefinition, StorageUnavailable
from infinity_matrix_actors.schedule import Overlap, Schedule, instant, names_no_zone, new_schedule
from infinity_matrix_actors.schedule_state import first_state, upcoming
from infinity_matrix_bus.log import get_logger
from infinity_matrix_coordinator.schedule_operations import UPCOMING_DEFAULT, ScheduleOperations, ScheduleView

from infinity_matrix.client import Client
from infinity_matrix.resolution import opened, surrounding

if TYPE_CHECKING:
    from infinity_matrix_actors.definition import WorkflowDefinition

    from infinity_matrix.workflow import Workflow

STORED_TIMEOUT_S = 10.0
#: Of a workflow's name in the name of its schedule for one time; the time takes the rest of the 64 characters.
_NAME_KEPT = 46
log = get_logger("infinity_matrix.schedule")
Answer = TypeVar("Answer")


class ScheduleHandle:
    """A schedule of a workflow. Await it to be sure that it is stored; its other methods wait for that themselves.

    `assumed_timezone` is the zone in which times without one were taken, None when all named theirs.
    """

    def __init__(self, schedule: Schedule, definition: "WorkflowDefinition", assumed_timezone: str | None) -> None:
        self.name = schedule.name
        self.timezone = schedule.timezone
        self.assumed_timezone = assumed_timezone
        self.schedule = schedule
        self._definition = definition
        self._asked_at = time.monotonic()
        self._storing: asyncio.Task[None] | None = None
        self._workflow: Workflow | None = None

    def __await__(self) -> Generator[Any, None, "ScheduleHandle"]:
        return self._stored().__await__()

    def next_times(self, count: int = UPCOMING_DEFAULT) -> list[datetime.datetime]:
        """The next due times from now on, in the schedule's zone, computed here; at most 100."""
        zone = ZoneInfo(self.timezone)
        try:
            state = first_state(self.schedule, time.time())
        except InvalidDefinition:
            return []
        return [datetime.datetime.fromtimestamp(at, zone) for at in upcoming(self.schedule, state, count)]

    async def show(self, count: int = UPCOMING_DEFAULT) -> ScheduleView:
        """What is stored of it and where it stands, with its next `count` due times; raises UnknownSchedule."""
        return await self._on(lambda schedules: schedules.show(self.name, count))

    async def pause(self, reason: str = "") -> None:
        """Lets nothing more come due; raises UnknownSchedule."""
        await self._on(lambda schedules: schedules.pause(self.name, reason))

    async def resume(self) -> None:
        """Ends a pause; what came due meanwhile is not made up. Raises UnknownSchedule."""
        await self._on(lambda schedules: schedules.resume(self.name))

    async def trigger(self, overlap: str | None = None) -> str | None:
        """Asks for an execution now and answers its id, None for who may not read the installation's secret.

        It waits for one that is open, unless `overlap` says otherwise. Raises UnknownSchedule, WorkflowPaused.
        """
        policy = _overlap(overlap)
        return await self._on(lambda schedules: schedules.trigger(self.name, policy))

    async def backfill(
        self, begin: datetime.datetime | str, end: datetime.datetime | str, overlap: str | None = None
    ) -> Sequence[str | None]:
        """Asks for an execution for every due time from `begin` to `end`; answers their ids, as `trigger`.

        One after another, unless `overlap` says otherwise. Raises InvalidDefinition when there is none, or too many.
        """
        begin_at, end_at = (instant(at, self.timezone, f"schedule {self.name!r}") for at in (begin, end))
        policy = _overlap(overlap)
        return await self._on(lambda schedules: schedules.backfill(self.name, begin_at, end_at, policy))

    async def delete(self) -> None:
        """Deletes it: nothing of it starts once this returns. Raises UnknownSchedule."""
        await self._on(lambda schedules: schedules.delete(self.name))
        if self._workflow is not None:
            _unnamed.get(self._workflow, {}).pop(self.name, None)

    async def _on(self, call: Callable[[ScheduleOperations], Awaitable[Answer]]) -> Answer:
        await self
        async with opened() as client:
            return await call(ScheduleOperations(client.operations))

    async def _stored(self) -> "ScheduleHandle":
        if self._storing is not None:
            try:
                # Who gives up waiting does not take the schedule back.
                await asyncio.shield(self._storing)
            finally:
                if self._storing.done() and self._workflow is not None:
                    pending = _pending.get(self._workflow, [])
                    if self in pending:
                        pending.remove(self)
        return self

    # Storing.

    def _begin(self, workflow: "Workflow", *, is_paused: bool) -> None:
        """Stores it: here and now, or as a task of the running loop."""
        self._workflow = workflow
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._store_apart(is_paused=is_paused))
            return
        self._storing = loop.create_task(self._store(is_paused=is_paused), name=f"store-schedule-{self.name}")
        self._storing.add_done_callback(self._check_ended)
        _pending.setdefault(workflow, []).append(self)

    async def _store(self, *, is_paused: bool) -> None:
        try:
            async with asyncio.timeout(STORED_TIMEOUT_S), opened() as client:
                await self._store_on(client, is_paused=is_paused)
        except TimeoutError:
            raise StorageUnavailable(
                f"the schedule {self.name!r} was not stored within {STORED_TIMEOUT_S:g} s; schedule it again"
            ) from None

    async def _store_apart(self, *, is_paused: bool) -> None:
        outer = surrounding.get()
        if outer is None:
            await self._store(is_paused=is_paused)
            return
        # In a thread of a program whose client belongs to its event loop.
        client = await Client(outer.connection.session.endpoint, outer.prefix).open()
        token = surrounding.set(client)
        try:
            await self._store(is_paused=is_paused)
        finally:
            surrounding.reset(token)
            await client.close()

    async def _store_on(self, client: Client, *, is_paused: bool) -> None:
        await client.operations.store(self._definition)
        asked_s_ago = time.monotonic() - self._asked_at
        await ScheduleOperations(client.operations).create(self.schedule, is_paused=is_paused, asked_s_ago=asked_s_ago)

    def _check_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            log.error("schedule_not_stored", schedule=self.name, reason="its event loop ended first: await the handle")

    def __repr__(self) -> str:
        return f"ScheduleHandle({self.name!r}, {self.schedule.cron or self.schedule.run_at!r}, {self.timezone!r})"


#: Of each workflow, what its next await must wait for.
_pending: WeakKeyDictionary["Workflow", list[ScheduleHandle]] = WeakKeyDictionary()
#: Of each workflow, what it was scheduled for without a name of its own.
_unnamed: WeakKeyDictionary["Workflow", dict[str, Schedule]] = WeakKeyDictionary()


async def settled(workflow: "Workflow") -> None:
    """Returns when every schedule of this workflow is stored; raises the error of one that could not be, once."""
    for handle in list(_pending.get(workflow, [])):
        await handle


def schedule_workflow(
    workflow: "Workflow", name: str | None, timezone: str, *, is_paused: bool, **fields: Any
) -> ScheduleHandle:
    """Schedules a workflow; raises InvalidDefinition at once, and where no loop runs what storing raises."""
    definition = workflow.definition()
    chosen = name if name is not None else _name_for(workflow.name, timezone, fields)
    schedule = new_schedule(chosen, workflow.name, timezone=timezone, definition=definition.digest(), **fields)
    first_state(schedule, time.time())
    if name is None:
        known = _unnamed.setdefault(workflow, {}).setdefault(chosen, schedule)
        if known.timing != schedule.timing:
            raise InvalidDefinition(
                f"the schedule {chosen!r} is there already, at other times",
                where=f"workflow {workflow.name!r}",
                hint="give the second one a name",
            )
    assumed = None
    if any(names_no_zone(fields.get(key)) for key in ("run_at", "start", "end")):
        assumed = schedule.timezone
        log.warning("time_without_zone", schedule=chosen, taken_in=assumed)
    handle = ScheduleHandle(schedule, definition, assumed)
    handle._begin(workflow, is_paused=is_paused)
    return handle


def _name_for(workflow: str, timezone: str, fields: dict[str, Any]) -> str:
    """The workflow's name; for one time with that time, so that there can be many."""
    if fields.get("run_at") is None:
        return workflow
    at = instant(fields["run_at"], timezone, f"workflow {workflow!r}, run_at")
    text = f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y%m%dT%H%M%SZ}"
    return f"{workflow[:_NAME_KEPT]}-{text}"


def _overlap(text: str | None) -> Overlap | None:
    if text is None:
        return None
    if text not in tuple(Overlap):
        raise InvalidDefinition(f"{text!r:.100} is no overlap policy", hint="one of " + ", ".join(Overlap))
    return Overlap(text)
