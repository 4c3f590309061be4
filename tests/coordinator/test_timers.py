"""Timers by key: earliest first, one a key, and a heap that does not keep what was disarmed."""

from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_coordinator.timers import GARBAGE_FREE_BELOW, GARBAGE_RATIO, Timers


def test_timers_come_out_earliest_first_once_their_time_has_come() -> None:
    timers: Timers[str] = Timers()
    for key, at in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
        timers.arm(key, at)
    assert timers.next_at() == 1.0
    assert timers.due(0.9, 10) == []
    assert timers.due(2.0, 10) == ["a", "b"]
    assert timers.due(2.0, 10) == []
    assert (timers.next_at(), len(timers)) == (3.0, 1)


def test_arming_again_replaces_the_timer_in_both_directions() -> None:
    timers: Timers[str] = Timers()
    timers.arm("a", 5.0)
    timers.arm("a", 1.0)
    timers.arm("b", 1.0)
    timers.arm("b", 5.0)
    assert timers.due(1.0, 10) == ["a"]
    assert timers.due(4.0, 10) == []
    assert timers.due(5.0, 10) == ["b"]


def test_a_disarmed_timer_never_comes_out() -> None:
    timers: Timers[str] = Timers()
    timers.arm("a", 1.0)
    timers.disarm("a")
    timers.disarm("never armed")
    assert (timers.next_at(), timers.due(9.0, 10), len(timers)) == (None, [], 0)
    timers.arm("a", 2.0)
    assert timers.due(9.0, 10) == ["a"]


def test_what_is_due_comes_out_in_turns_when_it_is_too_much_for_one() -> None:
    timers: Timers[int] = Timers()
    for key in range(10):
        timers.arm(key, float(key))
    assert timers.due(100.0, 4) == [0, 1, 2, 3]
    assert timers.due(100.0, 4) == [4, 5, 6, 7]
    assert timers.due(100.0, 4) == [8, 9]


def test_keys_that_cannot_be_compared_may_share_a_time() -> None:
    timers: Timers[tuple[str, str | None]] = Timers()
    timers.arm(("e1", None), 1.0)
    timers.arm(("e1", "a"), 1.0)
    assert timers.due(1.0, 10) == [("e1", None), ("e1", "a")]


def test_a_hundred_thousand_disarmed_timers_are_not_kept() -> None:
    timers: Timers[int] = Timers()
    for key in range(100_000):
        timers.arm(key, 1e9 + key)
        if key % 1000:
            timers.disarm(key)
    assert len(timers) == 100
    assert len(timers._heap) <= max(GARBAGE_FREE_BELOW, GARBAGE_RATIO * 100) + 1
    assert timers.due(2e9, 1000) == list(range(0, 100_000, 1000))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("arm"), st.integers(0, 5), st.integers(0, 20)),
            st.tuples(st.just("disarm"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("due"), st.integers(1, 3), st.integers(0, 20)),
        )
    )
)
def test_timers_do_what_a_dictionary_sorted_by_time_would(moves: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, float] = {}
    for move, key, at in moves:
        if move == "arm":
            timers.arm(key, at)
            model[key] = at
        elif move == "disarm":
            timers.disarm(key)
            model.pop(key, None)
        else:
            due = timers.due(at, key)
            expected = sorted(time for time in model.values() if time <= at)[:key]
            assert [model.pop(one) for one in due] == expected
        assert len(timers) == len(model)
        assert timers.next_at() == min(model.values(), default=None)
