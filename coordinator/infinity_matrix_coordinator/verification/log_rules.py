"""The rules an execution's facts must keep whatever its graph is: starts, ends, outcomes, and who wrote them."""

from collections.abc import Iterator, Mapping, Sequence

from infinity_matrix_actors.definition import TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.fact import Command, Due, Fact, Finished, Outcome, Started, Taken
from infinity_matrix_actors.schedule_state import TickKind

from infinity_matrix_coordinator.verification.history import Entry, History, Violation, is_open, is_reopened_by

#: What a task's name goes on with where the system made it (of a map, a loop): it has its task's agent.
_INSTANCE_MARK = "~"
#: Tasks and agents of the system's own: what a workflow's callbacks are asked by, for one.
_RESERVED = "im-"


def check_starts_and_ends(history: History, execution: str, facts: Sequence[Entry]) -> Iterator[Violation]:
    """I1, I2, I8: one start; one end, and another only after a command that opened the execution again."""
    starts = [entry for entry in facts if isinstance(entry[1], Started)]
    made = [entry for entry in facts if isinstance(entry[1], Taken | Outcome | Due | Finished)]
    if not starts:
        if made and history.is_whole:
            sentence = f"{len(made)} facts follow from a start that is not in the log"
            yield Violation("I8", execution, sentence, None, made[0][0])
        return
    for sequence, _ in starts[1:]:
        yield Violation("I8", execution, "it was started twice", None, sequence)
    if any(fact.skipped for _, fact in starts if isinstance(fact, Started)):
        # A tick that was passed over: it has no end, because nothing of it ever begins.
        for sequence, _ in made:
            yield Violation("I2", execution, "the start was skipped, and yet it went on", None, sequence)
        return
    if history.is_over and is_open(facts):
        has_ended = any(isinstance(fact, Finished) for _, fact in facts)
        sentence = "it was taken up again and has not ended" if has_ended else "it has not ended"
        yield Violation("I1", execution, sentence, None, starts[0][0])
    yield from _check_ends(execution, facts)


def _check_ends(execution: str, facts: Sequence[Entry]) -> Iterator[Violation]:
    ended = 0
    end: Finished | None = None
    for sequence, fact in facts:
        if isinstance(fact, Command):
            if end is not None and is_reopened_by(end, fact):
                end = None
        elif isinstance(fact, Finished):
            if end is not None:
                yield Violation("I2", execution, f"end {fact.n} is written after end {ended}", None, sequence)
            elif fact.n != ended + 1:
                yield Violation("I2", execution, f"end {fact.n} follows end {ended}", None, sequence)
            ended = max(ended, fact.n)
            end = fact


def check_outcomes(execution: str, facts: Sequence[Entry]) -> Iterator[Violation]:
    """I3: an attempt has one outcome."""
    seen: dict[tuple[str, str, int], int] = {}
    for sequence, fact in facts:
        if isinstance(fact, Outcome):
            key = (fact.agent, fact.task, fact.attempt)
            if key in seen:
                sentence = f"attempt {fact.attempt} has a second outcome; the first is at {seen[key]}"
                yield Violation("I3", execution, sentence, fact.task, sequence)
            seen.setdefault(key, sequence)


def check_agents(execution: str, facts: Sequence[Entry], definition: WorkflowDefinition) -> Iterator[Violation]:
    """I13: what is said of a task is said by the agent it was given to."""
    tasks: Mapping[str, TaskDefinition] = {task.id: task for task in (*definition.tasks, *definition.on_failure)}
    for sequence, fact in facts:
        if not isinstance(fact, Taken | Outcome):
            continue
        if fact.task.startswith(_RESERVED) and fact.agent.startswith(_RESERVED):
            continue
        task = tasks.get(fact.task) or tasks.get(fact.task.partition(_INSTANCE_MARK)[0])
        if task is None:
            yield Violation("I13", execution, f"the workflow has no such task; {_by(fact)}", fact.task, sequence)
        elif task.agent and task.agent != fact.agent:
            yield Violation("I13", execution, f"the task is {task.agent}'s; {_by(fact)}", fact.task, sequence)


def check_causes(starts: Mapping[str, Started]) -> Iterator[Violation]:
    """I10: no two executions have the same tick of a schedule, or the same event, as their cause."""
    seen: dict[tuple[str, ...], str] = {}
    for execution in sorted(starts):
        cause = cause_of(starts[execution])
        if cause is None:
            continue
        other = seen.setdefault(cause, execution)
        if other != execution:
            yield Violation("I10", execution, f"{' '.join(cause)} has started {other}, too")


def cause_of(started: Started) -> tuple[str, ...] | None:
    """What may start one execution only: a schedule's due time, a workflow's event. None for other causes."""
    cause = started.cause
    if cause.get("by", TickKind.SCHEDULED) != TickKind.SCHEDULED:
        # Asked for by someone, who may ask again.
        return None
    for kind, number in (("schedule", "due"), ("trigger", "sequence")):
        if cause.get(kind) and cause.get(number) is not None:
            return (kind, started.workflow, str(cause[kind]), str(cause[number]))
    return None


def _by(fact: Fact) -> str:
    assert isinstance(fact, Taken | Outcome)
    return f"{fact.agent} gave {'an outcome' if isinstance(fact, Outcome) else 'a sign'} of attempt {fact.attempt}"
