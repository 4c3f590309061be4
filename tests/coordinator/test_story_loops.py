"""Loops: one iteration after another until its last result says enough, and not for ever."""

import pytest
from infinity_matrix_actors.definition import LoopDefinition, MapDefinition
from story import Story, child, loop, render, task, undo, wait, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}


def test_a_loop_ends_when_its_last_result_says_so() -> None:
    story = Story(workflow(loop("l", "result.n >= 2"), task("b", "l"))).check(
        """
        started  -> work l~0.1  | l running
        l~0 ok 0 -> work l~1.1  | l~0 completed
        l~1 ok 1 -> work l~2.1
        l~2 ok 2 -> work b.1    | l completed
        b ok     -> finished completed
        """
    )
    assert story.actor.tasks["l"].result == {"n": 2}


def test_an_iteration_knows_the_one_before() -> None:
    config = {"last": "${{ previous }}", "number": "${{ iteration }}"}
    story = Story(workflow(loop("l", "result.n >= 9", config=config))).tells("started", "l~0 ok 4")
    assert story.actor.tasks["l~1"].config == {"last": {"n": 4}, "number": 1}
    first = Story(workflow(loop("l", "result.n >= 9", config=config))).tells("started")
    assert first.actor.tasks["l~0"].config == {"last": None, "number": 0}


def test_a_loop_may_end_by_its_count_and_by_the_input() -> None:
    definition = workflow(task("a"), loop("l", "iteration >= 1 || input.done", "a"))
    Story(definition, {"done": False}).check(
        """
        started -> work a.1
        a ok    -> work l~0.1
        l~0 ok  -> work l~1.1
        l~1 ok  -> finished completed
        """
    )


def test_a_loop_that_does_not_end_fails_after_its_iterations() -> None:
    story = Story(workflow(loop("l", "result.n > 9", max_iterations=2))).check(
        """
        started  -> work l~0.1
        l~0 ok 1 -> work l~1.1
        l~1 ok 1 -> finished failed | l failed
        """
    )
    assert story.actor.error is not None
    assert story.actor.error["type"] == "max_iterations"
    assert "after 2 iterations" in story.actor.error["message"]


@pytest.mark.parametrize(("until", "says"), [("result.missing", "missing"), ("result.n", "neither true nor false")])
def test_an_end_that_has_no_answer_fails_the_loop(until: str, says: str) -> None:
    story = Story(workflow(loop("l", until))).tells("started", "l~0 ok 1")
    story.check_states("l failed, =failed")
    assert says in str(story.actor.error)


def test_an_iteration_that_fails_fails_the_loop_with_its_error() -> None:
    story = Story(workflow(loop("l", "result.n > 9"))).check(
        """
        started   -> work l~0.1
        l~0 ok 1  -> work l~1.1
        l~1 fatal -> finished failed | l failed
        """
    )
    assert story.actor.error is not None
    assert story.actor.error["type"] == "boom"


def test_an_iteration_has_its_own_retries() -> None:
    Story(workflow(loop("l", "result.n > 0", retry=RETRY))).check(
        """
        started      -> work l~0.1
        l~0 fails    ->               | l~0 retrying, l running
        +5 l~0 due 2 -> work l~0.2
        l~0 ok 1     -> finished completed
        """
    )


def test_a_cancel_between_two_iterations_ends_the_loop() -> None:
    Story(workflow(loop("l", "result.n > 9"), on_failure=(undo("l", "undo-l"),))).check(
        """
        started     -> work l~0.1
        l~0 ok 1    -> work l~1.1
        cancel      -> tell all
        l~1 stops   -> work undo-l~0.1    | l~1 cancelled, l cancelled
        undo-l~0 ok -> finished cancelled
        """
    )


def test_a_stopped_loop_whose_iteration_completes_begins_no_other() -> None:
    Story(workflow(loop("l", "result.n > 9"))).check(
        """
        started  -> work l~0.1
        cancel   -> tell all
        l~0 ok 1 -> finished cancelled | l cancelled
        """
    )


