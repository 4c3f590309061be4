"""Where a schedule stands, and what a due time that has come leads to.

A coordinator gives the time and says what is open; whatever it decides every other coordinator decides alike. A due
time is claimed first (`claim`, stored by compare-and-set), then decided (`decide`), then settled (`settle`) once the
log says what became of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.schedule import Overlap, Schedule, fire_at, next_time

#: Ticks that wait for an execution to end, and executions remembered as running, of one schedule.
WAITING_MAX = 1000
RUNNING_MAX = 1000
#: Due times claimed at once; the next follow at once.
CLAIMED_MAX = 100
UPCOMING_MAX = 100


class TickKind(StrEnum):
    """Why a tick is there: its time came, someone asked for it now, or for one of the past."""

    SCHEDULED = "schedule"
    TRIGGERED = "trigger"
    BACKFILLED = "backfill"


class Action(StrEnum):
    """What is to be done with a tick now. `cancel` and `terminate` are of the open executions; the tick then waits."""

    START = "start"
    SKIP = "skip"
    WAIT = "wait"
    CANCEL = "cancel"
    TERMINATE = "terminate"


@dataclass(frozen=True, slots=True)
class Tick:
    """A due time that was claimed. `request` tells apart what was asked for; `overlap` goes before the schedule's."""

    due_at: float
    kind: TickKind = TickKind.SCHEDULED
    request: str = ""
    overlap: Overlap | None = None


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """Where a schedule stands. `next_at` None: nothing is to come. `started` counts ticks that came by themselves."""

    next_at: float | None
    waiting: tuple[Tick, ...] = ()
    running: tuple[str, ...] = ()
    started: int = 0
    skipped: int = 0
    last_at: float | None = None
    is_paused: bool = False
    reason: str = ""


def upcoming(schedule: Schedule, state: ScheduleState, count: int) -> list[float]:
    """The next due times, at most `count`; none while it is paused."""
    times: list[float] = []
    due_at = None if state.is_paused else state.next_at
    count = min(count, UPCOMING_MAX, _room(schedule, state))
    while due_at is not None and len(times) < count:
        times.append(due_at)
        due_at = next_time(schedule, due_at)
    return times


def first_state(schedule: Schedule, now: float, *, is_paused: bool = False) -> ScheduleState:
    """The state of a new schedule; raises InvalidDefinition when nothing of it is to come."""
    next_at = next_time(schedule, now)
    if next_at is None:
        if schedule.run_at is not None and schedule.run_at <= now:
            problem, hint = "run_at has passed", "give a time to come, or start the workflow now"
        else:
            problem, hint = "it never comes due", "there is no such date, or none before its end"
        raise InvalidDefinition(problem, where=f"schedule {schedule.name!r}", hint=hint)
    return ScheduleState(next_at, is_paused=is_paused)


def replaced(old: Schedule, state: ScheduleState, new: Schedule, now: float) -> ScheduleState:
    """The state of a schedule that takes the place of another; raises InvalidDefinition as `first_state`.

    What was claimed and counted stays, and a due time that no coordinator has seen yet, if the times are the same.
    """
    if new.timing == old.timing and (state.next_at is not None or new.limit == old.limit):
        return state
    return replace(state, next_at=first_state(new, now).next_at)


def claim_at(schedule: Schedule, state: ScheduleState) -> float | None:
    """When the next due time may be claimed; None while none may."""
    if state.next_at is None or state.is_paused or len(state.waiting) >= WAITING_MAX or not _room(schedule, state):
        return None
    return fire_at(schedule, state.next_at)


def missed_until(schedule: Schedule, state: ScheduleState, now: float) -> float | None:
    """The end of the time whose ticks are given up, being older than the catch-up window; None when there are none."""
    at = claim_at(schedule, state)
    oldest = now - schedule.catch_up_s
    return oldest if at is not None and at < oldest else None


def claim(schedule: Schedule, state: ScheduleState, now: float) -> ScheduleState | None:
    """The state in which what is due waits to be decided; None when nothing is due.

    It must be stored by compare-and-set before anything of it is started.
    """
    at = claim_at(schedule, state)
    if at is None or at > now:
        return None
    next_at = state.next_at
    oldest = missed_until(schedule, state, now)
    if oldest is not None:
        next_at = next_time(schedule, oldest - schedule.jitter_s - 1e-6)
    claimed: list[Tick] = []
    room = min(CLAIMED_MAX, WAITING_MAX - len(state.waiting), _room(schedule, state))
    while next_at is not None and len(claimed) < room and fire_at(schedule, next_at) <= now:
        if oldest is None or fire_at(schedule, next_at) >= oldest:
            claimed.append(Tick(next_at))
        next_at = next_time(schedule, next_at)
    return replace(state, next_at=next_at, waiting=(*state.waiting, *claimed))


