"""Children: a task that is another workflow: started, waited for, cancelled or let go, closed when it is late."""

import pytest
from infinity_matrix_actors.definition import ClosePolicy, MapDefinition
from infinity_matrix_actors.effect import CancelChild, StartChild
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.work_message import work_record
from story import Story, child, each, render, task, undo, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}


def test_the_outputs_of_a_child_are_the_result_of_its_task() -> None:
    story = Story(workflow(child("c", input={"n": "${{ input.n }}"}), task("b", "c")), {"n": 7}).check(
        """
        started            -> child c.1 | c running
        c taken            ->           | c running
        c gives {"x":1}    -> work b.1  | c completed
        b ok               -> finished completed
        """
    )
    assert story.actor.tasks["c"].input == {"n": 7}
    assert story.actor.tasks["c"].result == {"x": 1}


def test_an_input_without_templates_goes_as_it_is() -> None:
    assert Story(workflow(child("c", input={"n": 1}))).tells("started").actor.tasks["c"].input == {"n": 1}
    assert Story(workflow(child("c"))).tells("started").actor.tasks["c"].input is None


def test_an_input_that_cannot_be_filled_fails_the_task_and_starts_nothing() -> None:
    story = Story(workflow(child("c", input="${{ input.missing }}")), {}).check("started -> finished failed | c failed")
    assert "missing" in str(story.actor.error)


def test_a_child_that_fails_fails_its_parent_which_undoes_what_was_done() -> None:
    Story(workflow(task("a"), child("c", "a"), on_failure=(undo("a", "undo-a"),))).check(
        """
        started               -> work a.1
        a ok                  -> child c.1
        c fatal child_failed  -> work undo-a.1 | c failed
        undo-a ok             -> finished failed
        """
    )


def test_a_child_that_failed_is_tried_again_as_another() -> None:
    Story(workflow(child("c", retry=RETRY))).check(
        """
        started              -> child c.1
        c fails child_failed ->           | c retrying
        +5 c due 2           -> child c.2
        c ok                 -> finished completed
        """
    )


def test_a_cancel_ends_the_child_and_waits_for_it_grace_or_not() -> None:
    story = Story(workflow(child("c"), grace=5.0)).check(
        """
        started -> child c.1
        cancel  -> tell all, end c.1
        """
    )
    # It has compensations of its own: it is asked again, and never given up.
    assert story.timer(None, 60.0) == ["end c.1", "arm = 65"]
    story.check("+60 c fatal cancelled -> finished cancelled | c cancelled")


def test_a_child_that_completes_all_the_same_is_undone() -> None:
    Story(workflow(child("c"), on_failure=(undo("c", "undo-c"),))).check(
        """
        started   -> child c.1
        cancel    -> tell all, end c.1
        c ok      -> work undo-c.1
        undo-c ok -> finished cancelled
        """
    )


def test_an_abandoned_child_goes_on_and_nobody_waits_for_it() -> None:
    story = Story(workflow(task("a"), child("c", close=ClosePolicy.ABANDON))).check(
        """
        started            -> work a.1, child c.1
        a fatal            -> tell all, close c.1 cancelled
        c closed cancelled -> finished failed | c cancelled
        """
    )
    assert not [effect for effect in story.actor.outstanding() if isinstance(effect, CancelChild)]


def test_a_child_that_takes_too_long_is_ended_whatever_becomes_of_it_later() -> None:
    for close in ClosePolicy:
        story = Story(workflow(child("c", close=close, timeout=10.0, retry=RETRY)))
        story.tell("started")
        assert story.timer("c", 10.0)[0] == "close c.1 timed_out"
        story.check(
            """
            +10 c closed timed_out -> end c.1    | c retrying
            +5 c due 2             -> child c.2
            """
        )
        # Also by a coordinator that takes over just then.
        assert next(e for e in story.actor.outstanding() if isinstance(e, CancelChild)).attempt == 1
        story.check("c ok -> finished completed")


def test_the_end_of_a_closed_child_is_taken_up_by_a_new_owner() -> None:
    story = Story(workflow(child("c", timeout=10.0), on_failure=(undo("c", "undo-c"),)))
    story.tells("started", "+10 c closed timed_out")
    assert [effect for effect in story.actor.outstanding() if isinstance(effect, CancelChild)]
    # Nobody knows how far it came.
    assert render(story.tell("+30 undo-c due 1")) == ["work undo-c.1"]


def test_a_new_owner_starts_the_child_again_and_ends_it_again() -> None:
    story = Story(workflow(child("c"))).tells("started")
    assert [effect for effect in story.actor.outstanding() if isinstance(effect, StartChild)]
    story.tell("cancel")
    kinds = [type(effect) for effect in story.actor.outstanding()]
    assert StartChild in kinds
    assert CancelChild in kinds


@pytest.mark.parametrize("late", ["c ok", "c fatal", "c taken", "c.2 ok", "c@agent-x ok", "started"])
def test_what_comes_twice_from_a_child_changes_nothing(late: str) -> None:
    story = Story(workflow(child("c"), task("b", "c"))).tells("started", "c ok")
    before = story.actor.record()
    assert story.tell(late) == []
    assert story.actor.record() == before


def test_an_agent_cannot_answer_for_a_child() -> None:
    story = Story(workflow(child("c"))).tells("started")
    assert story.tell("c@agent-x ok") == []
    story.check_states("c running")


def test_children_can_be_mapped() -> None:
    mapped = child("c", input="${{ item }}", map=MapDefinition(("input",), 2))
    story = Story(workflow(mapped), [1, 2, 3]).check(
        """
        started -> child c~0.1, child c~1.1
        c~1 ok  -> child c~2.1
        cancel  -> tell all, end c~0.1, end c~2.1
        c~0 ok  ->
        c~2 fatal cancelled -> finished cancelled | c cancelled
        """
    )
    assert "c~1" not in story.actor.tasks


def test_a_child_is_held_back_like_any_other_work_while_paused() -> None:
    Story(workflow(child("c"), task("a"))).check(
        """
        started -> child c.1, work a.1
        c ok    ->
        a ok    -> finished completed
        """
    )
    Story(workflow(task("a"), child("c", "a"))).check(
        """
        started -> work a.1
        pause   ->
        a ok    ->           | c waiting
        resume  -> child c.1 | c running
        """
    )


def test_a_child_can_undo() -> None:
    undoing = child("undo-a", input={"was": "${{ a.result.from }}"}, compensates="a")
    story = Story(workflow(task("a"), task("b", "a"), on_failure=(undoing,))).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b fatal   -> child undo-a.1
        undo-a ok -> finished failed
        """
    )
    assert story.actor.tasks["undo-a"].input == {"was": "a"}


def test_what_undoes_a_child_is_told_the_input_that_it_had() -> None:
    definition = workflow(
        task("a"),
        child("c", "a", input={"was": "${{ a.result.from }}"}),
        task("b", "c"),
        on_failure=(undo("c", "undo-c"),),
    )
    story = Story(definition).tells("started", "a ok", "c ok", "b fatal")
    assert work_record(Subjects("im"), 0, story.actor, "undo-c")["compensates"]["input"] == {"was": "a"}


def test_each_and_child_have_one_world() -> None:
    Story(workflow(each("m", "input"), child("c", "m")), [1]).check(
        """
        started -> work m~0.1
        m~0 ok  -> child c.1
        c ok    -> finished completed
        """
    )
