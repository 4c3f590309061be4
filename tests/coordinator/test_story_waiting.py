"""Tasks that wait, for a signal or for time: no work, no barrier, and what came early is kept."""

import pytest
from infinity_matrix_actors.definition import TaskDefinition
from infinity_matrix_coordinator import waiting
from story import START, Story, task, undo, wait, workflow


def test_a_signal_is_the_result_of_the_task_that_waits_for_it() -> None:
    story = Story(workflow(task("a"), wait("w", "a", wait_for="go"), task("b", "w"))).check(
        """
        started       -> work a.1
        a ok          ->              | w running, b waiting
        signal go yes -> work b.1     | w completed
        b ok          -> finished completed
        """
    )
    assert story.actor.tasks["w"].result == "yes"


def test_a_signal_that_comes_before_its_waiter_is_kept() -> None:
    story = Story(workflow(task("a"), wait("w", "a", wait_for="go"))).check(
        """
        started         -> work a.1
        signal go first ->
        signal go more  ->
        signal other x  ->
        a ok            -> finished completed | w completed
        """
    )
    assert story.actor.tasks["w"].result == "first"
    assert story.actor.record()["signals"] == {"go": ["more"], "other": ["x"]}


def test_one_signal_is_for_one_waiter_the_oldest_first() -> None:
    story = Story(workflow(wait("v", wait_for="go"), wait("w", wait_for="go"))).check(
        """
        started     ->                    | v running, w running
        signal go 1 ->                    | v completed, w running
        signal go 2 -> finished completed | w completed
        """
    )
    assert [story.actor.tasks[name].result for name in ("v", "w")] == ["1", "2"]


def test_a_signal_that_does_not_come_fails_its_task() -> None:
    story = Story(workflow(wait("w", wait_for="go", timeout=60.0)))
    story.tells("started")
    assert story.timer("w", 60.0)[0] == "due w.1"
    story.tell("+60 w due 1")
    assert story.actor.state == "failed"
    assert story.actor.error is not None
    assert story.actor.error["type"] == "timed_out"


def test_on_timeout_is_the_result_when_the_signal_does_not_come() -> None:
    story = Story(workflow(wait("w", wait_for="go", timeout=60.0, on_timeout={"result": "no"}), task("b", "w"))).check(
        """
        started     ->
        +60 w due 1 -> work b.1 | w completed
        signal go x ->
        b ok        -> finished completed
        """
    )
    assert story.actor.tasks["w"].result == "no"


def test_a_signal_that_came_in_time_leaves_the_late_timer_without_effect() -> None:
    Story(workflow(wait("w", wait_for="go", timeout=60.0), task("b", "w"))).check(
        """
        started     ->
        signal go x -> work b.1
        +60 w due 1 ->
        b ok        -> finished completed
        """
    )


@pytest.mark.parametrize("waiting", [wait("w", sleep=3600.0), wait("w", until=START + 3600.0)])
def test_time_is_waited_for_by_one_timer_and_no_message(waiting: TaskDefinition) -> None:
    story = Story(workflow(waiting, task("b", "w"))).tells("started")
    assert story.armed() == {"w": 3600.0}
    assert story.timer("w", 10.0) == ["arm w 3600"]
    assert story.timer("w", 3600.0)[0] == "due w.1"
    story.check_states("w running, b waiting")
    story.tell("+3600 w due 1")
    story.check_states("w completed, b queued")


def test_a_cancel_ends_what_waits_at_once() -> None:
    story = Story(workflow(wait("w", sleep=3600.0), task("b", "w"))).check(
        """
        started     ->
        cancel      -> finished cancelled | w cancelled, b cancelled
        """
    )
    assert story.armed() == {}


def test_a_failure_elsewhere_does_not_wait_for_a_signal() -> None:
    Story(workflow(task("a"), wait("w", wait_for="go"), on_failure=(undo("a", "undo-a"),))).check(
        """
        started     -> work a.1
        a fatal     -> finished failed | w cancelled
        """
    )


def test_signals_nobody_waits_for_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SIGNALS_KEPT_MAX", 2)
    story = Story(workflow(task("a"))).tells("started", "signal go 1", "signal other 2", "signal go 3")
    assert story.actor.record()["signals"] == {"go": ["1"], "other": ["2"]}
    assert story.actor.ignored == 1