def test_iterations_are_undone_in_reverse_order() -> None:
    definition = workflow(loop("l", "result.n > 2"), task("b", "l"), on_failure=(undo("l", "undo-l"),))
    story = Story(definition).check(
        """
        started     -> work l~0.1
        l~0 ok 1    -> work l~1.1
        l~1 ok 2    -> work l~2.1
        l~2 ok 3    -> work b.1
        b fatal     -> work undo-l~2.1
        undo-l~2 ok -> work undo-l~1.1
        undo-l~1 ok -> work undo-l~0.1
        undo-l~0 ok -> finished failed
        """
    )
    assert story.actor.compensated == ("l~2", "l~1", "l~0")


def test_an_iteration_that_could_not_be_undone_does_not_keep_those_before_it() -> None:
    definition = workflow(loop("l", "result.n > 1"), task("b", "l"), on_failure=(undo("l", "undo-l"),))
    story = Story(definition).tells("started", "l~0 ok 1", "l~1 ok 2", "b fatal")
    assert render(story.tell("undo-l~1 fatal")) == ["work undo-l~0.1"]
    assert render(story.tell("undo-l~0 ok")) == ["finished failed"]
    assert (story.actor.compensated, story.actor.compensation) == (("l~0",), "incomplete")


def test_each_item_of_a_map_has_a_loop_of_its_own() -> None:
    looped = loop("m", "result.n >= item", config={"item": "${{ item }}", "before": "${{ previous }}"})
    definition = workflow(task("a"), task("b", "m"))
    both = task("m", "a", map=MapDefinition(("input",)), loop=looped.loop, config=looped.config)
    story = Story(workflow(definition.tasks[0], both, definition.tasks[1]), [1, 2]).check(
        """
        started    -> work a.1
        a ok       -> work m~0~0.1, work m~1~0.1
        m~0~0 ok 1 ->               | m~0 completed
        m~1~0 ok 1 -> work m~1~1.1
        m~1~1 ok 2 -> work b.1      | m completed
        """
    )
    assert story.actor.tasks["m"].result == [{"n": 1}, {"n": 2}]


def test_loops_of_a_map_are_undone_each_in_its_own_reverse_order() -> None:
    both = task("m", map=MapDefinition(("input",)), loop=LoopDefinition("result.n >= 2"))
    story = Story(workflow(both, task("b", "m"), on_failure=(undo("m", "undo-m"),)), ["x", "y"])
    story.tells("started", "m~0~0 ok 1", "m~0~1 ok 2", "m~1~0 ok 2").check(
        """
        b fatal       -> work undo-m~1~0.1, work undo-m~0~1.1
        undo-m~1~0 ok ->
        undo-m~0~1 ok -> work undo-m~0~0.1
        undo-m~0~0 ok -> finished failed
        """
    )


def test_a_child_can_be_a_loop() -> None:
    looped = child("l", input={"round": "${{ iteration }}"}, loop=LoopDefinition("result.n > 0"))
    story = Story(workflow(looped)).check(
        """
        started  -> child l~0.1
        l~0 ok 0 -> child l~1.1
        l~1 ok 1 -> finished completed
        """
    )
    assert story.actor.tasks["l"].result == {"n": 1}


def test_a_wait_can_be_a_loop() -> None:
    Story(workflow(wait("l", wait_for="go", loop=LoopDefinition("result == 'stop'")))).check(
        """
        started        ->                    | l~0 running
        signal go on   ->                    | l~1 running
        signal go stop -> finished completed | l completed
        """
    )


def test_signals_that_came_early_pass_the_iterations_at_once() -> None:
    story = Story(workflow(task("a"), wait("l", "a", wait_for="go", loop=LoopDefinition("result == 'stop'"))))
    story.tells("started", "signal go on", "signal go on", "signal go stop", "a ok")
    story.check_states("l completed, =completed")
