"""Which failures become dead letters: work that no agent could do, told once it is not tried again."""

import pytest
from infinity_matrix_actors.definition import RetryDefinition
from infinity_matrix_actors.effect import Effect, PublishDead
from infinity_matrix_actors.fact import Outcome, TaskError
from infinity_matrix_coordinator.deadlines import ATTEMPT_TOOK, expire_task
from story import AGENT, EXECUTION, START, Story, child, each, task, undo, workflow


def letters(effects: list[Effect]) -> list[str]:
    return [f"{one.task}.{one.attempt}" for one in effects if isinstance(one, PublishDead)]


@pytest.mark.parametrize("kind", ["poison", "undeliverable", "garbage"])
def test_work_that_no_agent_could_do_is_a_dead_letter(kind: str) -> None:
    story = Story(workflow(task("a"))).tells("started")
    assert letters(story.tell(f"a fatal {kind}")) == ["a.1"]


def test_what_an_agent_did_and_failed_at_is_none() -> None:
    story = Story(workflow(task("a"))).tells("started", "a taken")
    assert letters(story.tell("a fatal boom")) == []


def test_work_is_dead_only_once_it_is_not_tried_again() -> None:
    story = Story(workflow(task("a", retry=RetryDefinition(max_attempts=2)))).tells("started")
    assert letters(story.tell("a fails poison")) == []
    story.tells("a due 2")
    assert letters(story.tell("a fails poison")) == ["a.2"]


def test_work_that_nobody_is_known_to_have_taken_is_dead_when_its_time_is_over() -> None:
    story = Story(workflow(task("a"))).tells("started")
    assert letters(story.tell("a closed timed_out")) == ["a.1"]


def test_work_that_was_taken_and_took_too_long_is_not() -> None:
    story = Story(workflow(task("a"))).tells("started", "a taken")
    assert letters(story.tell("a closed timed_out")) == []


def test_work_of_a_quiet_agent_that_took_too_long_is_not() -> None:
    story = Story(workflow(task("a", timeout=5.0))).tells("started")
    [closing, _] = story.actor.expire_quiet("a", 1, START + 9.0, False, START + 1.0)
    error = closing.error  # type: ignore[union-attr]
    assert error.message.startswith(ATTEMPT_TOOK)
    outcome = Outcome(EXECUTION, START + 10.0, AGENT, "a", 1, error=TaskError(error.type, error.message), closed=True)
    assert letters(story.actor.receive(outcome)) == []
    assert not expire_task("a", story.actor.tasks["a"], START + 11.0)


def test_an_undoing_task_that_nobody_could_do_is_dead() -> None:
    story = Story(workflow(task("a"), task("b", "a"), undo("a", "undo-a")))
    story.tells("started", "a ok", "b fatal boom")
    assert letters(story.tell("undo-a fatal poison")) == ["undo-a.1"]


def test_an_instance_of_a_map_that_nobody_could_do_is_dead_and_the_map_is_not() -> None:
    story = Story(workflow(each("a", "input.items")), {"items": [1, 2]}).tells("started")
    story.tells("a~0 ok")
    assert letters(story.tell("a~1 fatal garbage")) == ["a~1.1"]


def test_a_child_that_failed_is_no_work() -> None:
    story = Story(workflow(child("a"))).tells("started")
    assert letters(story.tell("a fatal poison")) == []


def test_a_new_owner_publishes_it_again_until_the_execution_has_its_end() -> None:
    story = Story(workflow(task("a"))).tells("started", "a fatal poison")
    assert letters(story.actor.outstanding()) == ["a.1"]
    story.tells("finished failed")
    assert letters(story.actor.outstanding()) == []


def test_an_execution_that_is_taken_up_again_has_no_dead_work() -> None:
    story = Story(workflow(task("a"))).tells("started", "a fatal poison", "finished failed", "retry")
    assert letters(story.actor.outstanding()) == []
