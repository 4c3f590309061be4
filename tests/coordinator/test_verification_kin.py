"""The checker's rules of maps, loops and children: each is named by the log that breaks only it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from doctored_logs import change, insert, numbered, swap
from hypothesis import given, settings
from infinity_matrix_actors.definition import (
    CHILD_AGENT,
    ChildDefinition,
    ClosePolicy,
    LoopDefinition,
    MapDefinition,
    RetryDefinition,
    TaskDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.effect import PublishFinished
from infinity_matrix_actors.fact import Command, CommandKind, ErrorType, Fact, Finished, Outcome, Started, Taken
from infinity_matrix_actors.fact import TaskError as Error
from infinity_matrix_actors.plan import Plan
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.verification import History, verify
from test_composition_properties import CANCELS, RUNS, SEEDS, definitions, ran
from test_execution_properties import fold
from world import EXECUTION

KID = WorkflowDefinition("kid", (TaskDefinition("a", "agent-a"),))
WORKFLOW = WorkflowDefinition(
    "w",
    (
        TaskDefinition("m", "agent-m", map=MapDefinition(("[1, 2, 3]",), max_parallel=2), retry=RetryDefinition(2)),
        TaskDefinition("l", "agent-l", loop=LoopDefinition("result.n == 2", 3)),
        TaskDefinition("n", "agent-n", map=MapDefinition(("[1, 2]",))),
        TaskDefinition("c", CHILD_AGENT, child=ChildDefinition("kid"), timeout=7.5),
        TaskDefinition("d", CHILD_AGENT, child=ChildDefinition("kid", close=ClosePolicy.ABANDON)),
        TaskDefinition("z", "agent-z", ("m", "l")),
    ),
    on_failure=(TaskDefinition("undo", "agent-u", compensates="m"),),
)
PLANS = {"w": Plan.of(WORKFLOW), "kid": Plan.of(KID)}
DONE, STOPPED, CUT = "done", "stopped", "cut"
CANCELLED = Error("cancelled", "stopped", retryable=False)


def started(execution: str, at: float, workflow: str = "w", **fields: Any) -> Started:
    return Started(execution, at, workflow, PLANS[workflow].digest, **fields)


def outcome(execution: str, at: float, task: str, attempt: int = 1, **fields: Any) -> Outcome:
    base = task.partition("~")[0]
    agent = CHILD_AGENT if base in ("c", "d") else f"agent-{base[0]}"
    return Outcome(execution, at, agent, task, attempt, **fields)


def taken(execution: str, at: float, task: str, instance: str = "") -> Taken:
    return Taken(execution, at, outcome(execution, at, task).agent, task, 1, instance)


def ended(at: float, *facts: Fact) -> list[tuple[int, Fact]]:
    """The facts, and the end they come to."""
    first = facts[0]
    assert isinstance(first, Started)
    actor = ExecutionActor(first, PLANS[first.workflow])
    for fact in facts:
        actor.receive(fact)
    assert actor.is_decided, actor.record()
    end = Finished(actor.id, at, 1, str(actor.state), actor.error, actor.compensation, tuple(actor.compensated))
    return numbered(*facts, end)


def child(execution: str, at: float, parent: str, task: str) -> Started:
    cause = {"parent": {"execution": parent, "task": task, "attempt": 1}, "depth": 1}
    return started(execution, at, "kid", cause=cause)


def allowed() -> History:
    """A parent that completes, one that fails and undoes its map, one that is cancelled, and their children."""
    facts = {
        DONE: ended(
            109.0,
            started(DONE, 100.0),
            taken(DONE, 100.1, "c", "done-c"),
            taken(DONE, 100.1, "d", "done-d"),
            outcome(DONE, 101.0, "m~0", result=1),
            outcome(DONE, 102.0, "m~1", result=1),
            outcome(DONE, 103.0, "l~0", result={"n": 1}),
            outcome(DONE, 104.0, "m~2", result=1),
            outcome(DONE, 105.0, "l~1", result={"n": 2}),
            outcome(DONE, 105.1, "n~0", result=1),
            outcome(DONE, 105.2, "n~1", result=1),
            outcome(DONE, 106.0, "z", result=1),
            outcome(DONE, 107.0, "c", result={"a": 5}),
            outcome(DONE, 108.0, "d", result={"a": 6}),
        ),
        "done-c": ended(107.1, child("done-c", 100.05, DONE, "c"), outcome("done-c", 106.5, "a", result=5)),
        "done-d": ended(108.1, child("done-d", 100.05, DONE, "d"), outcome("done-d", 107.5, "a", result=6)),
        STOPPED: ended(
            212.0,
            started(STOPPED, 200.0),
            taken(STOPPED, 200.1, "c", "stopped-c"),
            taken(STOPPED, 200.1, "d", "stopped-d"),
            outcome(STOPPED, 201.0, "m~0", result=1),
            outcome(STOPPED, 202.0, "m~1", result=1),
            outcome(STOPPED, 203.0, "l~0", result={"n": 2}),
            outcome(STOPPED, 204.0, "m~2", result=1),
            outcome(STOPPED, 205.1, "n~0", result=1),
            outcome(STOPPED, 205.2, "n~1", result=1),
            outcome(STOPPED, 206.0, "z", error=Error("boom", "it broke")),
            outcome(STOPPED, 206.1, "d", error=CANCELLED, closed=True),
            outcome(STOPPED, 208.0, "c", error=CANCELLED),
            outcome(STOPPED, 209.0, "undo~1"),
            outcome(STOPPED, 210.0, "undo~0"),
            outcome(STOPPED, 211.0, "undo~2"),
        ),
        "stopped-c": ended(
            208.1,
            child("stopped-c", 200.05, STOPPED, "c"),
            Command("stopped-c", 206.2, CommandKind.CANCEL, "parent"),
            outcome("stopped-c", 207.0, "a", error=CANCELLED),
        ),
        "stopped-d": ended(220.1, child("stopped-d", 200.05, STOPPED, "d"), outcome("stopped-d", 220.0, "a", result=7)),
        CUT: ended(
            305.0,
            started(CUT, 300.0),
            outcome(CUT, 300.2, "c", error=Error("unknown_workflow", "none is deployed", retryable=False)),
            Command(CUT, 301.0, CommandKind.CANCEL, "1"),
            outcome(CUT, 301.1, "d", error=CANCELLED, closed=True),
            *(outcome(CUT, 302.0, task, error=CANCELLED) for task in ("m~0", "m~1", "l~0", "n~0", "n~1")),
        ),
    }
    definitions = {plan.digest: plan.definition for plan in PLANS.values()}
    return History(facts, definitions, queue_read_at=1000.0, is_over=True)


def again(history: History, at: int, *facts: Fact) -> None:
    for number, fact in enumerate(facts):
        insert(history, facts[0].execution, at + number, fact)


def twin(history: History) -> None:
    history.facts["twin"] = [(at, replace(fact, execution="twin")) for at, fact in history.facts["done-c"]]


def lets_go(history: History) -> None:
    change(history, STOPPED, 11, error=Error(ErrorType.TIMED_OUT, "too long", retryable=False), closed=True)
    history.facts["stopped-c"] = ended(
        220.1, child("stopped-c", 200.05, STOPPED, "c"), outcome("stopped-c", 220.0, "a", result=7)
    )


def second_attempt(history: History) -> None:
    cause = {"parent": {"execution": DONE, "task": "c", "attempt": 2}}
    change(history, "done-c", 0, cause=cause)


DOCTORED: list[tuple[str, str, Callable[[History], object]]] = [
    ("I3", "completes an instance twice", lambda h: again(h, 45, outcome(DONE, 101.5, "m~0", 2))),
    ("I4", "has an instance too many", lambda h: again(h, 85, outcome(DONE, 104.5, "m~3"))),
    ("I4", "has too many at work", lambda h: again(h, 35, taken(DONE, 100.5, "m~2"))),
    ("I4", "begins an instance after the cancel", lambda h: again(h, 45, outcome(CUT, 301.5, "m~2", error=CANCELLED))),
    ("I4", "goes on before the map is over", lambda h: swap(h, DONE, 6, 10)),
    ("I4", "repeats before the iteration is over", lambda h: swap(h, DONE, 5, 7)),
    ("I4", "repeats after the loop's end", lambda h: change(h, DONE, 5, result={"n": 2})),
    (
        "I5",
        "repeats too often",
        lambda h: (
            change(h, DONE, 7, result={"n": 1}),
            again(h, 85, *(outcome(DONE, 105.01, f"l~{i}", result={"n": 1}) for i in (2, 3))),
        ),
    ),
    ("I6", "undoes an instance that never was", lambda h: again(h, 155, outcome(STOPPED, 211.5, "undo~3"))),
    ("I6", "forgets to undo an instance", lambda h: h.facts[STOPPED].pop(12)),
    ("I7", "lost an instance's outcome", lambda h: change(h, DONE, 6, attempt=2)),
    ("I11", "completes without an instance", lambda h: h.facts[DONE].pop(9)),
    ("I11", "ends before an instance", lambda h: again(h, 105, taken(DONE, 105.3, "n~1")) or swap(h, DONE, 9, 14)),
    ("I16", "starts a child before itself", lambda h: change(h, "done-c", 0, at=99.0)),
    ("I16", "has two children in one", twin),
    ("I16", "has a child of another workflow", lambda h: change(h, "done-c", 0, workflow="other")),
    ("I16", "tries a child again too early", second_attempt),
    ("I16", "is told another end", lambda h: change(h, STOPPED, 11, error=Error(ErrorType.CHILD_FAILED, "it failed"))),
    ("I16", "is given another result", lambda h: change(h, DONE, 11, result={"a": 6})),
    ("I16", "is told after the end", lambda h: change(h, "done-c", 2, at=106.9)),
    ("I16", "lets a child go on", lets_go),
    (
        "I16",
        "cancels what it let go",
        lambda h: again(h, 40, Command("stopped-d", 220.2, CommandKind.CANCEL, "parent")),
    ),
    ("I16", "cancels without need", lambda h: again(h, 40, Command("done-c", 108.0, CommandKind.CANCEL, "parent"))),
    ("I16", "has no child", lambda h: h.facts.pop("done-c")),
]


def test_what_was_allowed_is_found_to_be_so() -> None:
    assert verify(allowed()) == []


@pytest.mark.parametrize(("invariant", "what", "doctor"), DOCTORED, ids=[f"{one}: {what}" for one, what, _ in DOCTORED])
def test_a_log_that(invariant: str, what: str, doctor: Callable[[History], object]) -> None:
    history = allowed()
    doctor(history)
    found = verify(history)
    assert {violation.invariant for violation in found} == {invariant}, "\n".join(map(str, found))


def test_a_parent_that_was_never_told_is_one_too_many_only_where_it_should_have_been() -> None:
    history = allowed()
    history.is_over = False
    # Still open: it is at its children.
    del history.facts[DONE][11:]
    assert {(found.invariant, found.execution) for found in verify(history)} == {
        ("I16", "done-c"),
        ("I16", "done-d"),
    }
    # Its log was read before what its children's logs have later.
    history.queue_read_at = 107.0
    assert verify(history) == []


@settings(max_examples=100)
@given(definition=definitions(), seed=SEEDS, runs=RUNS, cancel_at=CANCELS)
def test_nothing_is_found_in_what_was_meddled_with_and_taken_up_again(
    definition: WorkflowDefinition, seed: int, runs: int, cancel_at: int | None
) -> None:
    world = ran(definition, seed, runs, cancel_at)
    _, steps = fold(world, world.log.facts)
    wanted = iter([effect for _, effects in steps for effect in effects if isinstance(effect, PublishFinished)])
    facts: list[Fact] = []
    for fact in world.log.facts:
        if isinstance(fact, Finished):
            # The owners of this world write no more of an end than its state and error.
            end = next(wanted)
            fact = replace(fact, compensation=end.compensation, compensated=end.compensated)
        facts.append(fact)
    history = History({EXECUTION: numbered(*facts)}, {world.plan.digest: definition}, is_over=True)
    assert verify(history) == []


def test_one_shard_says_nothing_of_children_on_another() -> None:
    history = allowed()
    del history.facts["done-c"]
    assert verify(history, has_all_shards=False) == []
