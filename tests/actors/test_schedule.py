"""What a schedule decides: what is claimed, started, skipped, buffered, made up and given up."""

import datetime
from dataclasses import replace
from typing import Any

import pytest
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.schedule import Overlap, Schedule, fire_at, names_no_zone, new_schedule, times_between
from infinity_matrix_actors.schedule_state import (
    CLAIMED_MAX,
    WAITING_MAX,
    Action,
    ScheduleState,
    Tick,
    TickKind,
    asked,
    claim,
    claim_at,
    decide,
    first_state,
    missed_until,
    paused,
    replaced,
    resumed,
    settle,
    upcoming,
    without_ended,
)

#: The beginning of an hour.
HOUR = 1_800_000_000.0
MINUTE = 60.0


def hourly(**fields: Any) -> Schedule:
    return new_schedule("s", "w", **{"cron": "0 * * * *", **fields})


def claimed(schedule: Schedule, count: int) -> ScheduleState:
    """A state in which the first `count` hours wait."""
    state = claim(schedule, first_state(schedule, HOUR - 1), HOUR + (count - 1) * 3600)
    assert state is not None
    assert len(state.waiting) == count
    return state


def actions(schedule: Schedule, state: ScheduleState, *, is_open: bool) -> list[Action]:
    """What becomes of each waiting tick, the open execution staying open."""
    found = []
    for tick in state.waiting:
        action = decide(schedule, state, tick, is_open)
        found.append(action)
        if action is Action.START:
            is_open = True
            state = settle(schedule, state, tick, f"e-{tick.due_at}")
        elif action is Action.SKIP:
            state = settle(schedule, state, tick, None)
    return found


def test_nothing_is_claimed_before_its_time_and_each_time_once() -> None:
    schedule = hourly()
    state = first_state(schedule, HOUR - 10)
    assert claim(schedule, state, HOUR - 0.001) is None
    state = claim(schedule, state, HOUR)
    assert state is not None
    assert state.waiting == (Tick(HOUR),)
    assert state.next_at == HOUR + 3600
    assert claim(schedule, state, HOUR + 3599) is None


def test_what_came_due_while_nobody_looked_is_claimed_within_the_window() -> None:
    schedule = hourly(catch_up="3h")
    state = first_state(schedule, HOUR - 1)
    now = HOUR + 10 * 3600 + 5
    assert missed_until(schedule, state, now) == now - 3 * 3600
    late = claim(schedule, state, now)
    assert late is not None
    assert [tick.due_at for tick in late.waiting] == [HOUR + hours * 3600 for hours in (8, 9, 10)]
    assert late.next_at == HOUR + 11 * 3600
    assert missed_until(schedule, state, HOUR + 2 * 3600) is None


def test_a_time_long_ago_costs_no_more_than_one_in_the_window() -> None:
    schedule = new_schedule("s", "w", cron="* * * * *", catch_up="10m")
    state = claim(schedule, first_state(schedule, 0.0), HOUR)
    assert state is not None
    assert len(state.waiting) == 11


def test_one_time_that_was_missed_beyond_the_window_is_given_up() -> None:
    schedule = new_schedule("s", "w", run_at=datetime.datetime.fromtimestamp(HOUR, datetime.UTC), catch_up=60)
    state = first_state(schedule, HOUR - 1)
    late = claim(schedule, state, HOUR + 61)
    assert late is not None
    assert (late.waiting, late.next_at) == ((), None)
    made_up = claim(schedule, state, HOUR + 59)
    assert made_up is not None
    assert (made_up.waiting, made_up.next_at) == ((Tick(HOUR),), None)


