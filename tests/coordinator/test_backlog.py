"""How much work of one agent is out at a time: never more than the limit, none forgotten, no place lost."""

from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_actors.fact import Priority
from infinity_matrix_coordinator.backlog import LOWER_OUT_MAX, Attempt, Backlog


def _attempt(number: int) -> Attempt:
    return (f"e{number}", "a", 1)


def test_what_is_above_the_limit_waits_and_comes_out_in_order() -> None:
    backlog = Backlog(2)
    assert [backlog.admit("x", _attempt(n)) for n in range(5)] == [True, True, False, False, False]
    assert backlog.held() == 3
    assert backlog.settle("x", _attempt(1)) == [_attempt(2)]
    assert backlog.settle("x", _attempt(0)) == [_attempt(3)]
    assert backlog.settle("x", _attempt(2)) == [_attempt(4)]
    assert backlog.settle("x", _attempt(3)) == []
    assert backlog.held() == 0
    assert backlog.admit("x", _attempt(9))


def test_one_agent_that_nobody_runs_holds_up_no_other() -> None:
    backlog = Backlog(1)
    assert backlog.admit("absent", _attempt(0))
    assert not backlog.admit("absent", _attempt(1))
    assert backlog.admit("busy", _attempt(2))
    assert backlog.settle("busy", _attempt(2)) == []
    assert backlog.is_held("absent", _attempt(1))


def test_what_is_out_is_admitted_again() -> None:
    backlog = Backlog(1)
    assert backlog.admit("x", _attempt(0))
    assert backlog.admit("x", _attempt(0))
    assert backlog.settle("x", _attempt(0)) == []
    assert backlog.admit("x", _attempt(1))


def test_only_what_waits_is_held() -> None:
    # An attempt that is out, and absent from the stream, is lost and must be repaired, whatever else waits.
    backlog = Backlog(1)
    backlog.admit("x", _attempt(0))
    backlog.admit("x", _attempt(1))
    assert backlog.is_held("x", _attempt(1))
    assert not backlog.is_held("x", _attempt(0))
    assert not backlog.is_held("x", _attempt(7))
    assert not backlog.is_held("y", _attempt(1))


def test_an_attempt_that_is_settled_while_it_waits_takes_no_place() -> None:
    # A cancelled attempt once came out later, took its agent's place, and never gave it back.
    backlog = Backlog(1)
    backlog.admit("x", _attempt(0))
    backlog.admit("x", _attempt(1))
    backlog.admit("x", _attempt(2))
    assert backlog.settle("x", _attempt(1)) == []
    assert not backlog.is_held("x", _attempt(1))
    assert backlog.settle("x", _attempt(0)) == [_attempt(2)]
    assert backlog.settle("x", _attempt(2)) == []
    assert backlog.admit("x", _attempt(3))


def test_an_attempt_that_is_held_twice_comes_out_once() -> None:
    backlog = Backlog(1)
    for number in (0, 1, 1):
        backlog.admit("x", _attempt(number))
    assert backlog.held() == 1
    assert backlog.settle("x", _attempt(0)) == [_attempt(1)]
    assert backlog.settle("x", _attempt(1)) == []


def test_a_limit_below_one_lets_one_through() -> None:
    backlog = Backlog(0)
    assert backlog.admit("x", _attempt(0))
    assert not backlog.admit("x", _attempt(1))


@given(
    limit=st.integers(1, 3),
    moves=st.lists(st.tuples(st.sampled_from(("admit", "settle")), st.integers(0, 6)), max_size=60),
)
def test_the_limit_holds_and_everything_admitted_comes_out(limit: int, moves: list[tuple[str, int]]) -> None:
    backlog = Backlog(limit)
    out: set[Attempt] = set()
    waiting: list[Attempt] = []
    for move, number in moves:
        attempt = _attempt(number)
        if move == "admit":
            if backlog.admit("x", attempt):
                out.add(attempt)
            elif attempt not in waiting:
                waiting.append(attempt)
        else:
            released = backlog.settle("x", attempt)
            if attempt in waiting:
                waiting.remove(attempt)
            expected = waiting[:1] if attempt in out else []
            out.discard(attempt)
            assert released == expected
            for one in released:
                waiting.remove(one)
                out.add(one)
        assert len(out) <= limit
        assert not waiting or len(out) == limit
        assert backlog.held() == len(waiting)
        assert all(backlog.is_held("x", one) for one in waiting)
        assert not any(backlog.is_held("x", one) for one in out)


