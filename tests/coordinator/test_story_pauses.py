"""Pauses: what runs goes on, timers fire and become facts, and nothing is dispatched until it is resumed."""

import pytest
from story import Story, each, loop, task, undo, wait, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}


def test_what_runs_goes_on_and_what_follows_waits() -> None:
    Story(workflow(task("a"), task("b"), task("c", "a", "b"))).check(
        """
        started -> work a.1, work b.1
        pause   ->           | =paused
        a ok    ->           | a completed
        b ok    ->           | c waiting
        resume  -> work c.1  | =running, c queued
        c ok    -> finished completed
        """
    )


def test_what_was_held_goes_out_in_its_order() -> None:
    Story(workflow(task("a"), task("b", "a"), task("c", "a"), task("d", "a"))).check(
        """
        started -> work a.1
        pause   ->
        a ok    ->
        resume  -> work b.1, work c.1, work d.1
        """
    )


@pytest.mark.parametrize("again", ["pause", "pause 7"])
def test_a_second_pause_changes_nothing(again: str) -> None:
    story = Story(workflow(task("a"))).tells("started", "pause")
    before = story.actor.record()
    assert story.tell(again) == []
    assert story.actor.record() == before


def test_a_resume_of_what_is_not_paused_changes_nothing() -> None:
    story = Story(workflow(task("a"))).tells("started")
    before = story.actor.record()
    assert story.tell("resume") == []
    assert story.actor.record() == before


def test_a_backoff_that_is_over_while_paused_waits_for_the_resume() -> None:
    story = Story(workflow(task("a", retry=RETRY))).check(
        """
        started    -> work a.1
        a fails    ->          | a retrying
        pause      ->
        +5 a due 2 ->          | a retrying
        """
    )
    assert story.timer("a", 100.0) == []
    story.check(
        """
        +60 resume -> work a.2
        a ok       -> finished completed
        """
    )


def test_a_backoff_that_is_not_over_at_the_resume_goes_on() -> None:
    Story(workflow(task("a", retry=RETRY))).check(
        """
        started    -> work a.1
        a fails    ->
        pause      ->
        resume     ->
        +5 a due 2 -> work a.2
        """
    )


def test_waits_and_timeouts_go_on_while_paused() -> None:
    Story(workflow(wait("s", sleep=10.0), wait("w", wait_for="go"), task("b", "s", "w"))).check(
        """
        started     ->
        pause       ->
        +10 s due 1 ->          | s completed
        signal go 1 ->          | w completed, b waiting
        resume      -> work b.1
        """
    )


def test_a_running_attempt_may_time_out_while_paused_and_is_tried_again_later() -> None:
    Story(workflow(task("a", timeout=10.0, retry=RETRY))).check(
        """
        started              -> work a.1
        pause                ->
        +20 a closed timed_out -> purge a.1, tell a | a retrying
        +5 a due 2           ->
        resume               -> work a.2
        """
    )


def test_a_map_that_is_paused_begins_no_more_instances() -> None:
    Story(workflow(each("m", "input", max_parallel=2)), [0, 1, 2, 3]).check(
        """
        started -> work m~0.1, work m~1.1
        pause   ->
        m~0 ok  ->
        m~1 ok  ->
        resume  -> work m~2.1, work m~3.1
        m~2 ok  ->
        m~3 ok  -> finished completed
        """
    )


def test_a_loop_that_is_paused_waits_before_its_next_iteration() -> None:
    Story(workflow(loop("l", "result.n > 1"))).check(
        """
        started  -> work l~0.1
        pause    ->
        l~0 ok 1 ->
        resume   -> work l~1.1
        """
    )


def test_what_completes_while_paused_completes_the_execution() -> None:
    Story(workflow(task("a"))).check(
        """
        started -> work a.1
        pause   ->
        a ok    -> finished completed
        resume  ->
        """
    )


def test_a_cancel_ends_what_is_paused() -> None:
    Story(workflow(task("a"), task("b", "a"), on_failure=(undo("a", "undo-a"),))).check(
        """
        started   -> work a.1
        pause     ->
        a ok      ->
        cancel    -> work undo-a.1      | b cancelled, =compensating
        undo-a ok -> finished cancelled
        """
    )


def test_compensations_wait_while_paused() -> None:
    Story(workflow(task("a"), task("b", "a"), on_failure=(undo("a", "undo-a"), undo(None, "tell")))).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        pause     ->
        b fatal   ->                 | =paused
        resume    -> work undo-a.1   | =compensating
        pause     ->                 | =paused
        undo-a ok ->
        resume    -> work tell.1     | =compensating
        tell ok   -> finished failed
        """
    )


def test_a_timeout_of_the_whole_ends_what_is_paused() -> None:
    story = Story(workflow(task("a"), timeout=60.0)).tells("started", "pause")
    assert story.timer(None, 60.0)[0] == "deadline"
    story.check(
        """
        +60 deadline -> tell all
        a stops      -> finished failed
        """
    )


def test_a_pause_before_the_start_holds_everything() -> None:
    story = Story(workflow(task("a"), task("b")))
    story.tells("started", "pause", "resume")
    late = Story(workflow(task("a"), wait("w", wait_for="go"), task("b", "w")))
    late.tells("started", "signal go", "pause", "b ok", "a ok")
    late.check_states("a completed, b completed, =completed")


def test_a_pause_after_the_end_changes_nothing() -> None:
    story = Story(workflow(task("a"))).tells("started", "a ok")
    assert story.tell("pause") == []
    story.check_states("=completed")