def may_settle(state: ScheduleState) -> bool:
    """Whether there is a tick that may be decided: a pause holds those that came by themselves."""
    return any(not state.is_paused or tick.kind is not TickKind.SCHEDULED for tick in state.waiting)


def decide(schedule: Schedule, state: ScheduleState, tick: Tick, is_open: bool) -> Action:
    """What to do with a waiting tick; `is_open`: an earlier execution of the schedule has not ended."""
    if tick.kind is TickKind.SCHEDULED:
        if schedule.limit is not None and state.started >= schedule.limit:
            return Action.SKIP
        if state.is_paused:
            return Action.WAIT
    overlap = tick.overlap or schedule.overlap
    place = state.waiting.index(tick)
    if overlap in (Overlap.CANCEL_OTHER, Overlap.TERMINATE_OTHER) and _has(
        schedule, state.waiting[place + 1 :], overlap
    ):
        # It would be started only to be stopped by the next.
        return Action.SKIP
    if not is_open:
        return Action.START
    match overlap:
        case Overlap.ALLOW_ALL:
            return Action.START
        case Overlap.SKIP:
            return Action.SKIP
        case Overlap.BUFFER_ALL:
            return Action.WAIT
        case Overlap.BUFFER_ONE:
            return Action.SKIP if _has(schedule, state.waiting[:place], overlap) else Action.WAIT
        case Overlap.CANCEL_OTHER:
            return Action.CANCEL
        case Overlap.TERMINATE_OTHER:
            return Action.TERMINATE
        case _:
            assert_never(overlap)


def settle(schedule: Schedule, state: ScheduleState, tick: Tick, execution: str | None) -> ScheduleState:
    """The state once the log has the tick: as `execution`, or as skipped (None)."""
    waiting = tuple(one for one in state.waiting if one != tick)
    is_scheduled = tick.kind is TickKind.SCHEDULED
    if execution is None:
        state = replace(state, waiting=waiting, skipped=state.skipped + 1)
    else:
        running = (*state.running, execution)[-RUNNING_MAX:]
        state = replace(state, waiting=waiting, running=running, started=state.started + is_scheduled)
    if is_scheduled:
        state = replace(state, last_at=tick.due_at)
    if schedule.limit is not None and state.started >= schedule.limit:
        state = replace(state, next_at=None)
    return state


def without_ended(state: ScheduleState, ended: Iterable[str]) -> ScheduleState:
    """The state without executions that have ended."""
    gone = set(ended)
    return replace(state, running=tuple(execution for execution in state.running if execution not in gone))


def paused(state: ScheduleState, reason: str) -> ScheduleState:
    return replace(state, is_paused=True, reason=reason)


def resumed(schedule: Schedule, state: ScheduleState, now: float) -> ScheduleState:
    """The state after a pause: what came due meanwhile is not made up, what waited goes on."""
    if not state.is_paused:
        return state
    next_at = state.next_at
    if next_at is not None and next_at <= now:
        next_at = next_time(schedule, now)
    return replace(state, is_paused=False, reason="", next_at=next_at)


def asked(state: ScheduleState, ticks: Iterable[Tick], where: str) -> ScheduleState:
    """The state with ticks that were asked for; the same asked twice is there once. Raises InvalidDefinition."""
    waiting = tuple(dict.fromkeys((*state.waiting, *ticks)))
    if len(waiting) > WAITING_MAX:
        raise InvalidDefinition(f"more than {WAITING_MAX} ticks would wait", where=where, hint="ask for fewer at once")
    return replace(state, waiting=waiting)


def _has(schedule: Schedule, ticks: Iterable[Tick], overlap: Overlap) -> bool:
    return any((tick.overlap or schedule.overlap) is overlap for tick in ticks)


def _room(schedule: Schedule, state: ScheduleState) -> int:
    """How many more ticks the schedule's own limit lets come."""
    if schedule.limit is None:
        return WAITING_MAX
    waiting = sum(tick.kind is TickKind.SCHEDULED for tick in state.waiting)
    return max(0, schedule.limit - state.started - waiting)
