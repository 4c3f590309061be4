"""Stories of compensations that are taken up again: what was left undone is undone, in its order, with its retries."""

from typing import Any

from story import Story, each, render, task, undo, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}
UNDO_A = (undo("a", "undo-a"),)


def test_an_incomplete_compensation_is_taken_up_again() -> None:
    story = Story(workflow(task("a"), task("b", "a"), on_failure=UNDO_A)).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b fatal      -> work undo-a.1
        undo-a fatal -> finished failed
        finished     ->
        compensate   -> work undo-a.2    | =compensating
        undo-a ok    -> finished failed
        """
    )
    assert story.actor.compensation == "complete"
    assert story.actor.compensated == ("a",)
    story.tell("finished")
    assert story.tell("compensate") == []


def test_it_is_taken_up_in_the_order_it_should_have_had() -> None:
    definition = workflow(
        task("a"),
        task("b", "a"),
        task("c", "b"),
        on_failure=(*UNDO_A, undo("b", "undo-b"), undo(None, "tell"), undo(None, "more")),
    )
    story = Story(definition).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b ok         -> work c.1
        c fatal      -> work undo-b.1
        undo-b fatal -> work undo-a.1
        undo-a fatal -> work tell.1
        tell fatal   -> work more.1
        more ok      -> finished failed
        finished     ->
        compensate   -> work undo-b.2
        undo-b fatal -> work undo-a.2
        undo-a ok    -> work tell.2
        tell ok      -> finished failed
        """
    )
    assert story.actor.compensation == "incomplete"
    story.tell("finished")
    assert render(story.tell("compensate")) == ["work undo-b.3"]


def test_a_compensation_has_all_its_retries_again() -> None:
    definition = workflow(task("a"), task("b", "a"), on_failure=(undo("a", "undo-a", retry=RETRY),))
    story = Story(definition).tells("started", "a ok", "b fatal", "undo-a fails", "+5 undo-a due 2", "undo-a fails")
    story.check(
        """
        finished        ->
        compensate      -> work undo-a.3
        undo-a fails    ->
        +5 undo-a due 4 -> work undo-a.4
        undo-a ok       -> finished failed
        """
    )


def test_instances_of_a_map_are_undone_again() -> None:
    definition = workflow(each("m", "input"), task("b", "m"), on_failure=(undo("m", "undo-m"),))
    story = Story(definition, [0, 1]).tells("started", "m~0 ok", "m~1 ok", "b fatal", "undo-m~0 fatal", "undo-m~1 ok")
    story.check(
        """
        finished    ->
        compensate  -> work undo-m~0.2
        undo-m~0 ok -> finished failed
        """
    )
    assert story.actor.compensated == ("m~1", "m~0")


def test_what_was_compensated_later_runs_again_too() -> None:
    story = Story(workflow(task("a"), task("b", "a"), on_failure=UNDO_A))
    story.tells("started", "a ok", "b fatal", "undo-a fatal", "finished", "compensate", "undo-a ok", "finished")
    assert render(story.tell("retry")) == ["work a.2"]


# What undoing tasks are told.


def test_templates_of_an_undoing_task_are_filled_in() -> None:
    config = {"was": "${{ a.result.n }}", "by": "${{ input.who }}"}
    story = Story(workflow(task("a"), task("b", "a"), on_failure=(undo("a", "undo-a", config=config),)), {"who": "ada"})
    story.tells("started", "a ok 7", "b fatal")
    assert story.actor.tasks["undo-a"].config == {"was": 7, "by": "ada"}


def test_an_undoing_task_whose_config_cannot_be_filled_is_reported_and_the_others_go_on() -> None:
    story = Story(
        workflow(
            task("a"),
            task("b", "a"),
            on_failure=(
                undo("a", "undo-a", config={"x": "${{ b.result.missing }}"}),
                undo(None, "tell", config={"x": "${{ input.missing }}"}),
                undo(None, "more"),
            ),
        ),
        {},
    ).check(
        """
        started -> work a.1
        a ok    -> work b.1
        b fatal -> work more.1 | undo-a failed, tell failed
        more ok -> finished failed
        """
    )
    assert story.actor.compensation == "incomplete"
    error = story.actor.tasks["undo-a"].error
    assert error is not None
    assert error.type == "expression_error"


def test_a_leased_undoing_task_has_its_templates_filled_in_when_it_begins() -> None:
    undoing = undo("a", "undo-a", config={"who": "${{ input.who }}"})
    story = Story(workflow(task("a", timeout=5.0), on_failure=(undoing,)), {"who": "ada"})
    story.tells("started", "a closed timed_out", "+30 undo-a due 1")
    assert story.actor.tasks["undo-a"].config == {"who": "ada"}
    story.check("undo-a ok -> finished failed")


def test_what_was_done_with_a_result_that_is_not_admitted_is_undone() -> None:
    schema: dict[str, Any] = {"type": "object", "required": ["id"]}
    Story(workflow(task("a", result_schema=schema), on_failure=UNDO_A)).check(
        """
        started   -> work a.1
        a ok      -> work undo-a.1 | a failed
        undo-a ok -> finished failed
        """
    )
