"""An execution that failed and goes on: after a delay, not once it was cancelled, and not beyond its own time."""

from typing import Any

import pytest
from infinity_matrix_actors.definition import ApprovalDefinition, OnDeadline, TaskDefinition, WorkflowDefinition
from story import Story, task, undo, wait, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}
ASK = ({"action": "ask"},)


def chain(**fields: Any) -> WorkflowDefinition:
    return workflow(task("a"), task("b", "a"), on_failure=(undo("a", "undo-a"),), **fields)


@pytest.mark.parametrize(("action", "after"), [({"delay": 3.0}, 3), ({}, 5)])
def test_what_failed_is_tried_again_after_the_delay_or_its_own_backoff(action: dict[str, Any], after: float) -> None:
    policy = ({"action": "retry", "max_attempts": 4, **action},)
    story = Story(workflow(task("a", retry=RETRY), task("b", "a"), on_error=policy)).check(
        """
        started      -> work a.1
        a fatal      ->             | a failed, =running
        """
    )
    assert story.armed() == {None: 1.0 + after}
    assert story.timer(None, after) == [f"arm = {1 + after}"]
    assert story.timer(None, 1.0 + after)[0] == "again"
    story.check(
        f"""
        +{after} again -> work a.2
        again          ->
        a ok           -> work b.1
        b ok           -> finished completed
        """
    )


def test_a_cancel_ends_what_was_to_be_tried_again() -> None:
    Story(chain(on_error=({"action": "retry", "max_attempts": 9, "delay": 60.0},))).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b fatal   ->
        cancel    -> work undo-a.1  | b failed, =compensating
        again     ->
        undo-a ok -> finished cancelled
        """
    )


def test_a_cancel_while_a_failure_is_wound_up_counts_where_it_might_have_gone_on() -> None:
    policy = ({"action": "retry", "max_attempts": 9, "delay": 0.0},)
    Story(workflow(task("a"), task("b"), on_error=policy)).check(
        """
        started -> work a.1, work b.1
        a fatal -> tell all
        cancel  ->
        b ok    -> finished cancelled
        """
    )
    Story(workflow(task("a"), task("b"))).check(
        """
        started -> work a.1, work b.1
        a fatal -> tell all
        cancel  ->
        b ok    -> finished failed
        """
    )


def test_a_cancel_while_the_host_is_asked_ends_it_whatever_the_answer() -> None:
    for answer in (
        "closed cancelled",
        'gives {"action":"retry","max_attempts":9,"delay":0}',
        'gives {"action":"skip"}',
    ):
        follows = "purge im-call~1.1, tell im-call~1, " if answer.startswith("closed") else ""
        Story(workflow(task("a"), on_error=ASK)).check(
            f"""
            started            -> work a.1
            a fatal            -> work im-call~1.1
            cancel             -> close im-call~1.1 cancelled
            im-call~1 {answer} -> {follows}finished cancelled
            """
        )


def test_a_paused_execution_that_failed_meanwhile_can_be_cancelled() -> None:
    Story(chain()).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        pause     ->                | =paused
        b fatal   ->                | =paused
        cancel    -> work undo-a.1  | =compensating
        undo-a ok -> finished failed
        """
    )


def test_an_execution_whose_time_is_over_is_not_taken_up_again() -> None:
    for action in ("retry", "skip"):
        Story(chain(on_error=({"action": action, "max_attempts": 9, "delay": 0.0},), timeout=60.0)).check(
            """
            started      -> work a.1
            a ok         -> work b.1
            +60 deadline -> tell all
            b fatal      -> work undo-a.1
            undo-a ok    -> finished failed
            """
        )


@pytest.mark.parametrize(
    ("waiting", "fails"),
    [
        (wait("w", wait_for="go", timeout=5.0), "w due 1"),
        (wait("w", approval=ApprovalDefinition(("ann",))), "w reject ann"),
        (wait("w", approval=ApprovalDefinition(deadline=5.0, on_deadline=OnDeadline.REJECT)), "w due 1"),
    ],
)
def test_a_wait_that_fails_is_asked_about_too(waiting: TaskDefinition, fails: str) -> None:
    Story(workflow(waiting, task("a"), on_task_failure=({"action": "retry"}, {"action": "skip"}))).check(
        f"""
        started -> work a.1
        {fails} -> | w skipped
        a ok    -> finished completed
        """
    )


def test_a_timeout_counts_from_the_start_however_often_it_goes_on() -> None:
    story = Story(chain(on_error=({"action": "retry", "max_attempts": 2, "delay": 0.0},), timeout=60.0))
    story.tells("started", "+50 a fatal")
    assert story.timer(None, 59.0) == ["arm = 60"]
    assert story.timer(None, 60.0)[0] == "deadline"
    story.check_states("a queued")
    story.check(
        """
        +10 deadline -> tell all
        a fatal      -> finished failed
        """
    )