def test_what_waits_comes_out_by_priority_and_then_in_order() -> None:
    backlog = Backlog(1)
    backlog.admit("x", _attempt(0))
    order = [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.LOW, Priority.HIGH, Priority.NORMAL]
    for number, priority in enumerate(order, 1):
        assert not backlog.admit("x", _attempt(number), priority)
    came, last = [], 0
    while released := backlog.settle("x", _attempt(last)):
        (attempt,) = released
        last = int(attempt[0][1:])
        came.append(last)
    assert came == [3, 5, 2, 6, 1, 4]


def test_little_lower_work_is_out_while_there_is_higher() -> None:
    backlog = Backlog(1000)
    assert backlog.admit("x", _attempt(0), Priority.HIGH)
    low = range(1, 100)
    out = [number for number in low if backlog.admit("x", _attempt(number), Priority.LOW)]
    assert len(out) == LOWER_OUT_MAX - 1
    # Higher work is never held for lower.
    assert backlog.admit("x", _attempt(200), Priority.HIGH)
    assert backlog.settle("x", _attempt(200)) == []
    released = backlog.settle("x", _attempt(0))
    # The last of the higher has gone: all of the lower comes out.
    assert len(out) + len(released) == len(low)
    assert backlog.held() == 0


def test_low_work_waits_for_normal_work_and_normal_work_for_high() -> None:
    backlog = Backlog(1000)
    for number in range(LOWER_OUT_MAX):
        assert backlog.admit("x", _attempt(number))
    assert not backlog.admit("x", _attempt(100), Priority.LOW)
    assert backlog.admit("x", _attempt(101))
    assert backlog.admit("x", _attempt(102), Priority.HIGH)
    assert not backlog.admit("x", _attempt(103))
    assert backlog.settle("x", _attempt(102)) == [_attempt(103)]


def test_low_work_alone_is_not_held() -> None:
    backlog = Backlog(1000)
    assert all(backlog.admit("x", _attempt(number), Priority.LOW) for number in range(100))


def test_a_priority_counts_for_its_own_agent_only() -> None:
    backlog = Backlog(1000)
    backlog.admit("x", _attempt(0), Priority.HIGH)
    assert all(backlog.admit("y", _attempt(number), Priority.LOW) for number in range(1, 100))


@given(
    commands=st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.sampled_from(Priority)), max_size=200),
    limit=st.integers(1, 40),
)
def test_no_priority_is_forgotten_and_nothing_is_left_behind(
    commands: list[tuple[bool, int, Priority]], limit: int
) -> None:
    backlog = Backlog(limit)
    known: dict[int, Priority] = {}
    out: set[int] = set()
    for admits, number, priority in commands:
        if admits:
            # An attempt has one priority, its execution's.
            if backlog.admit("x", _attempt(number), known.setdefault(number, priority)):
                out.add(number)
        else:
            released = backlog.settle("x", _attempt(number))
            out.discard(number)
            known.pop(number, None)
            out |= {int(attempt[0][1:]) for attempt in released}
        assert len(out) <= limit
        assert out <= known.keys()
        if not out:
            assert backlog.held() == 0
    while out:
        number = out.pop()
        out |= {int(attempt[0][1:]) for attempt in backlog.settle("x", _attempt(number))}
        known.pop(number)
    assert backlog.held() == 0
    assert known == {}
    assert not backlog._priorities
    assert not backlog._high
