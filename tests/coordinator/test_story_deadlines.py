"""The timers of an attempt: timeout, queue_timeout, total_timeout, and agents that never say that they began."""

from infinity_matrix_actors.effect import Arm
from story import START, Story, task, workflow

DAY = 86_400.0


def _one(**fields: object) -> Story:
    return Story(workflow(task("a", **fields)))


def test_every_attempt_has_a_limit_of_a_day() -> None:
    story = _one().tells("started")
    assert story.armed() == {"a": DAY}
    assert story.timer("a", DAY - 1) == [f"arm a {DAY:g}"]
    assert story.timer("a", DAY) == ["close a.1 timed_out", "arm a 86405"]


def test_a_closing_that_became_no_fact_is_asked_for_again() -> None:
    story = _one(total_timeout=20.0).tells("started")
    assert story.timer("a", 20.0) == ["close a.1 timed_out", "arm a 25"]
    assert story.timer("a", 25.0) == ["close a.1 timed_out", "arm a 30"]


def test_the_timeout_counts_from_when_the_attempt_was_taken() -> None:
    story = _one(timeout=60.0).tells("started", "+5 a taken")
    assert story.armed() == {"a": 65.0}
    assert story.timer("a", 64.0) == ["arm a 65"]
    assert story.timer("a", 65.0) == ["close a.1 timed_out", "arm a 70"]


def test_the_total_timeout_cuts_the_timeout_short() -> None:
    story = _one(timeout=60.0, total_timeout=30.0).tells("started", "+5 a taken")
    assert story.armed() == {"a": 30.0}
    assert story.timer("a", 30.0) == ["close a.1 timed_out", "arm a 35"]


def test_reaching_the_total_timeout_is_not_tried_again_but_a_timeout_is() -> None:
    retry = {"max_attempts": 5, "backoff": "fixed", "initial_delay": 1.0, "jitter": 0.0}
    story = _one(timeout=10.0, total_timeout=100.0, retry=retry).tells("started", "a taken")
    closing = story.actor.expire("a", START + 11.0)[0]
    assert closing.error.retryable  # type: ignore[union-attr]
    closing = story.actor.expire("a", START + 100.0)[0]
    assert not closing.error.retryable  # type: ignore[union-attr]


def test_a_taken_attempt_without_a_timeout_has_the_total_one() -> None:
    story = _one(queue_timeout=5.0).tells("started", "+2 a taken")
    assert story.armed() == {"a": DAY}
    assert story.timer("a", 100.0) == [f"arm a {DAY:g}"]


def test_a_quiet_attempt_is_asked_about() -> None:
    story = _one(timeout=5.0).tells("started")
    assert story.armed() == {"a": 0.25}
    assert story.timer("a", 0.25) == ["ask a.1"]


def test_a_quiet_attempt_with_a_long_timeout_is_asked_about_later() -> None:
    story = _one(timeout=60.0).tells("started")
    assert story.armed() == {"a": 3.0}
    assert story.timer("a", 3.0) == ["ask a.1"]


def test_an_attempt_without_limits_of_its_own_is_never_asked_about() -> None:
    story = _one().tells("started")
    assert story.timer("a", 1.0) == [f"arm a {DAY:g}"]


def test_a_queued_attempt_is_asked_about_again_until_its_queue_timeout() -> None:
    story = _one(queue_timeout=5.0).tells("started")
    assert story.quiet("a", 0.3, is_queued=True) == ["arm a 1.3"]
    assert story.quiet("a", 4.5, is_queued=True) == ["arm a 5"]
    assert story.quiet("a", 5.0, is_queued=True) == ["close a.1 timed_out", "arm a 10"]


def test_a_queued_attempt_without_a_queue_timeout_waits_for_the_total_one() -> None:
    story = _one(timeout=60.0, total_timeout=100.0).tells("started")
    assert story.quiet("a", 50.0, is_queued=True) == ["arm a 53"]
    assert story.quiet("a", 99.5, is_queued=True) == ["arm a 100"]
    assert story.timer("a", 100.0) == ["close a.1 timed_out", "arm a 105"]


def test_the_queue_timeout_does_not_close_what_was_taken_in_silence() -> None:
    story = _one(queue_timeout=5.0).tells("started")
    assert story.quiet("a", 50.0, is_queued=False, seen_at=2.0) == [f"arm a {DAY:g}"]


def test_a_quiet_agent_has_its_timeout_from_when_it_was_first_seen_to_have_taken_it() -> None:
    story = _one(timeout=60.0).tells("started")
    assert story.quiet("a", 2.0, is_queued=False, seen_at=2.0) == ["arm a 62"]
    assert story.quiet("a", 61.0, is_queued=False, seen_at=2.0) == ["arm a 62"]
    assert story.quiet("a", 62.0, is_queued=False, seen_at=2.0) == ["close a.1 timed_out", "arm a 67"]


def test_a_quiet_agent_never_gets_more_than_the_total_timeout() -> None:
    story = _one(timeout=60.0, total_timeout=70.0).tells("started")
    assert story.quiet("a", 20.0, is_queued=False, seen_at=20.0) == ["arm a 70"]


def test_an_answer_about_an_attempt_that_has_moved_on_asks_for_nothing() -> None:
    retry = {"max_attempts": 3, "backoff": "fixed", "initial_delay": 1.0, "jitter": 0.0}
    story = _one(timeout=60.0, queue_timeout=5.0, retry=retry).tells("started", "+2 a taken")
    assert story.quiet("a", 50.0, is_queued=True) == []  # taken by now
    story.tells("a fails")
    assert story.quiet("a", 50.0, is_queued=True) == []  # between two attempts
    story.tells("a due 2")
    assert story.actor.expire_quiet("a", 1, START + 500.0, True, None) == []  # about the first
    assert story.quiet("a", 50.0, is_queued=True) == ["close a.2 timed_out", "arm a 55"]
    story.tells("a ok")
    assert story.quiet("a", 50.0, is_queued=True) == []
    assert story.actor.expire_quiet("zzz", 1, START + 500.0, True, None) == []


def test_a_second_attempt_has_its_own_queue_timeout() -> None:
    retry = {"max_attempts": 3, "backoff": "fixed", "initial_delay": 10.0, "jitter": 0.0}
    story = _one(queue_timeout=5.0, retry=retry).tells("started", "a fails", "+10 a due 2")
    assert story.armed() == {"a": 11.25}
    assert story.quiet("a", 15.0, is_queued=True) == ["arm a 16"]
    assert story.quiet("a", 16.0, is_queued=True) == ["close a.2 timed_out", "arm a 21"]


def test_a_new_owner_arms_what_is_pending() -> None:
    retry = {"max_attempts": 3, "backoff": "fixed", "initial_delay": 10.0, "jitter": 0.0}
    definition = workflow(task("a", timeout=60.0), task("b", retry=retry), task("c", "a"), timeout=500.0)
    story = Story(definition).tells("started", "+5 a taken", "+1 b fails")
    armed = {e.task: e.at - START for e in story.actor.outstanding() if isinstance(e, Arm)}
    assert armed == {"a": 65.0, "b": 16.0, None: 500.0}
    assert armed == story.armed()
