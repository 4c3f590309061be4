"""Whether and when a failed attempt is tried again: as numbers."""

import itertools

import pytest
from infinity_matrix_actors.definition import Backoff, RetryDefinition
from infinity_matrix_actors.fact import TaskError
from infinity_matrix_actors.retry import delay_s, is_retried

ERROR = TaskError("boom", "it broke")


def _delays(retry: RetryDefinition, count: int = 5) -> list[float]:
    return [delay_s(retry, attempt, ERROR, "e1", "a") for attempt in range(1, count + 1)]


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (Backoff.FIXED, [2.0, 2.0, 2.0, 2.0, 2.0]),
        (Backoff.LINEAR, [2.0, 4.0, 6.0, 8.0, 10.0]),
        (Backoff.EXPONENTIAL, [2.0, 6.0, 18.0, 54.0, 162.0]),
    ],
)
def test_each_kind_of_backoff_grows_as_it_says(backoff: Backoff, expected: list[float]) -> None:
    assert _delays(RetryDefinition(9, backoff, initial_delay=2.0, multiplier=3.0, jitter=0.0)) == expected


@pytest.mark.parametrize("backoff", list(Backoff))
def test_no_backoff_is_longer_than_max_delay(backoff: Backoff) -> None:
    retry = RetryDefinition(99, backoff, initial_delay=2.0, multiplier=3.0, max_delay=7.0, jitter=0.0)
    assert max(_delays(retry, 50)) == (2.0 if backoff is Backoff.FIXED else 7.0)


def test_ten_thousand_attempts_overflow_nothing() -> None:
    retry = RetryDefinition(10_000, multiplier=1000.0, max_delay=300.0, jitter=0.0)
    assert delay_s(retry, 10_000, ERROR, "e1", "a") == 300.0
    at_once = RetryDefinition(10_000, initial_delay=0.0, multiplier=1000.0, max_delay=300.0, jitter=0.0)
    assert delay_s(at_once, 10_000, ERROR, "e1", "a") == 0.0


def test_a_slow_growth_goes_on_until_max_delay() -> None:
    # It once stood still after 64 attempts, at 23 s.
    retry = RetryDefinition(1000, initial_delay=1.0, multiplier=1.05, max_delay=300.0, jitter=0.0)
    assert delay_s(retry, 100, ERROR, "e1", "a") == pytest.approx(1.05**99)
    assert delay_s(retry, 500, ERROR, "e1", "a") == 300.0


def test_jitter_is_a_share_either_way_and_uses_the_whole_of_it() -> None:
    retry = RetryDefinition(9, Backoff.FIXED, initial_delay=10.0, jitter=0.2)
    delays = [delay_s(retry, attempt, ERROR, f"e{n}", "a") for n in range(200) for attempt in (1, 2, 3)]
    assert 8.0 <= min(delays) < 8.1
    assert 11.9 < max(delays) <= 12.0
    assert sum(delays) / len(delays) == pytest.approx(10.0, abs=0.2)


def test_jitter_is_the_same_in_every_process() -> None:
    # The number itself is part of the contract: every owner of every version finds it.
    retry = RetryDefinition(9, Backoff.FIXED, initial_delay=10.0, jitter=0.2)
    assert delay_s(retry, 1, ERROR, "e1", "a") == pytest.approx(11.74961555609498, abs=1e-9)


def test_jitter_differs_by_execution_task_and_attempt() -> None:
    retry = RetryDefinition(9, Backoff.FIXED, initial_delay=10.0, jitter=0.2)
    keys = itertools.product(("e1", "e2"), ("a", "b"), (1, 2))
    assert len({delay_s(retry, attempt, ERROR, execution, name) for execution, name, attempt in keys}) == 8


@pytest.mark.parametrize(("asked", "expected"), [(42.0, 42.0), (0.0, 0.0), (-5.0, 0.0), (float("nan"), 0.0)])
def test_retry_after_is_taken_as_it_is_but_never_negative(asked: float, expected: float) -> None:
    retry = RetryDefinition(9, Backoff.FIXED, initial_delay=10.0, max_delay=11.0, jitter=0.2)
    assert delay_s(retry, 1, TaskError("busy", "", retry_after=asked), "e1", "a") == expected


@pytest.mark.parametrize(
    ("attempt", "error", "expected"),
    [
        (1, TaskError("boom", ""), True),
        (2, TaskError("boom", ""), True),
        (3, TaskError("boom", ""), False),
        (4, TaskError("boom", ""), False),
        (1, TaskError("boom", "", retryable=False), False),
        (1, TaskError("bad-input", ""), False),
    ],
)
def test_an_attempt_is_tried_again_while_there_are_attempts_and_the_error_allows_it(
    attempt: int, error: TaskError, expected: bool
) -> None:
    assert is_retried(RetryDefinition(3, non_retryable=("bad-input",)), attempt, error) is expected
