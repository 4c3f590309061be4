"""One attempt after another: retries, due facts, taken, outcomes that come late, twice or from elsewhere."""

import pytest
from story import START, Story, task, workflow

THREE = {"max_attempts": 3, "backoff": "fixed", "initial_delay": 10.0, "jitter": 0.0}


def _one(**fields: object) -> Story:
    return Story(workflow(task("a", **fields)))


def test_a_failed_attempt_is_tried_again_once_its_backoff_is_a_fact() -> None:
    story = _one(retry=THREE)
    story.check(
        """
        started      -> work a.1          | a queued
        a fails      ->                   | a retrying, =running
        +10 a due 2  -> work a.2          | a queued
        a fails      ->                   | a retrying
        +10 a due 3  -> work a.3          | a queued
        a ok         -> finished completed | a completed
        """
    )


def test_the_last_attempt_fails_the_task() -> None:
    story = _one(retry={**THREE, "max_attempts": 2}).check(
        """
        started      -> work a.1
        a fails one  ->
        +10 a due 2  -> work a.2
        a fails two  -> finished failed   | a failed, =failed
        """
    )
    assert story.actor.error is not None
    assert story.actor.error["type"] == "two"


def test_a_task_without_a_retry_policy_is_tried_once() -> None:
    _one().check(
        """
        started -> work a.1
        a fails -> finished failed
        """
    )


def test_an_error_that_is_not_retryable_is_final() -> None:
    _one(retry=THREE).check(
        """
        started -> work a.1
        a fatal -> finished failed
        """
    )


def test_an_error_type_that_is_listed_as_final_is_final() -> None:
    _one(retry={**THREE, "non_retryable": ("bad-input",)}).check(
        """
        started           -> work a.1
        a fails other     ->              | a retrying
        a due 2           -> work a.2
        a fails bad-input -> finished failed
        """
    )


def test_the_backoff_is_armed_from_the_time_of_the_failure() -> None:
    story = _one(retry=THREE).tells("started", "+5 a fails")
    assert story.armed()["a"] == 15.0
    assert story.timer("a", 14.9) == ["arm a 15"]
    assert story.timer("a", 15.0) == ["due a.2", "arm a 20"]


def test_retry_after_goes_before_the_backoff() -> None:
    story = _one(retry=THREE).tells("started", "a later 42")
    assert story.armed()["a"] == 43.0


def test_a_backoff_that_ends_after_the_total_timeout_is_not_begun() -> None:
    # First dispatched at 0; a failure at 40 + 10 is not before the 50 s, at 39 it is.
    _one(retry=THREE, total_timeout=50.0).check(
        """
        started      -> work a.1
        +40 a fails  -> finished failed
        """
    )
    _one(retry=THREE, total_timeout=50.0).check(
        """
        started      -> work a.1
        +39 a fails  ->                   | a retrying
        """
    )


def test_the_total_timeout_counts_from_the_first_attempt() -> None:
    _one(retry=THREE, total_timeout=50.0).check(
        """
        started      -> work a.1
        +20 a fails  ->
        +10 a due 2  -> work a.2
        +15 a fails  -> finished failed   | a failed
        """
    )


def test_a_retry_after_beyond_the_total_timeout_fails_the_task() -> None:
    _one(retry=THREE, total_timeout=50.0).check(
        """
        started      -> work a.1
        a later 3600 -> finished failed
        """
    )


def test_each_task_counts_its_own_attempts() -> None:
    Story(workflow(task("a", retry=THREE), task("b", retry=THREE), task("c", "a", "b"))).check(
        """
        started  -> work a.1, work b.1
        a fails  ->                       | a retrying, b queued
        a due 2  -> work a.2
        b fails  ->                       | a queued, b retrying
        a.2 ok   ->                       | a completed, c waiting
        b due 2  -> work b.2
        b.2 ok   -> work c.1
        """
    )


# Due facts.


@pytest.mark.parametrize("attempt", [1, 3, 4])
def test_a_due_fact_of_another_attempt_changes_nothing(attempt: int) -> None:
    story = _one(retry=THREE).tells("started", "a fails")
    before = story.actor.record()
    story.check(f"a due {attempt} -> | a retrying")
    assert story.actor.record() == before
    story.check("a due 2 -> work a.2")


def test_a_due_fact_that_nothing_waits_for_changes_nothing() -> None:
    _one(retry=THREE).check(
        """
        started  -> work a.1
        a due 2  ->                       | a queued
        a fails  ->                       | a retrying
        a due 2  -> work a.2              | a queued
        a due 2  ->                       | a queued
        a ok     -> finished completed
        a due 3  ->                       | a completed
        """
    )


def test_a_due_fact_of_a_task_that_is_not_there_changes_nothing() -> None:
    _one().check(
        """
        started  -> work a.1
        zzz due 1 ->                      | a queued
        """
    )


def test_a_due_fact_after_a_failure_dispatches_nothing() -> None:
    # The log's order decides: the failure was first (rule 1).
    Story(workflow(task("a", retry=THREE), task("b"), task("c"))).check(
        """
        started  -> work a.1, work b.1, work c.1
        a fails  ->                       | a retrying
        b fails  -> tell all              | b failed
        +10 a due 2 ->                    | a retrying
        c ok     -> finished failed       | a cancelled, c completed
        """
    )


def test_a_due_fact_before_a_failure_is_waited_for() -> None:
    Story(workflow(task("a", retry=THREE), task("b"))).check(
        """
        started  -> work a.1, work b.1
        a fails  ->                       | a retrying
        +10 a due 2 -> work a.2
        b fails  -> tell all              | a queued, b failed, =running
        a ok     -> finished failed       | a completed
        """
    )


