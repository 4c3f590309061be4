"""How an execution ends: cancel, its own timeout, grace and closings, the barrier, and that the end is final."""

import pytest
from infinity_matrix_actors.effect import TellAgents
from story import Story, task, workflow

RETRY = {"max_attempts": 3, "backoff": "fixed", "initial_delay": 10.0, "jitter": 0.0}
TWO = workflow(task("a"), task("b"), task("c", "a", "b"), grace=10.0)


def test_a_cancel_with_nothing_running_ends_it_at_once() -> None:
    story = Story(workflow(task("a", retry=RETRY), task("b", "a"))).check(
        """
        started -> work a.1
        a fails ->                        | a retrying
        cancel  -> finished cancelled     | a cancelled, b cancelled, =cancelled
        """
    )
    assert story.actor.error == {"type": "cancelled", "message": "cancelled on request"}
    assert story.armed() == {}


def test_a_cancel_tells_the_agents_and_waits_for_their_outcome() -> None:
    story = Story(TWO).check(
        """
        started -> work a.1, work b.1
        a ok    ->                        | a completed
        cancel  -> tell all               | b queued, =running
        b ok    -> finished cancelled     | b completed, c cancelled, =cancelled
        """
    )
    assert story.actor.progress_percent() == 100.0


def test_what_fails_while_it_is_cancelled_is_not_tried_again() -> None:
    Story(workflow(task("a", retry=RETRY), task("b"))).check(
        """
        started -> work a.1, work b.1
        cancel  -> tell all
        a fails ->                        | a failed
        b ok    -> finished cancelled     | =cancelled
        """
    )


def test_an_agent_that_stops_when_told_is_cancelled_and_not_failed() -> None:
    Story(TWO).check(
        """
        started           -> work a.1, work b.1
        cancel            -> tell all
        a fatal cancelled ->                 | a cancelled
        b fatal cancelled -> finished cancelled | b cancelled, c cancelled
        """
    )


def test_an_error_named_cancelled_is_a_failure_when_nobody_asked_for_it() -> None:
    Story(workflow(task("a"))).check(
        """
        started           -> work a.1
        a fatal cancelled -> finished failed | a failed, =failed
        """
    )


def test_a_second_cancel_changes_nothing() -> None:
    Story(TWO).check(
        """
        started  -> work a.1, work b.1
        cancel 1 -> tell all
        cancel 2 ->
        a ok     ->
        b ok     -> finished cancelled
        """
    )


def test_a_cancel_after_a_failure_does_not_change_what_it_failed_of() -> None:
    story = Story(TWO).check(
        """
        started       -> work a.1, work b.1
        a fails first -> tell all
        cancel        ->                  | =running
        b ok          -> finished failed  | =failed
        """
    )
    assert story.actor.error is not None
    assert story.actor.error["type"] == "first"


def test_a_failure_after_a_cancel_leaves_it_cancelled() -> None:
    Story(TWO).check(
        """
        started -> work a.1, work b.1
        cancel  -> tell all
        a fails ->                        | a failed
        b fails -> finished cancelled     | =cancelled
        """
    )


def test_a_cancel_after_the_end_changes_nothing() -> None:
    Story(workflow(task("a"))).check(
        """
        started            -> work a.1
        a ok               -> finished completed | =completed
        cancel             ->                    | =completed
        finished completed ->
        cancel 2           ->                    | =completed
        """
    )


# The workflow's own timeout.


def test_the_timeout_of_the_workflow_becomes_a_fact_and_then_fails_it() -> None:
    story = Story(workflow(task("a"), task("b", "a"), timeout=60.0, grace=10.0)).tells("started")
    assert story.armed()[None] == 60.0
    assert story.timer(None, 59.0) == ["arm = 60"]
    assert story.timer(None, 60.0) == ["deadline", "arm = 65"]
    story.check(
        """
        +60 deadline -> tell all          | a queued, =running
        a ok         -> finished failed   | a completed, b cancelled, =failed
        """
    )
    assert story.actor.error == {"type": "timed_out", "message": "the workflow took longer than its timeout of 60 s"}


def test_a_workflow_without_a_timeout_arms_none() -> None:
    story = Story(TWO).tells("started")
    assert None not in story.armed()
    assert story.timer(None, 1e6) == []


def test_a_deadline_that_the_workflow_does_not_have_changes_nothing() -> None:
    # Anyone who may send commands could send it; it once raised, and the execution was quarantined.
    Story(TWO).check(
        """
        started  -> work a.1, work b.1
        deadline ->                       | a queued, =running
        a ok     ->
        b ok     -> work c.1
        """
    )


def test_a_deadline_after_a_cancel_changes_nothing() -> None:
    story = Story(workflow(task("a"), timeout=60.0)).check(
        """
        started      -> work a.1
        +59 cancel   -> tell all
        +1 deadline  ->
        a ok         -> finished cancelled | =cancelled
        """
    )
    assert story.armed() == {}


# Grace, closings, barrier.


