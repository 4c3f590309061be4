"""Every spelling of a duration is the same number of seconds, and what is none is refused."""

import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_actors.duration import DURATION_MAX_S, parse_duration
from infinity_matrix_actors.errors import InvalidDefinition


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90.0),
        (0.5, 0.5),
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1d", 86_400.0),
        ("250ms", 0.25),
        ("100ms", 0.1),
        ("1h30m", 5400.0),
        ("1d2h3m4s5ms", 93_784.005),
        ("1.1h", 3960.0),
        ("5m5ms", 300.005),
        (datetime.timedelta(minutes=5), 300.0),
        (datetime.timedelta(milliseconds=100), 0.1),
        (DURATION_MAX_S, DURATION_MAX_S),
    ],
)
def test_every_spelling_is_seconds(value: object, seconds: float) -> None:
    answer = parse_duration(value, "timeout")
    assert answer == seconds
    assert type(answer) is float


@pytest.mark.parametrize(
    "value",
    [
        True,
        None,
        "",
        "90",
        "s",
        "5 m",
        " 5m",
        "5m\n",
        "-5m",
        "30m1h",
        "1h1h",
        "5min",
        "1:30",
        "٣s",
        "1.s",
        ".5s",
        "1e3s",
        "9" * 100 + "s",
        [],
        {},
        b"5m",
        1j,
    ],
)
def test_what_is_no_duration_is_refused_with_a_hint(value: object) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_duration(value, "tasks[2].timeout")
    assert caught.value.where == "tasks[2].timeout"
    assert "90s" in caught.value.hint


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, -math.inf, 10**400, DURATION_MAX_S * 1.01, "4000d"])
def test_what_is_no_finite_time_ahead_is_refused(value: object) -> None:
    with pytest.raises(InvalidDefinition):
        parse_duration(value, "timeout", zero_allowed=True)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, "0s", "0h0m", datetime.timedelta(0)])
def test_zero_is_refused_unless_allowed(value: object) -> None:
    with pytest.raises(InvalidDefinition):
        parse_duration(value, "timeout")
    assert math.copysign(1.0, parse_duration(value, "grace", zero_allowed=True)) == 1.0


@given(st.integers(min_value=1, max_value=int(DURATION_MAX_S * 1000)))
def test_text_number_and_timedelta_of_one_time_are_one_number(milliseconds: int) -> None:
    whole = datetime.timedelta(milliseconds=milliseconds)
    seconds, rest = divmod(milliseconds, 1000)
    minutes, left = divmod(seconds, 60)
    spellings = [
        whole,
        milliseconds / 1000,
        f"{milliseconds}ms",
        f"{seconds}s{rest}ms",
        f"{minutes}m{left}s{rest}ms",
        f"{seconds}.{rest:03}s",
    ]
    assert len({parse_duration(one, "timeout") for one in spellings}) == 1