def test_a_claim_is_bounded_and_stops_when_too_many_wait() -> None:
    schedule = new_schedule("s", "w", cron="* * * * *", catch_up="10d")
    state = first_state(schedule, HOUR - 1)
    now = HOUR + WAITING_MAX * 2 * MINUTE
    for _ in range(WAITING_MAX // CLAIMED_MAX):
        following = claim(schedule, state, now)
        assert following is not None
        assert len(following.waiting) == len(state.waiting) + CLAIMED_MAX
        state = following
    assert claim(schedule, state, now) is None
    assert claim_at(schedule, state) is None
    state = settle(schedule, state, state.waiting[0], None)
    assert claim(schedule, state, now) is not None


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        (Overlap.SKIP, [Action.SKIP] * 3),
        (Overlap.BUFFER_ONE, [Action.WAIT, Action.SKIP, Action.SKIP]),
        (Overlap.BUFFER_ALL, [Action.WAIT] * 3),
        (Overlap.CANCEL_OTHER, [Action.SKIP, Action.SKIP, Action.CANCEL]),
        (Overlap.TERMINATE_OTHER, [Action.SKIP, Action.SKIP, Action.TERMINATE]),
        (Overlap.ALLOW_ALL, [Action.START] * 3),
    ],
)
def test_what_becomes_of_three_ticks_while_one_execution_is_open(overlap: Overlap, expected: list[Action]) -> None:
    schedule = hourly(overlap=overlap)
    assert actions(schedule, claimed(schedule, 3), is_open=True) == expected


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        (Overlap.SKIP, [Action.START, Action.SKIP, Action.SKIP]),
        (Overlap.BUFFER_ONE, [Action.START, Action.WAIT, Action.SKIP]),
        (Overlap.BUFFER_ALL, [Action.START, Action.WAIT, Action.WAIT]),
        (Overlap.CANCEL_OTHER, [Action.SKIP, Action.SKIP, Action.START]),
        (Overlap.TERMINATE_OTHER, [Action.SKIP, Action.SKIP, Action.START]),
        (Overlap.ALLOW_ALL, [Action.START] * 3),
    ],
)
def test_what_becomes_of_three_ticks_when_none_is_open(overlap: Overlap, expected: list[Action]) -> None:
    schedule = hourly(overlap=overlap)
    assert actions(schedule, claimed(schedule, 3), is_open=False) == expected


def test_what_was_asked_for_has_its_own_policy() -> None:
    schedule = hourly(overlap="skip")
    ticks = [Tick(HOUR, TickKind.BACKFILLED, "r", Overlap.BUFFER_ALL), Tick(HOUR, TickKind.TRIGGERED, "t")]
    state = asked(claimed(schedule, 1), ticks, "here")
    assert actions(schedule, state, is_open=True) == [Action.SKIP, Action.WAIT, Action.SKIP]
    assert asked(state, ticks, "here") == state


def test_a_pause_claims_nothing_holds_what_waits_and_makes_up_nothing() -> None:
    schedule = hourly(overlap="buffer_all")
    state = paused(claimed(schedule, 1), "holidays")
    assert claim(schedule, state, HOUR + 7200) is None
    assert upcoming(schedule, state, 3) == []
    assert decide(schedule, state, state.waiting[0], False) is Action.WAIT
    by_hand = asked(state, [Tick(HOUR + 5, TickKind.TRIGGERED, "t")], "here")
    assert decide(schedule, by_hand, by_hand.waiting[1], False) is Action.START
    again = resumed(schedule, state, HOUR + 7205)
    assert again.next_at == HOUR + 3 * 3600
    assert (again.is_paused, again.reason) == (False, "")
    assert decide(schedule, again, again.waiting[0], False) is Action.START
    assert resumed(schedule, again, HOUR + 99_999) == again


def test_a_limit_counts_what_was_started_and_ends_the_schedule() -> None:
    schedule = hourly(limit=2, overlap="allow_all")
    state = claim(schedule, first_state(schedule, HOUR - 1), HOUR + 5 * 3600)
    assert state is not None
    assert len(state.waiting) == 2
    assert upcoming(schedule, state, 5) == []
    for tick in state.waiting:
        assert decide(schedule, state, tick, True) is Action.START
        state = settle(schedule, state, tick, f"e-{tick.due_at}")
    assert (state.next_at, state.started, state.last_at) == (None, 2, HOUR + 3600)
    assert replaced(schedule, state, replace(schedule, limit=3), HOUR + 6 * 3600).next_at == HOUR + 7 * 3600


def test_a_skipped_tick_does_not_count_against_the_limit() -> None:
    schedule = hourly(limit=1)
    state = settle(schedule, claimed(schedule, 1), Tick(HOUR), None)
    assert (state.started, state.skipped, state.next_at) == (0, 1, HOUR + 3600)
    assert claim(schedule, state, HOUR + 3600) is not None


