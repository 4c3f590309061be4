"""Durations as users write them, turned into seconds: `90`, `"90s"`, `"1h30m"`, a timedelta.

Everything behind the door counts seconds in a float, so every spelling of one duration gives one definition hash.
"""

import datetime
import math
import re
from decimal import Decimal

from infinity_matrix_actors.errors import InvalidDefinition

#: Ten years: longer is a slip of the unit, and far from where a float of seconds loses microseconds.
DURATION_MAX_S = 3650 * 86_400.0
#: `1d2h3m4s5ms` with room for fractions; what is longer is no duration.
TEXT_LENGTH_MAX = 64
_UNITS_S = {"d": Decimal(86_400), "h": Decimal(3_600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
#: The grammar of a duration in text, also for the published JSON Schema: units from large to small, each once.
DURATION_PATTERN = "^(?=[0-9])" + "".join(rf"([0-9]+(\.[0-9]+)?{unit})?" for unit in _UNITS_S) + "$"
_DURATION = re.compile(DURATION_PATTERN)
_PART = re.compile(r"([0-9.]+)([a-z]+)")
_HINT = "seconds as a number, or text such as '90s', '5m', '1h30m', '250ms', '1d'"


def parse_duration(value: object, where: str, *, zero_allowed: bool = False) -> float:
    """Answers `value` in seconds.

    Takes a number of seconds, text such as `90s` or `1h30m` (units d, h, m, s, ms), or a timedelta. Raises
    `InvalidDefinition` for anything else, for what is not finite or negative, for zero unless `zero_allowed`, and
    for more than `DURATION_MAX_S`.
    """
    seconds = _seconds(value, where)
    if math.isnan(seconds) or seconds < 0 or (seconds == 0 and not zero_allowed):
        floor = "at least zero" if zero_allowed else "more than zero"
        raise InvalidDefinition(f"a duration must be {floor}, not {seconds:g}", where=where, hint=_HINT)
    if seconds > DURATION_MAX_S:
        raise InvalidDefinition(
            f"a duration of {seconds:g} s is too long", where=where, hint=f"at most {DURATION_MAX_S:.0f} s (ten years)"
        )
    return seconds + 0.0  # -0.0 becomes 0.0: they have different canonical forms


def parse_instant(value: object, where: str) -> float:
    """Answers a point in time in seconds since the epoch; raises `InvalidDefinition` for what has no time zone."""
    hint = "a datetime with its zone, or text such as 2026-12-24T18:00:00+01:00"
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise InvalidDefinition(f"{value!r} is no time", where=where, hint=hint) from None
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        raise InvalidDefinition(f"{value!r} is no time with a zone", where=where, hint=hint)
    return value.timestamp()


def _seconds(value: object, where: str) -> float:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str) and len(value) <= TEXT_LENGTH_MAX and _DURATION.fullmatch(value):
        # Decimal, because 1.1 * 3600 is not 3960 in floats, and "1.1h" and 3960 must be one duration.
        return float(sum(Decimal(number) * _UNITS_S[unit] for number, unit in _PART.findall(value)))
    raise InvalidDefinition(f"{value!r:.100} is no duration", where=where, hint=_HINT)
