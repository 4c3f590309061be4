"""How fast an agent may begin work: rates as users write them, and a token bucket that keeps to one."""

import re
from collections.abc import Callable

RATE_MAX_PER_S = 100_000.0
#: One a day.
RATE_MIN_PER_S = 1.0 / 86_400
#: What may be begun at once after a quiet time is the rate's share of this time, and one work at least.
RATE_BURST_S = 0.1
#: A token waited for is there although the clock's own rounding says almost.
_ROUNDING = 1e-6
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*([smhd]))?\s*")


def parse_rate(value: object) -> float:
    """Works a second of `"10/s"`, `"600/m"`, `"5000/h"`, `"20/d"` or a number; raises ValueError."""
    if isinstance(value, str) and (match := _RATE.fullmatch(value)) is not None:
        per_s = float(match[1]) / _SECONDS[match[2] or "s"]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        per_s = float(value)
    else:
        raise ValueError(f"rate is {value!r}, it must be like '10/s', '600/m' or '5000/h', or a number a second")
    # Written so that a number that is none is refused as well.
    if not RATE_MIN_PER_S <= per_s <= RATE_MAX_PER_S:
        raise ValueError(f"rate is {value!r}, it must be from 1/d to {RATE_MAX_PER_S:g}/s")
    return per_s


class TokenBucket:
    """Tokens that come at an even rate; whoever begins something takes one. `now` is a clock in seconds."""

    def __init__(self, rate_per_s: float, now: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._tokens_max = max(1.0, rate_per_s * RATE_BURST_S)
        self._now = now
        self._tokens = self._tokens_max
        self._filled_at = now()

    @property
    def available(self) -> int:
        """Whole tokens that are there."""
        self._fill()
        return max(0, int(self._tokens + _ROUNDING))

    def take(self) -> None:
        """Takes a token, or owes one: what comes uninvited is paid for later."""
        self._fill()
        self._tokens -= 1.0

    def next_in_s(self) -> float | None:
        """Seconds until one more whole token is there; None when the bucket is full."""
        wanted = self.available + 1.0
        return None if wanted > self._tokens_max else (wanted - self._tokens) / self._rate_per_s

    def _fill(self) -> None:
        now = self._now()
        self._tokens = min(self._tokens_max, self._tokens + (now - self._filled_at) * self._rate_per_s)
        self._filled_at = now