def test_a_backoff_whose_execution_is_ending_asks_for_no_due_fact() -> None:
    story = Story(workflow(task("a", retry=THREE), task("b"), task("c")))
    story.tells("started", "a fails")
    assert story.timer("a", 20.0) == ["due a.2", "arm a 25"]
    story.tells("b fails")
    assert story.timer("a", 20.0) == []


def test_a_late_due_fact_dispatches_all_the_same() -> None:
    _one(retry=THREE).check(
        """
        started         -> work a.1
        a fails         ->
        +86000 a due 2  -> work a.2
        """
    )


# Taken.


def test_taken_makes_an_attempt_run() -> None:
    story = _one(timeout=60.0).check(
        """
        started    -> work a.1            | a queued
        +5 a taken ->                     | a running
        """
    )
    assert story.armed() == {"a": 65.0}
    story.check("a ok -> finished completed | a completed")
    assert story.armed() == {}


def test_taken_twice_counts_once() -> None:
    story = _one(timeout=60.0).tells("started", "+5 a taken")
    before = story.actor.record()
    assert story.tell("+30 a taken") == []
    assert story.actor.record() == before


def test_taken_of_an_attempt_that_is_not_open_changes_nothing() -> None:
    _one(retry=THREE).check(
        """
        started   -> work a.1
        a.2 taken ->                      | a queued
        a fails   ->                      | a retrying
        a.1 taken ->                      | a retrying
        a due 2   -> work a.2             | a queued
        a.1 taken ->                      | a queued
        a.2 taken ->                      | a running
        a.2 ok    -> finished completed
        """
    )


def test_a_new_attempt_knows_nothing_of_the_times_of_the_one_before() -> None:
    story = _one(retry=THREE, timeout=60.0).tells("started", "a taken", "a fails", "+10 a due 2")
    actor = story.actor.tasks["a"]
    assert (actor.taken_at, actor.started_at, actor.completed_at, actor.retry_at) == (None, None, None, None)
    assert actor.error is not None  # why there is a second attempt
    assert actor.dispatched_at == START + 12
    assert actor.first_dispatched_at == START


# Outcomes that do not count.


def test_a_second_outcome_of_an_attempt_changes_nothing() -> None:
    Story(workflow(task("a"), task("b", "a"))).check(
        """
        started -> work a.1
        a ok 1  -> work b.1               | a completed
        a ok 2  ->                        | a completed
        a fails ->                        | a completed, b queued
        b ok    -> finished completed
        """
    )


def test_an_outcome_of_an_attempt_that_is_over_changes_nothing() -> None:
    _one(retry=THREE).check(
        """
        started  -> work a.1
        a fails  ->                       | a retrying
        a.1 ok   ->                       | a retrying
        a due 2  -> work a.2
        a.1 ok   ->                       | a queued
        a.2 ok   -> finished completed
        """
    )


def test_an_outcome_of_an_attempt_that_was_never_dispatched_changes_nothing() -> None:
    Story(workflow(task("a", retry=THREE), task("b", "a"))).check(
        """
        started  -> work a.1
        a.2 ok   ->                       | a queued
        b.1 ok   ->                       | b waiting
        zzz.1 ok ->                       | a queued
        a.1 ok   -> work b.1              | a completed
        """
    )


def test_an_outcome_by_an_agent_that_is_not_the_tasks_changes_nothing() -> None:
    story = Story(workflow(task("a"), task("b", "a"))).check(
        """
        started       -> work a.1
        a@thief ok    ->                  | a queued
        a@thief taken ->                  | a queued
        a@thief fatal ->                  | a queued, =running
        a ok          -> work b.1         | a completed
        """
    )
    assert story.actor.ignored == 3


def test_a_second_started_changes_nothing() -> None:
    Story(workflow(task("a"), task("b", "a"))).check(
        """
        started -> work a.1
        started ->                        | a queued
        a ok    -> work b.1
        started ->                        | a completed, b queued
        """
    )


def test_a_signal_that_nothing_waits_for_changes_nothing() -> None:
    _one().check(
        """
        started -> work a.1
        signal  ->                        | a queued
        """
    )


# Attempts that a coordinator closed.


def test_a_closed_attempt_is_purged_once_more_before_anything_follows() -> None:
    _one(retry=THREE).check(
        """
        started             -> work a.1
        a closed timed_out  -> purge a.1, tell a | a retrying
        +10 a due 2         -> work a.2
        a ok                -> finished completed
        """
    )


def test_a_new_owner_purges_what_was_closed_even_when_nothing_else_is_left_to_do() -> None:
    story = _one().check(
        """
        started             -> work a.1
        a closed timed_out  -> purge a.1, tell a, finished failed | a failed, =failed
        """
    )
    kinds = [type(effect).__name__ for effect in story.actor.outstanding()]
    assert kinds == ["PurgeWork", "PublishDead", "PublishFinished"]
    story.check("finished failed ->")
    assert story.actor.outstanding() == []


def test_a_late_success_of_a_closed_attempt_changes_nothing() -> None:
    _one(retry=THREE).check(
        """
        started             -> work a.1
        a closed timed_out  -> purge a.1, tell a | a retrying
        a.1 ok              ->                   | a retrying
        """
    )


@pytest.mark.parametrize("kind", ["undeliverable", "poison"])
def test_work_that_cannot_be_done_is_not_tried_again(kind: str) -> None:
    _one(retry=THREE).check(
        f"""
        started           -> work a.1
        a closed {kind}   -> purge a.1, tell a, finished failed | a failed
        """
    )
