"""Rules for executions that no account covers: maps, loops, children, callbacks, pauses.

They need no more of the graph than its edges, and look at each task or instance (`task~3`) by itself: weaker than an
account, and true of every kind of task. What instances have to do with one another is in `group_rules`, and children
with their parents in `child_rules`.
"""

from collections.abc import Iterator, Mapping, Sequence

from infinity_matrix_actors.definition import TaskDefinition
from infinity_matrix_actors.fact import Fact, Finished, Outcome, Taken
from infinity_matrix_actors.plan import Plan

from infinity_matrix_coordinator.verification.account import Attempt, first_life, reordered
from infinity_matrix_coordinator.verification.group_rules import INSTANCE_MARK, Groups
from infinity_matrix_coordinator.verification.history import Entry, Violation


def check_instances(execution: str, facts: Sequence[Entry], plan: Plan) -> Iterator[Violation]:
    """I3 to I7 and I11, as far as they hold of every kind of task; only up to where it was taken up again."""
    definition = plan.definition
    order = reordered(first_life(facts))
    forward = {task.id: task for task in definition.tasks}
    undoing = {task.id: task for task in definition.on_failure}
    attempts = _attempts(order)
    # Who is asked, or says beforehand what is done about failures, may want more attempts: how many, the fold knows.
    asks = definition.on_task_failure is not None or definition.on_error is not None
    for name, its in attempts.items():
        task = forward.get(_base(name)) or undoing.get(_base(name))
        if task is not None:
            for invariant, number, sentence in _wrong_attempts(order, task, its, asks=asks):
                place = its[number].first
                assert place is not None
                yield Violation(invariant, execution, sentence, name, order[place][0])
    yield from _check_order(execution, order, forward, attempts)
    yield from _check_barrier(execution, order, forward, undoing, attempts)
    yield from _check_end(execution, order, attempts)
    if definition.on_error is None:
        # Else a map or a loop may be taken up again before the end, and has begun what it begins then.
        yield from Groups(order, plan, attempts).check()


def _attempts(order: Sequence[Entry]) -> dict[str, dict[int, Attempt]]:
    found: dict[str, dict[int, Attempt]] = {}
    for place, (_, fact) in enumerate(order):
        if isinstance(fact, Taken | Outcome):
            attempt = found.setdefault(fact.task, {}).setdefault(fact.attempt, Attempt())
            (attempt.taken if isinstance(fact, Taken) else attempt.outcomes).append(place)
    return found


def _wrong_attempts(
    order: Sequence[Entry], task: TaskDefinition, attempts: Mapping[int, Attempt], *, asks: bool
) -> Iterator[tuple[str, int, str]]:
    for number in sorted(attempts):
        if number < 1 or (number > task.retry.max_attempts and not asks):
            yield "I5", number, f"attempt {number} of {task.retry.max_attempts}"
        elif number > 1:
            before = attempts.get(number - 1)
            ended = before.outcomes[0] if before is not None and before.outcomes else None
            first = attempts[number].first
            if ended is None or first is None:
                yield "I7", number, f"attempt {number} has no outcome of the one before it"
            elif _completed(order[ended][1]):
                yield "I3", number, f"attempt {number} follows one that completed"
            elif first < ended:
                yield "I5", number, f"attempt {number} began before the one before it had ended"


def _check_order(
    execution: str,
    order: Sequence[Entry],
    forward: Mapping[str, TaskDefinition],
    attempts: Mapping[str, Mapping[int, Attempt]],
) -> Iterator[Violation]:
    """I4: what has an outcome has it before anything that depends on it begins."""
    for task in forward.values():
        begun = _first(attempts.get(task.id, {}))
        for above in task.depends_on if begun is not None else ():
            ended = [attempt.outcomes[0] for attempt in attempts.get(above, {}).values() if attempt.outcomes]
            assert begun is not None
            if ended and begun < min(ended):
                yield Violation("I4", execution, f"it began before {above} was done", task.id, order[begun][0])
                break


def _check_barrier(
    execution: str,
    order: Sequence[Entry],
    forward: Mapping[str, TaskDefinition],
    undoing: Mapping[str, TaskDefinition],
    attempts: Mapping[str, Mapping[int, Attempt]],
) -> Iterator[Violation]:
    """I6: nothing is undone while an agent that said it began has given no outcome."""
    undone = [(begun, name) for name, its in attempts.items() if (begun := _first_of(name, undoing, its)) is not None]
    if not undone:
        return
    place, undo = min(undone)
    for name, its in attempts.items():
        for number, attempt in its.items() if _base(name) in forward else ():
            is_out = any(taken < place for taken in attempt.taken)
            if is_out and not any(outcome < place for outcome in attempt.outcomes):
                sentence = f"it began before the barrier: attempt {number} of {name} was out, and had no outcome yet"
                yield Violation("I6", execution, sentence, undo, order[place][0])
                return


def _check_end(
    execution: str, order: Sequence[Entry], attempts: Mapping[str, Mapping[int, Attempt]]
) -> Iterator[Violation]:
    """I11: no end is written while something that is known to have begun has no outcome."""
    end = next((place for place, (_, fact) in enumerate(order) if isinstance(fact, Finished)), None)
    for name, its in attempts.items() if end is not None else ():
        assert end is not None
        for number, attempt in its.items():
            is_out = any(taken < end for taken in attempt.taken)
            if is_out and not any(outcome < end for outcome in attempt.outcomes):
                sentence = f"the end is written, and attempt {number} of {name} had no outcome yet"
                yield Violation("I11", execution, sentence, None, order[end][0])
                return


def _first_of(name: str, undoing: Mapping[str, TaskDefinition], attempts: Mapping[int, Attempt]) -> int | None:
    return _first(attempts) if _base(name) in undoing else None


def _first(attempts: Mapping[int, Attempt]) -> int | None:
    return min((attempt.first for attempt in attempts.values() if attempt.first is not None), default=None)


def _base(name: str) -> str:
    return name.partition(INSTANCE_MARK)[0]


def _completed(fact: Fact) -> bool:
    return isinstance(fact, Outcome) and fact.error is None
