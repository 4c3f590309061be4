"""Approvals: people decide, in time or not at all; a decision counts once."""

import pytest
from infinity_matrix_actors.definition import ApprovalDefinition, LoopDefinition, MapDefinition, OnDeadline, OnReject
from story import Story, task, undo, wait, workflow


def asking(*after: object, **fields: object) -> Story:
    approval = ApprovalDefinition(**fields)  # type: ignore[arg-type]
    return Story(workflow(task("a"), wait("ok", "a", approval=approval), task("b", "ok"))).tells("started", "a ok")


def test_an_approval_lets_it_go_on_with_the_decision_as_result() -> None:
    story = asking(assignees=("ada",)).check(
        """
        ok approve ada -> work b.1 | ok completed
        b ok           -> finished completed
        """
    )
    assert story.actor.tasks["ok"].result == {"decision": "approved", "by": "ada", "comment": None, "data": None}


def test_a_rejection_fails_the_task() -> None:
    story = asking().check("ok reject bob -> finished failed | ok failed, b cancelled")
    assert story.actor.error is not None
    assert (story.actor.error["type"], story.actor.error["message"]) == ("rejected", "rejected by bob")


def test_a_rejection_may_be_a_result() -> None:
    story = asking(on_reject=OnReject.COMPLETE).check("ok reject bob -> work b.1 | ok completed")
    assert story.actor.tasks["ok"].result["decision"] == "rejected"


def test_a_rejection_undoes_what_was_done() -> None:
    definition = workflow(task("a"), wait("ok", "a", approval=ApprovalDefinition()), on_failure=(undo("a", "undo-a"),))
    Story(definition).tells("started", "a ok").check("ok reject -> work undo-a.1 | =compensating")


@pytest.mark.parametrize("second", ["ok reject bob", "ok approve", "ok due 1", "nobody approve", "a approve"])
def test_the_first_decision_counts(second: str) -> None:
    story = asking(deadline=60.0).tells("ok approve ada")
    before = story.actor.record()
    assert story.tell(second) == []
    assert story.actor.record() == before


def test_a_decision_before_it_is_asked_for_is_none() -> None:
    story = Story(workflow(task("a"), wait("ok", "a", approval=ApprovalDefinition()))).tells("started", "ok approve")
    story.tell("a ok")
    story.check_states("ok running")


@pytest.mark.parametrize(
    ("on_deadline", "state", "decision"),
    [(OnDeadline.APPROVE, "completed", "approved"), (OnDeadline.REJECT, "failed", "rejected")],
)
def test_what_nobody_decides_in_time_is_decided(on_deadline: OnDeadline, state: str, decision: str) -> None:
    story = asking(deadline=60.0, on_deadline=on_deadline)
    assert story.armed()["ok"] == 61.0
    assert story.timer("ok", 61.0)[0] == "due ok.1"
    story.tell("+60 ok due 1")
    story.check_states(f"ok {state}")
    result = story.actor.tasks["ok"].result
    assert (result["decision"], result["by"]) == (decision, None)
    assert "60 s" in result["comment"]


def test_an_escalation_gives_others_as_much_time_again() -> None:
    story = asking(deadline=60.0, on_deadline=OnDeadline.ESCALATE, escalate_to=("boss",))
    story.tell("+60 ok due 1")
    story.check_states("ok running")
    assert story.actor.tasks["ok"].is_escalated
    assert story.timer("ok", 121.0)[0] == "due ok.2"
    assert story.tell("ok due 1") == []
    story.tell("+60 ok due 2")
    story.check_states("ok failed")


def test_who_it_was_escalated_to_may_decide() -> None:
    story = asking(deadline=60.0, on_deadline=OnDeadline.ESCALATE, escalate_to=("boss",))
    story.tells("+60 ok due 1").check(
        """
        ok approve boss -> work b.1
        +60 ok due 2    ->
        """
    )


def test_a_cancel_ends_the_question() -> None:
    asking(deadline=60.0).check(
        """
        cancel     -> finished cancelled | ok cancelled
        ok approve ->
        """
    )


def test_each_item_may_need_its_own_decision() -> None:
    mapped = wait("ok", approval=ApprovalDefinition(), map=MapDefinition(("input",), tolerated=1))
    story = Story(workflow(mapped), ["x", "y"]).check(
        """
        started       ->
        ok~1 approve  ->
        ok~0 reject   -> finished completed
        """
    )
    result = story.actor.tasks["ok"].result
    assert result[0]["error"]["type"] == "rejected"
    assert result[1]["decision"] == "approved"


def test_it_may_be_asked_until_it_is_approved() -> None:
    approval = ApprovalDefinition(on_reject=OnReject.COMPLETE, deadline=60.0)
    asked = wait("ok", approval=approval, loop=LoopDefinition("result.decision == 'approved'", 3))
    Story(workflow(asked)).check(
        """
        started       ->                    | ok~0 running
        ok~0 reject   ->                    | ok~1 running
        +60 ok~1 due 1 ->                   | ok~2 running
        ok~2 approve  -> finished completed | ok completed
        """
    )