@pytest.mark.parametrize("ends", ["cancel", "a fails"])
def test_after_the_grace_what_is_open_is_closed_and_asked_for_until_it_is_a_fact(ends: str) -> None:
    story = Story(workflow(task("a"), task("b"), task("d"), grace=10.0)).tells("started", f"+4 {ends}")
    assert story.armed()[None] == 14.0
    assert story.timer(None, 13.0) == ["arm = 14"]
    closing = [f"close {name}.1 cancelled" for name in "abd" if name in story.actor.open]
    assert story.timer(None, 14.0) == [*closing, "arm = 19"]
    assert story.timer(None, 19.0) == [*closing, "arm = 24"]
    assert len(closing) == (3 if ends == "cancel" else 2)


def test_closings_come_through_the_barrier_one_by_one() -> None:
    Story(TWO).check(
        """
        started             -> work a.1, work b.1
        cancel              -> tell all
        a closed cancelled  -> purge a.1, tell a                       | a cancelled, =running
        b closed cancelled  -> purge b.1, tell b, finished cancelled   | b cancelled, =cancelled
        """
    )


def test_an_attempt_that_times_out_within_the_grace_has_failed() -> None:
    story = Story(workflow(task("a", timeout=3.0, retry=RETRY), task("b"), grace=10.0))
    story.tells("started", "a taken", "cancel")
    assert story.timer("a", 4.0) == ["close a.1 timed_out", "arm a 9"]
    story.check(
        """
        a closed timed_out -> purge a.1, tell a     | a failed
        b ok               -> finished cancelled    | =cancelled
        """
    )


def test_nothing_terminal_while_an_attempt_is_open() -> None:
    story = Story(workflow(task("a"), task("b"), task("c"), task("d"))).tells("started", "a fails")
    for line in ("b taken", "b ok", "c ok"):
        story.tell(line)
        assert not story.actor.is_decided
        assert story.actor.open
        assert any(isinstance(effect, TellAgents) for effect in story.actor.outstanding())
    story.check("d ok -> finished failed | =failed")
    assert not story.actor.open


def test_an_end_decided_at_one_fact_is_not_changed_by_any_later_one() -> None:
    story = Story(workflow(task("a", retry=RETRY), task("b", "a"))).tells("started", "a fails", "cancel")
    unended = {"finished": None, "finishes": 0, "signals": {}}
    decided = {**story.actor.record(), **unended}
    for line in ("a.1 ok", "a due 2", "a.2 ok", "a.2 taken", "cancel 7", "b.1 ok", "started", "signal"):
        assert story.tell(line) == []
    story.check("finished cancelled ->")
    assert {**story.actor.record(), **unended} == decided
    assert story.actor.outstanding() == []


def test_the_end_is_asked_for_until_it_is_a_fact() -> None:
    story = Story(workflow(task("a"))).tells("started", "a ok")
    assert [type(effect).__name__ for effect in story.actor.outstanding()] == ["PublishFinished"]
    story.tell("finished completed")
    assert story.actor.outstanding() == []


def test_the_end_has_the_time_of_the_fact_that_decided_it() -> None:
    one, two = Story(workflow(task("a"))), Story(workflow(task("a")))
    one.tells("started", "+7 a ok", "+100 finished completed")
    two.tells("started", "+7 a ok")
    assert one.actor.decided_at == two.actor.decided_at == 1007.0


def test_every_timer_of_an_execution_that_is_over_asks_for_nothing() -> None:
    story = Story(workflow(task("a", timeout=5.0), task("b", retry=RETRY), timeout=60.0))
    story.tells("started", "a taken", "a ok", "b ok")
    assert story.actor.is_decided
    assert story.armed() == {}
    assert story.timer("a", 1e6) == story.timer("b", 1e6) == story.timer(None, 1e6) == []
    assert story.timer("never spoken to", 1e6) == []


def test_a_timer_of_a_task_nobody_spoke_to_asks_for_nothing_and_makes_no_actor() -> None:
    story = Story(workflow(task("a"), task("b", "a"))).tells("started")
    assert story.timer("b", 1e6) == []
    assert "b" not in story.actor.tasks


def test_what_still_lies_in_its_queue_when_stopped_need_not_wait_for_the_grace() -> None:
    story = Story(TWO).tells("started", "a taken", "cancel")
    assert story.armed()["b"] == 2.25
    assert story.timer("b", 2.25) == ["ask b.1"]
    assert story.quiet("b", 2.3, is_queued=True)[0] == "close b.1 cancelled"
    assert story.quiet("b", 2.3, is_queued=False) == ["arm b 86400"]
    assert "a" not in {name for name, at in story.armed().items() if at < 10.0}


def test_a_queued_attempt_past_its_total_timeout_is_closed_and_not_asked_about_for_ever() -> None:
    story = Story(workflow(task("a", total_timeout=5.0), grace=60.0)).tells("started", "cancel")
    assert story.quiet("a", 2.0, is_queued=False) == ["arm a 5"]
    assert story.timer("a", 5.0)[0] == "close a.1 timed_out"
