"""I6: undone is exactly what completed or is unknown; after the barrier; in reverse order; and the end says so."""

from collections.abc import Iterator

from infinity_matrix_actors.definition import TaskDefinition
from infinity_matrix_actors.fact import Finished

from infinity_matrix_coordinator.verification.account import Account
from infinity_matrix_coordinator.verification.graph_rules import check_attempts
from infinity_matrix_coordinator.verification.history import Violation


def check_saga(account: Account) -> Iterator[Violation]:
    """The undoing tasks of an execution, and what its end says of them."""
    begun = [undo for undo in account.undoing.values() if _begun_at(account, undo) is not None]
    for undo in begun:
        found = list(_check_begin(account, undo))
        yield from found
        if not found:
            yield from check_attempts(account, undo)
    if account.stop is None or account.barrier is None:
        return
    yield from _check_order(account, begun)
    if account.finishes:
        yield from _check_end(account)


def _begun_at(account: Account, undo: TaskDefinition) -> int | None:
    places = [found.first for found in account.attempts.get(undo.id, {}).values()]
    return min((place for place in places if place is not None), default=None)


def _check_begin(account: Account, undo: TaskDefinition) -> Iterator[Violation]:
    place = _begun_at(account, undo)
    assert place is not None
    sentence = None
    if account.stop is None or place < account.stop:
        sentence = "it began although the execution was not stopped"
    elif account.barrier is None or place <= account.barrier:
        sentence = "it began before the barrier: an attempt was out, and had no outcome yet"
    elif undo.compensates is not None and not account.is_undone(account.tasks[undo.compensates], undo):
        state = account.state_at_end(undo.compensates)
        sentence = f"it began although {undo.compensates}, which it undoes, is {state} and was never done"
    if sentence is not None:
        yield _violation(account, undo, place, sentence)


def _check_order(account: Account, begun: list[TaskDefinition]) -> Iterator[Violation]:
    """What came later is undone before; the plain tasks follow, in their own order."""
    for undo in begun:
        place = _begun_at(account, undo)
        assert place is not None
        for other in account.undone_before(undo.id):
            settled = account.undo_settled(other)
            if settled is None or settled[0] >= place:
                yield _violation(account, undo, place, f"it began before {other} was over")
                break


def _check_end(account: Account) -> Iterator[Violation]:
    end = account.fact(account.finishes[0])
    assert isinstance(end, Finished)
    wanted = account.wanted
    settled = {undo: account.undo_settled(undo) for undo in account.undoing}
    for undo in account.undoing.values():
        is_wanted = undo.id in wanted or undo.compensates is None
        if is_wanted and settled[undo.id] is None:
            forward = f"{undo.compensates} " if undo.compensates is not None else ""
            sentence = f"the execution ended, and {forward}was not undone by {undo.id}"
            yield _violation(account, undo, account.finishes[0], sentence)
            return
    done = [(place, undo) for undo, (place, is_completed) in _known(settled).items() if is_completed and undo in wanted]
    undone = tuple(wanted[undo] for _, undo in sorted(done))
    failed = [undo for undo, (_, is_completed) in _known(settled).items() if not is_completed]
    if end.compensated != undone:
        sentence = f"the end says that {_list(end.compensated)} were undone, the log {_list(undone)}"
        yield Violation("I6", end.execution, sentence, None, account.sequence(account.finishes[0]))
    compensation = "incomplete" if failed else "complete" if undone else None
    if end.compensation != compensation:
        sentence = f"the end says that the compensation is {end.compensation}, by the log it is {compensation}"
        yield Violation("I6", end.execution, sentence, None, account.sequence(account.finishes[0]))


def _known(settled: dict[str, tuple[int, bool] | None]) -> dict[str, tuple[int, bool]]:
    return {undo: found for undo, found in settled.items() if found is not None}


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _violation(account: Account, undo: TaskDefinition, place: int, sentence: str) -> Violation:
    return Violation("I6", account.started.execution, sentence, undo.id, account.sequence(place))
