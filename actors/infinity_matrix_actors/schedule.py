"""A schedule as users define it: which workflow, at which times, and what an overlap means; and its due times.

Where it stands, and what a due time that has come leads to, is in `schedule_state`.
"""

import datetime
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from infinity_matrix_actors.duration import parse_duration
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.fact import Priority
from infinity_matrix_actors.names import check_name
from infinity_matrix_actors.plain import plain
from infinity_matrix_actors.schedule_times import check_cron, instant_of, next_tick, zone_of

#: How far back due times are made up that no coordinator saw, unless the schedule says otherwise.
CATCH_UP_S = 86_400.0
#: Less would lose ticks whenever coordinators change hands.
#: 1970 to 9998: whatever the zone, a date has four digits then.
INSTANT_MIN, INSTANT_MAX = 0.0, 253_370_764_800.0
CATCH_UP_MIN_S = 10.0
JITTER_MAX_S = 86_400.0


class Overlap(StrEnum):
    """What becomes of a tick while an execution of the same schedule is still open."""

    SKIP = "skip"
    BUFFER_ONE = "buffer_one"
    BUFFER_ALL = "buffer_all"
    CANCEL_OTHER = "cancel_other"
    TERMINATE_OTHER = "terminate_other"
    ALLOW_ALL = "allow_all"


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a user said. Times are seconds since the epoch; `definition` None: whichever is deployed at that time."""

    name: str
    workflow: str
    cron: str | None = None
    run_at: float | None = None
    timezone: str = "UTC"
    overlap: Overlap = Overlap.SKIP
    catch_up_s: float = CATCH_UP_S
    jitter_s: float = 0.0
    start_at: float | None = None
    end_at: float | None = None
    limit: int | None = None
    input: Any = None
    definition: str | None = None
    #: Of its executions.
    priority: Priority = Priority.NORMAL

    @property
    def timing(self) -> tuple[Any, ...]:
        """What its due times follow from."""
        return (self.cron, self.run_at, self.timezone, self.start_at, self.end_at)


def new_schedule(
    name: object,
    workflow: str,
    *,
    cron: object = None,
    run_at: object = None,
    timezone: object = "UTC",
    overlap: object = Overlap.SKIP,
    catch_up: object = CATCH_UP_S,
    jitter: object = 0,
    start: object = None,
    end: object = None,
    limit: object = None,
    input: object = None,
    definition: str | None = None,
    priority: object = Priority.NORMAL,
) -> Schedule:
    """A checked schedule; raises InvalidDefinition for what cannot be.

    Times are datetimes or ISO 8601 text; without a zone they are taken in `timezone`. Durations are seconds, text such
    as "90s", or timedeltas.
    """
    where = f"schedule {check_name('schedule', name)!r}"
    zone = zone_of(timezone, where)
    if (cron is None) == (run_at is None):
        raise InvalidDefinition("it needs one of cron and run_at", where=where)
    if overlap not in tuple(Overlap):
        raise InvalidDefinition(
            f"{overlap!r:.100} is no overlap policy", where=where, hint="one of " + ", ".join(Overlap)
        )
    if priority not in tuple(Priority):
        raise InvalidDefinition(f"{priority!r:.100} is no priority", where=where, hint="one of " + ", ".join(Priority))
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidDefinition(f"limit is {limit!r:.100}", where=where, hint="a whole number of at least 1")
    catch_up_s = parse_duration(catch_up, f"{where}, catch_up")
    if catch_up_s < CATCH_UP_MIN_S:
        raise InvalidDefinition(f"catch_up is below {CATCH_UP_MIN_S:g} s", where=where)
    jitter_s = parse_duration(jitter, f"{where}, jitter", zero_allowed=True)
    if jitter_s > JITTER_MAX_S:
        raise InvalidDefinition(f"jitter is above {JITTER_MAX_S:g} s", where=where)
    start_at = None if start is None else instant(start, str(timezone), f"{where}, start")
    end_at = None if end is None else instant(end, str(timezone), f"{where}, end")
    if start_at is not None and end_at is not None and end_at < start_at:
        raise InvalidDefinition("it ends before it starts", where=where)
    return Schedule(
        check_name("schedule", name),
        check_name("workflow", workflow),
        None if cron is None else check_cron(cron, where),
        None if run_at is None else instant(run_at, zone.key, f"{where}, run_at"),
        zone.key,
        Overlap(str(overlap)),
        catch_up_s,
        jitter_s,
        start_at,
        end_at,
        limit,
        plain(input, f"{where}, input"),
        definition,
        Priority(str(priority)),
    )


def instant(value: object, timezone: str, where: str) -> float:
    """Seconds since the epoch of a datetime or ISO 8601 text, in `timezone` where it names none."""
    time = value
    if isinstance(value, str):
        try:
            time = datetime.datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidDefinition(f"{value!r:.100} is no time", where=where, hint="as in 2026-12-24T18:00") from error
    if not isinstance(time, datetime.datetime):
        raise InvalidDefinition(f"{value!r:.100} is no time", where=where, hint="a datetime, or ISO 8601 text")
    try:
        at = time.timestamp() if time.tzinfo is not None else instant_of(time, zone_of(timezone, where))
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidDefinition(f"{value!r:.100} is out of range", where=where) from error
    if not INSTANT_MIN <= at <= INSTANT_MAX:
        raise InvalidDefinition(f"{value!r:.100} is out of range", where=where, hint="from 1970 to 9998")
    return at


def names_no_zone(value: object) -> bool:
    """Whether a time that `instant` takes says nothing of its zone."""
    try:
        time = datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return False
    return isinstance(time, datetime.datetime) and time.tzinfo is None


def next_time(schedule: Schedule, after: float) -> float | None:
    """The first due time later than `after`, in seconds since the epoch; None when there is none."""
    if schedule.start_at is not None:
        # What is due at the start itself counts.
        after = max(after, schedule.start_at - 1e-6)
    if schedule.run_at is not None:
        found: float | None = schedule.run_at if schedule.run_at > after else None
    else:
        assert schedule.cron is not None
        found = next_tick(schedule.cron, zone_of(schedule.timezone, schedule.name), after)
    if found is not None and schedule.end_at is not None and found > schedule.end_at:
        return None
    return found


def fire_at(schedule: Schedule, due_at: float) -> float:
    """When a due time fires: up to `jitter_s` later, by a hash that is the same for everyone."""
    if not schedule.jitter_s:
        return due_at
    digest = blake2b(f"{schedule.name}\0{due_at!r}".encode(), digest_size=8).digest()
    return due_at + schedule.jitter_s * (int.from_bytes(digest) / 2**64)


def times_between(schedule: Schedule, begin: float, end: float, count: int) -> list[float]:
    """The due times in [begin, end], at most `count`, whatever its own start and end are."""
    free = replace(schedule, start_at=None, end_at=None)
    times: list[float] = []
    at = next_time(free, begin - 1e-6)
    while at is not None and at <= end and len(times) < count:
        times.append(at)
        at = next_time(free, at)
    return times
