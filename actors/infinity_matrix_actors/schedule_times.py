"""The times of a cron expression in a time zone: which instants it names, wherever clocks are put forward or back.

As Debian's cron does it. A fixed wall time (`0 2 * * *`) that occurs twice in autumn is the first of the two; one that
is skipped in spring is the first instant after the gap. What repeats every minute or hour (the minute or the hour
begins with `*`) follows the elapsed time instead: it goes on through the hour that occurs twice.
"""

import datetime
import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, croniter

from infinity_matrix_actors.errors import InvalidDefinition

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
CRON_LENGTH_MAX = 256
ZONE_LENGTH_MAX = 64
_FIELDS = 5
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
#: `l` is the last day of a month, or the last such weekday of one.
_WORDS = frozenset([*_MONTHS, *_WEEKDAYS, "l"])
_HINT = "five fields: minute hour day month weekday, as in '0 2 * * *'; or " + ", ".join(ALIASES)
#: No zone changes its clocks twice within this time.
_SCAN_S = 6 * 3600
_EPOCH = datetime.datetime(1970, 1, 1)
#: Whether an expression ever comes due is looked for from here: what is due in any year is due after it.
_FROM = datetime.datetime(2024, 1, 1)


def check_cron(cron: object, where: str) -> str:
    """Answers the expression as five fields, aliases spelled out; raises InvalidDefinition when it is none."""
    if not isinstance(cron, str) or not cron.strip() or len(cron) > CRON_LENGTH_MAX:
        raise InvalidDefinition(f"{cron!r:.100} is no cron expression", where=where, hint=_HINT)
    text = " ".join(ALIASES.get(cron.strip().lower(), cron).split())
    # What croniter knows beyond these: seconds and years, and letters that stand for a random or a hashed time.
    words = re.findall(r"[a-z]+", text.lower())
    if text.count(" ") != _FIELDS - 1 or not set(words) <= _WORDS:
        raise InvalidDefinition(f"{cron!r:.100} is no cron expression", where=where, hint=_HINT)
    problem = next((found for field in text.lower().split() if (found := _wrong(field)) is not None), None)
    if problem is not None:
        raise InvalidDefinition(f"{cron!r:.100} is no cron expression: {problem}", where=where, hint=_HINT)
    try:
        _next_wall(text, _FROM)
    except CroniterBadDateError:
        raise InvalidDefinition(f"{cron!r:.100} never comes due", where=where, hint="there is no such date") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidDefinition(f"{cron!r:.100} is no cron expression: {error}", where=where, hint=_HINT) from error
    return text


def _wrong(field: str) -> str | None:
    """What Debian's cron does not take of a field, and croniter does."""
    if found := re.search(r"[^a-z0-9*,/-]", field):
        return f"{found[0]!r} means nothing in it"
    for part in field.split(","):
        begin, mark, end = part.partition("/")[0].partition("-")
        if mark and begin and end and _number(begin) > _number(end):
            return f"{begin}-{end} ends before it begins"
    return None


def _number(word: str) -> int:
    for names, first in ((_MONTHS, 1), (_WEEKDAYS, 0)):
        if word in names:
            return names.index(word) + first
    return int(word) if word.isdigit() else 0


def zone_of(name: object, where: str) -> ZoneInfo:
    """The time zone of an IANA name; raises InvalidDefinition when there is none."""
    try:
        if not isinstance(name, str) or not name or len(name) > ZONE_LENGTH_MAX:
            raise ValueError("no name")
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidDefinition(
            f"there is no time zone {name!r:.100}", where=where, hint="a name such as 'Europe/Berlin' or 'UTC'"
        ) from error


def instant_of(wall: datetime.datetime, zone: ZoneInfo) -> float:
    """Seconds since the epoch of a wall time without zone: the first of two, or the first instant after a gap."""
    first = _at(wall, zone, fold=0)
    second = _at(wall, zone, fold=1)
    if first <= second:
        return first
    # In a gap: by the clock before it the instant is after the change, by the clock after it before.
    return _change_between(second, first, zone)


def next_tick(cron: str, zone: ZoneInfo, after: float) -> float | None:
    """The first instant later than `after` that a checked expression names; None when there is none in 50 years."""
    minute, hour, *_ = cron.split()
    try:
        if minute.startswith("*") or hour.startswith("*"):
            return _next_elapsed(cron, zone, after)
        return _next_fixed(cron, zone, after)
    except (CroniterBadDateError, OverflowError):
        return None


def _next_fixed(cron: str, zone: ZoneInfo, after: float) -> float:
    wall = _wall(after, zone)
    while True:
        wall = _next_wall(cron, wall)
        at = instant_of(wall, zone)
        if at > after:
            return at


def _next_elapsed(cron: str, zone: ZoneInfo, after: float) -> float:
    """The next match of a clock that runs on at one offset, taken up anew wherever the zone's offset changes."""
    begin, wall = after, _wall(after, zone)
    while True:
        offset_s = _offset_s(begin, zone)
        at = (_next_wall(cron, wall) - _EPOCH).total_seconds() - offset_s
        change = _first_change(begin, at, zone)
        if change is None:
            return at
        # From one second before, by the new offset, so that the instant of the change itself can match.
        begin, wall = change, _wall(change, zone) - datetime.timedelta(seconds=1)


def _next_wall(cron: str, wall: datetime.datetime) -> datetime.datetime:
    found: datetime.datetime = croniter(cron, wall, implement_cron_bug=True).get_next(datetime.datetime)
    return found


def _at(wall: datetime.datetime, zone: ZoneInfo, *, fold: int) -> float:
    return wall.replace(tzinfo=zone, fold=fold).timestamp()


def _local(at: float, zone: ZoneInfo) -> datetime.datetime:
    return (_EPOCH.replace(tzinfo=datetime.UTC) + datetime.timedelta(seconds=at)).astimezone(zone)


def _wall(at: float, zone: ZoneInfo) -> datetime.datetime:
    return _local(at, zone).replace(tzinfo=None, fold=0, microsecond=0)


def _offset_s(at: float, zone: ZoneInfo) -> float:
    offset = _local(at, zone).utcoffset()
    assert offset is not None
    return offset.total_seconds()


def _first_change(begin: float, end: float, zone: ZoneInfo) -> float | None:
    """When the offset first changes in (begin, end]; None when it does not."""
    offset_s = _offset_s(begin, zone)
    at = begin
    while at < end:
        later = min(at + _SCAN_S, end)
        if _offset_s(later, zone) != offset_s:
            return _change_between(at, later, zone)
        at = later
    return None


def _change_between(before: float, after: float, zone: ZoneInfo) -> float:
    """The first instant, to the second, that has the offset of `after`."""
    low, high = int(before), int(after) + (after != int(after))
    offset_s = _offset_s(low, zone)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_s(middle, zone) == offset_s:
            low = middle
        else:
            high = middle
    return float(high)
