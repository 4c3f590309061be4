"""What an earlier run of an execution did and nobody undid: it is undone when the next run fails, too."""

from typing import Any

from infinity_matrix_actors.definition import CompensateWhen
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.work_message import work_record
from story import Story, each, task, undo, workflow

UNDOING = (undo("a", "undo-a"), undo("b", "undo-b"))
ONCE_MORE = ({"action": "retry", "max_attempts": 2, "delay": 0},)


def told_to_undo(story: Story, name: str) -> dict[str, Any]:
    """What the agent of an undoing task is told of what it undoes."""
    compensates: dict[str, Any] = work_record(Subjects("im"), 0, story.actor, name)["compensates"]
    return compensates


def test_what_completed_and_could_not_be_undone_is_undone_after_the_next_run() -> None:
    story = Story(workflow(task("a"), task("b", "a"), task("c", "b"), on_failure=UNDOING)).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b ok 7       -> work c.1
        c fatal      -> work undo-b.1
        undo-b fatal -> work undo-a.1
        undo-a ok    -> finished failed
        finished     ->
        retry        -> work a.2
        a ok         -> work b.2
        b fatal      -> work undo-b.2
        """
    )
    compensates = told_to_undo(story, "undo-b")
    assert {key: compensates.get(key) for key in ("state", "attempt", "result", "forward")} == {
        "state": "completed",
        "attempt": 1,
        "result": {"n": 7},
        "forward": None,
    }
    story.check(
        """
        undo-b ok    -> work undo-a.2
        undo-a ok    -> finished failed
        """
    )
    assert (story.actor.compensated, story.actor.compensation) == (("b", "a"), "complete")


def test_what_the_next_run_does_not_come_to_is_undone_as_well() -> None:
    Story(workflow(task("a"), task("b", "a"), task("c", "b"), on_failure=UNDOING)).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b ok         -> work c.1
        c fatal      -> work undo-b.1
        undo-b fatal -> work undo-a.1
        undo-a ok    -> finished failed
        finished     ->
        retry        -> work a.2
        a fatal      -> work undo-b.2
        undo-b ok    -> finished failed
        finished     ->
        retry        -> work a.3
        a fatal      -> finished failed
        """
    )


def test_an_attempt_of_an_earlier_run_that_was_closed_is_still_unknown() -> None:
    story = Story(workflow(task("a", timeout=5.0), on_failure=UNDOING[:1], on_error=ONCE_MORE)).check(
        """
        started            -> work a.1
        a taken            ->
        a closed timed_out -> purge a.1, tell a, work a.2
        a fatal            ->
        """
    )
    # The agent of the first attempt may still be at it: its lease is over 30 s after it was closed.
    assert story.armed()["undo-a"] == 32.0
    story.check(
        """
        +30 undo-a due 1   -> work undo-a.1
        """
    )
    assert told_to_undo(story, "undo-a")["forward"] == "unknown"


def test_a_compensation_that_may_have_been_done_lets_its_task_run_again() -> None:
    story = Story(workflow(task("a"), task("b", "a"), on_failure=(undo("a", "undo-a", timeout=5.0),))).check(
        """
        started                 -> work a.1
        a ok                    -> work b.1
        b fatal                 -> work undo-a.1
        undo-a taken            ->
        undo-a closed timed_out -> purge undo-a.1, tell undo-a, finished failed
        finished                ->
        retry                   -> work a.2 | a queued, b waiting
        a fatal                 -> work undo-a.2
        """
    )
    assert told_to_undo(story, "undo-a")["state"] == "completed"


def test_of_a_map_each_instance_is_known_by_itself() -> None:
    story = Story(
        workflow(task("a"), each("b", "input.items", "a"), task("c", "b"), on_failure=UNDOING), {"items": [1, 2]}
    ).check(
        """
        started        -> work a.1
        a ok           -> work b~0.1, work b~1.1
        b~0 ok         ->
        b~1 ok         -> work c.1
        c fatal        -> work undo-b~0.1, work undo-b~1.1
        undo-b~0 ok    ->
        undo-b~1 fatal -> work undo-a.1
        undo-a ok      -> finished failed
        finished       ->
        retry          -> work a.2
        a fatal        -> work undo-b~1.2
        undo-b~1 ok    -> finished failed
        """
    )
    assert story.actor.compensated == ("b~1",)


def test_what_was_only_attempted_is_undone_where_that_is_asked_for() -> None:
    undoing = (undo("a", "undo-a"), undo("b", "undo-b", compensate_when=CompensateWhen.ATTEMPTED))
    Story(workflow(task("a"), task("b", "a"), on_failure=undoing)).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b fatal      -> work undo-b.1
        undo-b fatal -> work undo-a.1
        undo-a ok    -> finished failed
        finished     ->
        retry        -> work a.2
        a fatal      -> work undo-b.2
        """
    )
