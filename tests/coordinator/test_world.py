"""The rules that make two owners harmless (DESIGN section 4), each in the shortest trace that needs it."""

from collections import deque

import pytest
from infinity_matrix_actors.definition import RetryDefinition, TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.effect import PublishWork
from infinity_matrix_actors.fact import Command, CommandKind, Due, Finished, Outcome, Started, TaskError
from world import AGENT, EXECUTION, Owner, World

ONE = WorkflowDefinition("w", (TaskDefinition("a", AGENT),))
RETRY = RetryDefinition(2, initial_delay=4.0, jitter=0.0)
TWICE = WorkflowDefinition("w", (TaskDefinition("a", AGENT, retry=RETRY), TaskDefinition("b", AGENT)))


def _begun(definition: WorkflowDefinition = ONE, **rules: bool) -> World:
    """A world whose execution has started, and whose two owners have done nothing yet."""
    world = World(definition, 0, **rules)
    world.log.publish(Started(EXECUTION, world.now, "w", world.plan.digest))
    return world


def _do_all(owner: Owner) -> None:
    while owner.fold() or owner.load() or owner.perform():
        pass


def _run_once(world: World, way: str = "ok") -> bool:
    """An agent takes the work that is there and ends its run in this way; answers whether there was any."""
    before = len(world.agents.journal)
    world.agents.take()
    if len(world.agents.journal) == before:
        return False
    world.agents.running[world.agents.journal[-1]] = way
    world.agents.answer()
    # It is dead and gone between its outcome and its ack in a tenth of the runs; not here.
    world.queue.messages.pop(world.agents.journal[-1], None)
    return True


def test_a_second_owner_that_does_the_same_a_little_later_starts_nothing_again() -> None:
    world = _begun()
    one, two = world.owners
    _do_all(one)
    assert _run_once(world)
    _do_all(two)
    assert not _run_once(world)
    assert world.agents.journal == [("a", 1)]
    assert sum(isinstance(fact, Finished) for fact in world.log.facts) == 1


def test_a_repair_must_burn_the_msg_id_or_a_lagging_owner_runs_its_work_again() -> None:
    # One folds `started` and stalls; two takes over, repairs, and the work is done; then one goes on, within `fresh_s`.
    def trace(*, repairs_burn_ids: bool) -> World:
        world = _begun(repairs_burn_ids=repairs_burn_ids)
        one = world.owners[0]
        while one.fold() or one.load():
            pass
        world.owners[1] = Owner(world)
        while not world.queue.messages:
            assert world.owners[1].perform()
        assert _run_once(world)
        world.now += 10.0
        while one.perform():
            pass
        return world

    assert not _run_once(trace(repairs_burn_ids=True))
    with pytest.raises(AssertionError, match="runs again after its outcome"):
        _run_once(trace(repairs_burn_ids=False))


def test_an_owner_that_lags_for_longer_than_fresh_repairs_instead_of_publishing() -> None:
    world = _begun()
    one, two = world.owners
    _do_all(two)
    assert _run_once(world)
    world.now += 200.0  # the Msg-Id is forgotten
    _do_all(one)
    assert not world.queue.messages


def test_an_owner_that_lags_looks_at_the_head_before_it_repairs() -> None:
    world = _begun()
    one, two = world.owners
    _do_all(one)
    _do_all(two)
    assert _run_once(world)
    # Two has not folded the outcome, and sees the work gone.
    assert two.sweep()
    while two.perform():
        pass
    assert not world.queue.messages


def test_work_that_was_acked_without_an_outcome_comes_back_by_the_sweep() -> None:
    world = _begun()
    _do_all(world.owners[0])
    assert _run_once(world, "acks early")
    assert not world.queue.messages
    assert world.owners[0].sweep()
    _do_all(world.owners[0])
    assert world.queue.messages[("a", 1)].is_repair
    assert _run_once(world)


def test_the_logs_order_decides_between_a_due_fact_and_a_failure() -> None:
    # One writes `due` after the failure is in the log, because it has not folded it yet: nobody dispatches.
    world = _begun(TWICE)
    one, two = world.owners
    _do_all(one)
    _do_all(two)
    boom = TaskError("boom", "it broke")
    world.log.publish(Outcome(EXECUTION, world.now, AGENT, "a", 1, error=boom))
    _do_all(one)
    world.log.publish(Outcome(EXECUTION, world.now, AGENT, "b", 1, error=boom))
    world.now += 4.0
    assert one.fire()
    _do_all(one)
    _do_all(two)
    assert any(isinstance(fact, Due) for fact in world.log.facts)
    assert ("a", 2) not in world.asked
    assert isinstance(world.log.facts[-1], Finished)


def test_work_of_a_closed_attempt_that_a_lagging_owner_publishes_does_not_land() -> None:
    definition = WorkflowDefinition("w", (TaskDefinition("a", AGENT),), grace=0.0)
    world = _begun(definition)
    one, two = world.owners
    while one.fold() or one.load():
        pass  # it stalls before its publish
    while two.fold() or two.load():
        pass
    # What two published was refused (the stream is full), so that the server knows no Msg-Id of it.
    two.todo = deque(effect for effect in two.todo if not isinstance(effect, PublishWork))
    world.log.publish(Command(EXECUTION, world.now, CommandKind.CANCEL, "1"))
    _do_all(two)
    assert two.fire()
    _do_all(two)
    assert isinstance(world.log.facts[-1], Finished)
    while one.perform():
        pass
    assert not world.queue.messages


def test_a_cancel_before_the_start_cancels_for_both_owners() -> None:
    world = World(ONE, 0)
    world.log.publish(Command(EXECUTION, world.now, CommandKind.CANCEL, "1"))
    world.log.publish(Started(EXECUTION, world.now, "w", world.plan.digest))
    world.calm()
    assert [end.state for end in world.endings] == ["cancelled", "cancelled"]
    assert not world.asked