def test_what_ended_is_not_remembered_as_running() -> None:
    schedule = hourly(overlap="allow_all")
    state = claimed(schedule, 2)
    for tick in state.waiting:
        state = settle(schedule, state, tick, f"e-{tick.due_at}")
    assert without_ended(state, [f"e-{HOUR}"]).running == (f"e-{HOUR + 3600}",)


def test_a_schedule_that_is_replaced_keeps_a_due_time_nobody_saw_unless_its_times_change() -> None:
    schedule = hourly()
    state = first_state(schedule, HOUR - 1)
    later = HOUR + 7200 + 5
    assert replaced(schedule, state, replace(schedule, overlap=Overlap.ALLOW_ALL), later) == state
    assert replaced(schedule, state, hourly(cron="30 * * * *"), later).next_at == HOUR + 7200 + 1800


def test_start_and_end_count_themselves() -> None:
    at = datetime.datetime.fromtimestamp(HOUR, datetime.UTC)
    schedule = hourly(start=at, end=at + datetime.timedelta(hours=2))
    state = first_state(schedule, HOUR - 86_400)
    assert upcoming(schedule, state, 10) == [HOUR, HOUR + 3600, HOUR + 7200]
    with pytest.raises(InvalidDefinition, match="never comes due"):
        first_state(schedule, HOUR + 7200)
    assert times_between(schedule, HOUR - 3600, HOUR + 7200, 10) == [HOUR + hours * 3600 for hours in (-1, 0, 1, 2)]


def test_jitter_is_the_same_for_everyone_and_within_its_bound() -> None:
    schedule = hourly(jitter="10m")
    times = [fire_at(schedule, HOUR + hours * 3600) - hours * 3600 for hours in range(50)]
    assert all(HOUR <= time < HOUR + 600 for time in times)
    assert len(set(times)) == 50
    assert times == [fire_at(schedule, HOUR + hours * 3600) - hours * 3600 for hours in range(50)]
    assert fire_at(replace(schedule, name="other"), HOUR) != fire_at(schedule, HOUR)
    state = first_state(schedule, HOUR - 1)
    assert claim(schedule, state, times[0] - 0.01) is None
    assert claim(schedule, state, times[0]) is not None


def test_a_time_without_zone_is_taken_in_the_schedules() -> None:
    naive = datetime.datetime(2027, 1, 1, 12)
    assert new_schedule("s", "w", run_at=naive).run_at == naive.replace(tzinfo=datetime.UTC).timestamp()
    in_tokyo = new_schedule("s", "w", run_at="2027-01-01T12:00", timezone="Asia/Tokyo")
    assert in_tokyo.run_at == naive.replace(tzinfo=datetime.UTC).timestamp() - 9 * 3600
    aware = new_schedule("s", "w", run_at="2027-01-01T12:00Z", timezone="Asia/Tokyo")
    assert aware.run_at == naive.replace(tzinfo=datetime.UTC).timestamp()
    assert names_no_zone(naive) and names_no_zone("2027-01-01T12:00") and not names_no_zone("2027-01-01T12:00Z")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "one of cron and run_at"),
        ({"cron": "@daily", "run_at": "2027-01-01"}, "one of cron and run_at"),
        ({"cron": "@daily", "timezone": "Mars"}, "no time zone"),
        ({"cron": "@daily", "overlap": "twice"}, "no overlap policy"),
        ({"cron": "@daily", "overlap": []}, "no overlap policy"),
        ({"cron": "@daily", "limit": 0}, "limit"),
        ({"cron": "@daily", "limit": True}, "limit"),
        ({"cron": "@daily", "catch_up": 1}, "catch_up"),
        ({"cron": "@daily", "jitter": "2d"}, "jitter"),
        ({"cron": "@daily", "start": "2027-01-02", "end": "2027-01-01"}, "ends before"),
        ({"cron": "@daily", "input": object()}, "object"),
        ({"run_at": "tomorrow"}, "no time"),
        ({"run_at": 5}, "no time"),
        ({"cron": "@daily", "name": "no name"}, "not a valid name"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidDefinition, match=problem):
        new_schedule(fields.pop("name", "s"), "w", **fields)


@pytest.mark.parametrize("fields", [{"cron": "0 0 31 2 *"}, {"run_at": "2020-01-01T00:00Z"}])
def test_what_never_comes_due_is_refused_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidDefinition, match=r"never comes due|has passed"):
        first_state(new_schedule("s", "w", **fields), HOUR)
