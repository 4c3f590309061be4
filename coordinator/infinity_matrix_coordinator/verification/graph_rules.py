"""The rules of the graph: when a task may begin, how its attempts follow one another, and what timers may say.

All of them look at an `Account`.
"""

from collections.abc import Iterator

from infinity_matrix_actors.definition import Backoff, RetryDefinition, TaskDefinition
from infinity_matrix_actors.fact import Command, Due, Outcome

from infinity_matrix_coordinator.verification.account import Account
from infinity_matrix_coordinator.verification.history import Violation

#: Between the clock a timer runs by and that of the stream.
TIMER_SKEW_S = 0.05


def check_tasks(account: Account) -> Iterator[Violation]:
    """I3, I4, I5, I7, I11 of every forward task that agents do."""
    for task in account.tasks.values():
        if task.agent:
            yield from _check_begin(account, task)
        yield from check_attempts(account, task)


def _check_begin(account: Account, task: TaskDefinition) -> Iterator[Violation]:
    """I4: it begins after all it depends on, where its conditions hold, and not once the execution is stopped."""
    signs = [(number, found.first) for number, found in account.attempts.get(task.id, {}).items()]
    for number, place in sorted((number, place) for number, place in signs if place is not None):
        ready = account.ready.get(task.id)
        settled = account.settled.get(task.id)
        sentence = None
        if ready is None:
            sentence = "it began although a task it depends on has not ended"
        elif settled is not None and (task.id, 1) not in account.dispatched:
            sentence = f"it began although it is {settled.state}"
        elif place < ready:
            sentence = "it began before what it depends on was done"
        elif account.stop is not None and account.dispatched.get((task.id, number), 0) > account.stop:
            sentence = "it began after the execution was stopped"
        if sentence is not None:
            yield _violation(account, _blame(account, place, "I4"), task, place, sentence)
            return


def check_attempts(account: Account, task: TaskDefinition) -> Iterator[Violation]:
    """I3, I5, I7, I11: attempts come one after the other, each because the one before failed, and after its backoff."""
    attempts = account.attempts.get(task.id, {})
    for number in sorted(attempts):
        found = attempts[number]
        begun = found.first
        if begun is not None:
            yield from _check_number(account, task, number, begun)
        for place in found.due:
            yield from _check_due(account, task, number, place)


def _check_number(account: Account, task: TaskDefinition, number: int, place: int) -> Iterator[Violation]:
    if number < 1 or number > task.retry.max_attempts:
        sentence = f"attempt {number} of {task.retry.max_attempts}"
        yield _violation(account, "I5", task, place, sentence)
        return
    if number == 1:
        return
    before = account.outcome(task.id, number - 1)
    due = account.attempts[task.id][number].due
    if before is None:
        yield _violation(account, "I7", task, place, f"attempt {number} has no outcome of the one before it")
    elif before[1].error is None:
        yield _violation(account, "I3", task, place, f"attempt {number} follows one that completed")
    elif not due or due[0] > place:
        yield _violation(account, "I5", task, place, f"attempt {number} began before its backoff was over")


def _check_due(account: Account, task: TaskDefinition, number: int, place: int) -> Iterator[Violation]:
    """A `due` says that a backoff, a sleep or a lease is over."""
    if not task.agent:
        if account.ready.get(task.id, place) >= place:
            yield _violation(account, "I11", task, place, "its time came before it began to wait")
        return
    if number == 1 and task.id in account.undoing:
        return  # the lease of what it undoes
    before = account.outcome(task.id, number - 1)
    if before is None and account.attempts[task.id][number].first is not None:
        return  # that the outcome is missing is said of the attempt
    if before is None or before[0] > place:
        yield _violation(account, "I11", task, place, f"attempt {number} is due, and the one before has no outcome yet")
        return
    failed_at, outcome = account.fact(before[0]).at, before[1]
    if outcome.error is None or not account.is_retried(task, number - 1, before[0], outcome.error, None):
        if account.attempts[task.id][number].first is None:
            yield _violation(account, "I11", task, place, f"attempt {number} is due, and nothing is to be tried again")
        return
    wanted_s = outcome.error.retry_after
    shortest_s = wanted_s if wanted_s is not None else _shortest_s(task.retry, number - 1)
    waited_s = account.fact(place).at - failed_at
    if waited_s < shortest_s - TIMER_SKEW_S:
        sentence = (
            f"attempt {number} was due {waited_s:.3f} s after the failure, its backoff is {shortest_s:g} s at least"
        )
        yield _violation(account, "I5", task, place, sentence)


def check_deadline(account: Account) -> Iterator[Violation]:
    """I11: a workflow's timeout is over when it is over."""
    timeout_s = account.definition.timeout
    for sequence, fact in account.order:
        if not isinstance(fact, Command) or str(fact.kind) != "deadline":
            continue
        if timeout_s is None:
            sentence = "the deadline has passed of a workflow that has none"
        elif fact.at < account.started.at + timeout_s - TIMER_SKEW_S:
            sentence = f"the deadline came {fact.at - account.started.at:.3f} s after the start, it is {timeout_s:g} s"
        else:
            continue
        yield Violation("I11", account.started.execution, sentence, None, sequence)


def _shortest_s(retry: RetryDefinition, attempt: int) -> float:
    """The least time between the failure of an attempt and the next, jitter taken off."""
    delay_s = retry.initial_delay
    if retry.backoff is Backoff.LINEAR:
        delay_s *= attempt
    elif retry.backoff is Backoff.EXPONENTIAL:
        for _ in range(attempt - 1):
            delay_s = min(delay_s * retry.multiplier, retry.max_delay)
    return min(delay_s, retry.max_delay) * (1 - retry.jitter)


def _blame(account: Account, place: int, otherwise: str) -> str:
    """I11 where it was a coordinator that wrote what nobody asked for."""
    fact = account.fact(place)
    return "I11" if isinstance(fact, Due) or (isinstance(fact, Outcome) and fact.closed) else otherwise


def _violation(account: Account, invariant: str, task: TaskDefinition, place: int, sentence: str) -> Violation:
    return Violation(invariant, account.started.execution, sentence, task.id, account.sequence(place))
