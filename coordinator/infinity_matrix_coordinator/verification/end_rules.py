"""The end of an execution against what its facts say: by the account, and by the execution actor itself."""

from collections.abc import Iterator, Sequence

from infinity_matrix_actors.fact import Command, Finished, Outcome, Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.state import TaskState

from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.verification.account import Account, first_life
from infinity_matrix_coordinator.verification.asked_rules import Asked
from infinity_matrix_coordinator.verification.history import Entry, Violation, is_reopened_by
from infinity_matrix_coordinator.views import metrics_of

_COUNTED = (TaskState.COMPLETED, TaskState.FAILED, TaskState.SKIPPED)


def check_end(account: Account) -> Iterator[Violation]:
    """I2, I11, I12 of the first end: it is written when all is decided, says what was decided, and nothing follows."""
    if not account.finishes:
        return
    place = account.finishes[0]
    end = account.fact(place)
    assert isinstance(end, Finished)
    sequence = account.sequence(place)
    decided = decided_at(account)
    if decided is None or decided >= place:
        yield Violation("I11", end.execution, f"the end, {end.state}, is written before it was decided", None, sequence)
        return
    expected = _state(account)
    if end.state != expected:
        sentence = f"it ended as {end.state}, by its facts it is {expected}"
        yield Violation("I12", end.execution, sentence, None, sequence)
    for late in range(decided + 1, len(account.order)):
        fact = account.fact(late)
        if isinstance(fact, Outcome):
            sentence = f"attempt {fact.attempt} has an outcome, and all was decided before"
            yield Violation("I2", end.execution, sentence, fact.task, account.sequence(late))


def decided_at(account: Account) -> int | None:
    """The place of the fact after which nothing is left to be decided; None while something is."""
    if account.barrier is None:
        return None
    undone = [account.undo_settled(undo) for undo in account.undoing if account.stop is not None]
    return max([account.barrier, *(found[0] for found in undone if found is not None)])


def _state(account: Account) -> str:
    if account.stop is None:
        return "completed"
    undone = [account.undo_settled(undo) for undo in account.undoing]
    return "failed" if any(found is not None and not found[1] for found in undone) else account.stopped_by


def check_fold(facts: Sequence[Entry], plan: Plan, account: Account | None) -> Iterator[Violation]:
    """I12: the execution actor comes to the same end, twice alike; I15: and its metrics are the account's counts.

    And what no account has an opinion of was asked for by what stands before it.
    """
    started = next(fact for _, fact in facts if isinstance(fact, Started))
    one, other = ExecutionActor(started, plan), ExecutionActor(started, plan)
    ended: list[tuple[int, Finished]] = []
    for sequence, fact in facts:
        if isinstance(fact, Finished):
            ended.append((sequence, fact))
        elif isinstance(fact, Command) and ended and is_reopened_by(ended[-1][1], fact):
            # What it ended as no longer counts once it was taken up again.
            ended.clear()
    asked = Asked(one)
    # What an account says is not said twice.
    told = 0 if account is None else len(first_life(facts))
    for place, (sequence, fact) in enumerate(facts):
        wrong = asked.check(sequence, fact) if place >= told else None
        if wrong is not None:
            yield wrong
            return
        try:
            effects, again = one.receive(fact), other.receive(fact)
        except Exception as error:  # noqa: BLE001 - whatever it raises, that is the finding
            sentence = f"folding it raises {type(error).__name__}: {error}"
            yield Violation("I12", started.execution, sentence, None, sequence)
            return
        if effects != again:
            yield Violation("I12", started.execution, "two folds of it have other effects", None, sequence)
            return
        asked.learn(effects)
    if one.record() != other.record():
        yield Violation("I12", started.execution, "two folds of it come to other states")
    if not ended:
        return
    sequence, end = ended[-1]
    state = str(one.state)
    if end.state != state:
        sentence = f"it ended as {end.state}, folded again it is {state}"
        yield Violation("I12", started.execution, sentence, None, sequence)
    elif (end.error, end.compensation, end.compensated) != (one.error, one.compensation, one.compensated):
        sentence = "its end has another error, or undid other tasks, than folding it again"
        yield Violation("I12", started.execution, sentence, None, sequence)
    elif account is not None and not account.is_reopened:
        yield from _check_metrics(account, one)


def _check_metrics(account: Account, actor: ExecutionActor) -> Iterator[Violation]:
    metrics = metrics_of(actor)
    for name in account.tasks:
        counted = account.attempt_count(name)
        # What was made ready by the very fact that stopped the execution is for the actor to say.
        if metrics.tasks[name].attempts != counted and account.ready.get(name) != account.stop:
            sentence = f"its metrics count {metrics.tasks[name].attempts} attempts, the log {counted}"
            yield Violation("I15", account.started.execution, sentence, name)
    if account.stop is None:
        states = [account.state_at_end(name) for name in account.tasks]
        counts = tuple(states.count(str(state)) for state in _COUNTED)
        if (metrics.completed, metrics.failed, metrics.skipped) != counts:
            sentence = f"its metrics count {metrics.completed}, {metrics.failed}, {metrics.skipped}, the log {counts}"
            yield Violation("I15", account.started.execution, sentence)
