"""Rules of children and their parents, which mostly lie on different shards: I16.

What of an execution concerns its kin is a few facts of it, so a whole installation's kin is kept while its shards are
read one after the other. What is missing counts as missing only if it should have been there before the reading began.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.definition import CHILD_AGENT, ClosePolicy
from infinity_matrix_actors.errors import ConditionError
from infinity_matrix_actors.fact import Command, CommandKind, ErrorType, Finished, Outcome, Started, Taken
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.artifacts import is_reference
from infinity_matrix_bus.codec import rfc3339
from infinity_matrix_bus.references import has_references

from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.verification.account import first_life
from infinity_matrix_coordinator.verification.history import JOURNAL_SKEW_S, Entry, History, Violation
from infinity_matrix_coordinator.views import outputs_of

#: What follows from a fact has followed after this long.
FOLLOWS_AFTER_S = 60.0
#: The id of the command by which a parent cancels its child.
PARENT = "parent"
#: An attempt as its parent has it: execution, task, attempt.
Place = tuple[str, str, int]


@dataclass(slots=True)
class ChildAttempt:
    """What a parent's log has of an attempt that is a child."""

    taken: Taken | None = None
    outcome: Outcome | None = None


@dataclass(slots=True)
class Kin:
    """Of one execution what concerns its parent and its children. The end is the first one."""

    started: Started
    #: The attempt it is; None for who is nobody's child.
    place: Place | None
    #: When its parent had started, as it says itself.
    begun: str | None = None
    end: Finished | None = None
    is_reopened: bool = False
    cancelled_by_parent: Command | None = None
    attempts: dict[tuple[str, int], ChildAttempt] = field(default_factory=dict)
    #: By task: the workflow that it is, and what becomes of it. None while the definition is not known.
    policies: Mapping[str, tuple[str, ClosePolicy]] | None = None
    #: What its parent is given of an execution that completed; None where that is not known.
    outputs: dict[str, Any] | None = None


def kin_of(history: History) -> dict[str, Kin]:
    """The executions of a history that are children, or have some."""
    found: dict[str, Kin] = {}
    plans: dict[str, Plan] = {}
    for execution, facts in history.facts.items():
        started = history.started(execution)
        if started is None or started.skipped:
            continue
        kin = _kin(history, started, first_life(facts))
        kin.is_reopened = len(first_life(facts)) < len(facts)
        if kin.place is None and not kin.attempts and not kin.policies:
            continue
        if kin.place is not None and kin.end is not None and kin.end.state == "completed":
            kin.outputs = _outputs(history, plans, started, first_life(facts))
        found[execution] = kin
    return found


def check_children(kin: Mapping[str, Kin], read_at: float, *, is_whole: bool) -> Iterator[Violation]:
    """I16 over all kin of an installation, of which nothing is missing that was there at `read_at`.

    `is_whole`: no execution was taken out of the log, as too old or to make room.
    """
    seen: dict[tuple[Place, str | None], str] = {}
    for execution in sorted(kin):
        child = kin[execution]
        if child.place is None:
            continue
        other = seen.setdefault((child.place, child.begun), execution)
        if other != execution:
            yield _violation(execution, f"{_words(child.place)} is {other}, too")
        parent = kin.get(child.place[0])
        # One of an id that is free again has nothing to do with the children of who had it before.
        if parent is not None and child.begun in (None, rfc3339(parent.started.at)):
            yield from _check_start(execution, child, parent)
            yield from _check_end(execution, child, parent, read_at)
            yield from _check_close(execution, child, parent, read_at)
    for execution, parent in kin.items() if is_whole else ():
        yield from _check_taken(execution, parent, kin, read_at)


def _check_start(execution: str, child: Kin, parent: Kin) -> Iterator[Violation]:
    """A child is what its parent's task says, and follows the parent's start and the attempt before."""
    assert child.place is not None
    above, task, attempt = child.place
    policy = _policy(parent, task)
    if parent.policies is not None and (policy is None or policy[0] != child.started.workflow):
        yield _violation(execution, f"{above} has no task {task} that is {child.started.workflow}")
    if child.started.at < parent.started.at - JOURNAL_SKEW_S:
        yield _violation(execution, f"it started before its parent {above} did")
    before = parent.attempts.get((task, attempt - 1))
    if attempt > 1 and not parent.is_reopened:
        if before is None or before.outcome is None:
            yield _violation(execution, f"{_words(child.place)} has no outcome of the attempt before it")
        elif child.started.at < before.outcome.at - JOURNAL_SKEW_S:
            yield _violation(execution, f"{_words(child.place)} started before the attempt before it was over")


def _check_end(execution: str, child: Kin, parent: Kin, read_at: float) -> Iterator[Violation]:
    """Its parent is told first, and is told what it came to."""
    assert child.place is not None
    if child.end is None:
        return
    known = parent.attempts.get(child.place[1:])
    outcome = known.outcome if known is not None else None
    if outcome is None:
        # What a parent that was taken up again was told then is not among these.
        if child.end.at < read_at and not parent.is_reopened:
            yield _violation(execution, f"it ended, and {_words(child.place)} has no outcome")
        return
    if outcome.closed:
        return
    if outcome.at > child.end.at + JOURNAL_SKEW_S:
        yield _violation(execution, f"it ended before {_words(child.place)} had its outcome")
    told = _told(outcome)
    if told is not None and told != child.end.state:
        yield _violation(execution, f"it ended as {child.end.state}, and {_words(child.place)} was told {told}")
    is_known = child.outputs is not None and not is_reference(outcome.result)
    if told == child.end.state == "completed" and is_known and outcome.result != child.outputs:
        yield _violation(execution, f"{_words(child.place)} was given another result than it had")


