"""Rates as users write them, and a token bucket on a clock of the test's own."""

import pytest
from infinity_matrix_agents import Agent, InvalidAgent
from infinity_matrix_agents.rate import RATE_MAX_PER_S, TokenBucket, parse_rate


@pytest.mark.parametrize(
    ("text", "per_s"),
    [
        ("10/s", 10),
        ("600/m", 10),
        ("5000/h", 5000 / 3600),
        ("1/d", 1 / 86_400),
        (" 2.5 / s ", 2.5),
        ("3", 3),
        (0.5, 0.5),
    ],
)
def test_a_rate_is_works_a_second(text: object, per_s: float) -> None:
    assert parse_rate(text) == pytest.approx(per_s)


@pytest.mark.parametrize(
    "value", ["", "fast", "10/w", "-1/s", "0/s", 0, True, float("nan"), float("inf"), "1/s/s", [1]]
)
def test_what_is_no_rate_is_refused_where_the_agent_is_defined(value: object) -> None:
    with pytest.raises(InvalidAgent, match=r"agent 'a': rate is"):
        Agent("a", rate=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["12", [], [1], [""], 3, ["1"] * 101])
def test_versions_are_a_list_of_texts(value: object) -> None:
    with pytest.raises(InvalidAgent, match="versions is"):
        Agent("a", versions=value)  # type: ignore[arg-type]
    assert Agent("a", versions=["1", "2"]).versions == ("1", "2")


@pytest.mark.parametrize(("rate", "burst"), [(0.5, 1), (10.0, 1), (100.0, 10), (RATE_MAX_PER_S, 10_000)])
def test_a_bucket_never_gives_more_than_its_rate_and_one_burst(rate: float, burst: int) -> None:
    now = 0.0
    bucket = TokenBucket(rate, lambda: now)
    taken = 0
    for _ in range(1000):
        while bucket.available and taken < 2_000_000:
            bucket.take()
            taken += 1
        assert taken <= rate * now + burst + 0.01
        wait_s = bucket.next_in_s()
        assert wait_s is not None
        now += wait_s
    # And no less either: whoever comes for each token gets it.
    assert taken >= 1000


def test_a_full_bucket_fills_no_further_and_has_nothing_to_wait_for() -> None:
    now = 0.0
    bucket = TokenBucket(10.0, lambda: now)
    now = 3600.0
    assert (bucket.available, bucket.next_in_s()) == (1, None)
    bucket.take()
    assert (bucket.available, bucket.next_in_s()) == (0, pytest.approx(0.1))


def test_what_came_without_a_token_is_paid_for_later() -> None:
    now = 0.0
    bucket = TokenBucket(10.0, lambda: now)
    for _ in range(3):
        bucket.take()
    assert bucket.available == 0
    assert bucket.next_in_s() == pytest.approx(0.3)