def _check_close(execution: str, child: Kin, parent: Kin, read_at: float) -> Iterator[Violation]:
    """It is cancelled when its parent waits for it no more, goes on where it may outlive it, and else is left alone."""
    assert child.place is not None
    known = parent.attempts.get(child.place[1:])
    outcome = known.outcome if known is not None else None
    policy = _policy(parent, child.place[1])
    if outcome is None or policy is None or parent.is_reopened:
        return
    may_outlive = policy[1] is ClosePolicy.ABANDON
    if outcome.closed and not (may_outlive and (_is_cancelled(outcome) or _may_be_stopped(child.place, parent))):
        was_there = child.end is not None and child.end.at < outcome.at + JOURNAL_SKEW_S
        if child.cancelled_by_parent is None and not was_there and outcome.at < read_at - FOLLOWS_AFTER_S:
            yield _violation(execution, f"{_words(child.place)} was closed, and it was not cancelled")
    elif child.cancelled_by_parent is not None:
        if outcome.closed and _is_cancelled(outcome):
            yield _violation(execution, f"{_words(child.place)} let it go, and yet it was cancelled")
        elif not outcome.closed and parent.end is not None and parent.end.state == "completed":
            yield _violation(execution, f"it was cancelled by {child.place[0]}, which completed")


def _check_taken(execution: str, parent: Kin, kin: Mapping[str, Kin], read_at: float) -> Iterator[Violation]:
    """A parent that says that a child was started has one; and a result comes from a child."""
    places = {child.place for child in kin.values()}
    for (task, attempt), known in parent.attempts.items():
        sign = known.taken if known.taken is not None else known.outcome
        has_begun = known.taken is not None or (known.outcome is not None and known.outcome.error is None)
        assert sign is not None
        if has_begun and sign.at < read_at and (execution, task, attempt) not in places:
            yield Violation("I16", execution, f"attempt {attempt} has a child that is not in the log", task)


def _kin(history: History, started: Started, facts: list[Entry]) -> Kin:
    definition = history.definitions.get(started.definition)
    policies = None
    if definition is not None:
        tasks = (*definition.tasks, *definition.on_failure)
        policies = {task.id: (task.child.workflow, task.child.close) for task in tasks if task.child is not None}
    place, parent = _place(started), started.cause.get("parent")
    begun = parent.get("begun") if place is not None and isinstance(parent, dict) else None
    kin = Kin(started, place, begun if isinstance(begun, str) else None, policies=policies)
    for _, fact in facts:
        match fact:
            case Taken() if fact.agent == CHILD_AGENT:
                kin.attempts.setdefault((fact.task, fact.attempt), ChildAttempt()).taken = fact
            case Outcome() if fact.agent == CHILD_AGENT:
                kin.attempts.setdefault((fact.task, fact.attempt), ChildAttempt()).outcome = fact
            case Finished() if kin.end is None:
                kin.end = fact
            case Command() if fact.kind is CommandKind.CANCEL and fact.id == PARENT:
                kin.cancelled_by_parent = fact
    return kin


def _place(started: Started) -> Place | None:
    parent = started.cause.get("parent")
    if not isinstance(parent, dict):
        return None
    above, task, attempt = parent.get("execution"), parent.get("task"), parent.get("attempt")
    if not isinstance(above, str) or not isinstance(task, str) or not isinstance(attempt, int):
        return None
    return above, task, attempt


def _outputs(history: History, plans: dict[str, Plan], started: Started, facts: list[Entry]) -> dict[str, Any] | None:
    definition = history.definitions.get(started.definition)
    if definition is None:
        return None
    try:
        plan = plans.setdefault(started.definition, Plan.of(definition, started.definition))
        actor = ExecutionActor(started, plan)
        for _, fact in facts:
            actor.receive(fact)
    except (ConditionError, KeyError, ValueError):
        # What folding it raises is told by the check of its own.
        return None
    outputs = outputs_of(actor)
    return None if has_references(outputs) else outputs


def _told(outcome: Outcome) -> str | None:
    """The state of a child as its parent was told; None where that is no child's end."""
    if outcome.error is None:
        return "completed"
    states = {ErrorType.CANCELLED: "cancelled", ErrorType.CHILD_FAILED: "failed"}
    return next((state for kind, state in states.items() if outcome.error.type == kind), None)


def _is_cancelled(outcome: Outcome) -> bool:
    return outcome.error is not None and outcome.error.type == ErrorType.CANCELLED


def _may_be_stopped(place: Place, parent: Kin) -> bool:
    """Whether a parent could be on its way to its end when an attempt was closed for its time: then it lets it go."""
    has_completed = parent.end is not None and parent.end.state == "completed"
    return not has_completed and (place[1], place[2] + 1) not in parent.attempts


def _policy(parent: Kin, task: str) -> tuple[str, ClosePolicy] | None:
    return (parent.policies or {}).get(task.partition("~")[0])


def _words(place: Place) -> str:
    return f"attempt {place[2]} of {place[1]} of {place[0]}"


def _violation(execution: str, sentence: str) -> Violation:
    return Violation("I16", execution, sentence)
