"""What agents and clients wrote down, and what lies in the queue, against the log."""

from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from infinity_matrix_actors.definition import CHILD_AGENT
from infinity_matrix_actors.fact import Command, Fact, Finished, Outcome, Signal, Started
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_bus.artifacts import ARTIFACT_BYTES_MAX, is_reference, target_of
from infinity_matrix_bus.codec import encode

from infinity_matrix_coordinator.verification.account import Account
from infinity_matrix_coordinator.verification.history import JOURNAL_SKEW_S, AttemptKey, ClientLine, History, Violation

#: What is left over of an execution is gone after this long.
LEFTOVER_AFTER_S = 60.0
#: A task goes on through these, and never back within one attempt; settled is settled.
_TASK_RANKS = {
    TaskState.WAITING: 0,
    TaskState.QUEUED: 1,
    TaskState.RUNNING: 2,
    TaskState.RETRYING: 3,
    TaskState.COMPLETED: 4,
    TaskState.FAILED: 4,
    TaskState.SKIPPED: 4,
    TaskState.CANCELLED: 4,
}
_ENDS = frozenset({ExecutionState.COMPLETED, ExecutionState.FAILED, ExecutionState.CANCELLED})


def check_agents_journal(history: History) -> Iterator[Violation]:
    """I3, I4, I7, I13: who did what, and when."""
    if history.journal is None:
        return
    outcomes = history.outcomes()
    begun: set[AttemptKey] = set()
    completed_at: dict[tuple[str, str], float] = {}
    for (execution, task, _), fact in outcomes.items():
        if fact.error is None:
            # One that was taken up again may have completed before: the first time is what counts.
            completed_at.setdefault((execution, task), fact.at)
    upstream = _upstream(history)
    for line in history.journal:
        key = (line.execution, line.task, line.attempt)
        if line.event == "acknowledged" and key not in outcomes:
            sentence = f"the outcome of attempt {line.attempt} was acknowledged and is not in the log"
            yield Violation("I7", line.execution, sentence, line.task)
        if line.event != "began":
            continue
        begun.add(key)
        outcome = outcomes.get(key)
        if outcome is not None and line.at > outcome.at + history.journal_skew_s:
            sentence = f"attempt {line.attempt} began {line.at - outcome.at:.3f} s after its outcome was in the log"
            yield Violation("I3", line.execution, sentence, line.task)
        for above in upstream.get((line.execution, line.task), ()):
            done_at = completed_at.get((line.execution, above))
            if done_at is not None and line.at < done_at - JOURNAL_SKEW_S:
                sentence = f"attempt {line.attempt} began before {above} was done"
                yield Violation("I4", line.execution, sentence, line.task)
    for key, outcome in outcomes.items():
        # A child's end is its parent's outcome: no agent begins that.
        if outcome.error is None and key not in begun and outcome.agent != CHILD_AGENT:
            sentence = f"attempt {key[2]} has a result, but no agent began it"
            yield Violation("I13", key[0], sentence, key[1])


def _upstream(history: History) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for execution in history.facts:
        started = history.started(execution)
        definition = history.definitions.get(started.definition) if started is not None else None
        for task in definition.tasks if definition is not None else ():
            found[execution, task.id] = task.depends_on
    return found


def check_clients_journal(history: History, accounts: dict[str, Account]) -> Iterator[Violation]:
    """I3, I7, I8, I9, I15: what clients were promised and shown."""
    updates: dict[str, list[ClientLine]] = defaultdict(list)
    for line in history.clients:
        facts = [fact for _, fact in history.facts.get(line.execution, ())]
        if line.event == "start":
            yield from _check_start(line, facts)
        elif line.event in ("signal", "cancel") and line.fate == "ok":
            kinds = Signal if line.event == "signal" else Command
            if not any(isinstance(fact, kinds) for fact in facts):
                yield Violation("I7", line.execution, f"a {line.event} was acknowledged and is not in the log")
        elif line.event == "ended":
            yield from _check_shown_end(line, facts)
        elif line.event == "update":
            updates[line.execution].append(line)
        elif line.event == "metrics" and line.execution in accounts:
            yield from _check_shown_metrics(line, accounts[line.execution])
    for execution, lines in updates.items():
        yield from _check_updates(execution, lines)


def _check_start(line: ClientLine, facts: list[Fact]) -> Iterator[Violation]:
    started = next((fact for fact in facts if isinstance(fact, Started)), None)
    if line.fate == "ok" and started is None:
        yield Violation("I7", line.execution, "its start was acknowledged and is not in the log")
    elif line.fate == "unknown" and started is not None and line.data is not None and started.input != line.data:
        yield Violation("I8", line.execution, "its start is in the log with another input than was given")


def _is_same(stored: Any, shown: Any) -> bool:
    """Whether a client was shown what the log has; of a large result the log has the hash of its JSON."""
    if not is_reference(stored) or is_reference(shown):
        return bool(stored == shown)
    name, _ = target_of(stored)
    return sha256(encode(shown, limit_bytes=ARTIFACT_BYTES_MAX)).hexdigest() == name


def _check_shown_end(line: ClientLine, facts: list[Fact]) -> Iterator[Violation]:
    ends = [fact for fact in facts if isinstance(fact, Finished)]
    if ends and ends[-1].state != line.state:
        yield Violation("I3", line.execution, f"a client was told that it is {line.state}, its end is {ends[-1].state}")
    results = {fact.task: fact.result for fact in facts if isinstance(fact, Outcome) and fact.error is None}
    for task, result in (line.data or {}).items():
        if task in results and not _is_same(results[task], result):
            yield Violation("I3", line.execution, "a client was given another result than the log has", task)


def _check_shown_metrics(line: ClientLine, account: Account) -> Iterator[Violation]:
    states = [account.state_at_end(name) for name in account.tasks]
    counts: dict[str, int] = {
        "attempts": sum(account.attempt_count(name) for name in account.tasks),
        **{state: states.count(state) for state in ("completed", "failed", "skipped")},
    }
    shown: dict[str, Any] = line.data or {}
    for name, value in shown.items():
        if name in counts and value != counts[name]:
            yield Violation("I15", line.execution, f"a client was shown {value} {name}, the log has {counts[name]}")


def _check_updates(execution: str, lines: list[ClientLine]) -> Iterator[Violation]:
    reached: dict[str | None, tuple[int, int]] = {}
    ended = False
    for line in lines:
        if line.task is None:
            if ended:
                yield Violation("I9", execution, f"it was shown as {line.state} after its end")
            ended = ended or line.state in _ENDS
            continue
        at = (line.attempt, _TASK_RANKS.get(TaskState(line.state), 0))
        before = reached.get(line.task, (0, 0))
        if at < before or (at == before and at[1] == _TASK_RANKS[TaskState.COMPLETED]):
            sentence = f"it was shown as {line.state} of attempt {line.attempt} after a later state"
            yield Violation("I9", execution, sentence, line.task)
        reached[line.task] = max(at, before)


def check_leftovers(history: History) -> Iterator[Violation]:
    """I14: no work is queued of an execution that ended a minute ago, unless an agent gave its outcome.

    An agent that died before its acknowledgement left such a work out; the next of its name is told that it is settled.
    """
    for work in history.queued:
        facts = [fact for _, fact in history.facts.get(work.execution, ())]
        if any(
            isinstance(fact, Outcome) and (fact.task, fact.attempt) == (work.task, work.attempt) and not fact.closed
            for fact in facts
        ):
            continue
        ends = [fact for fact in facts if isinstance(fact, Finished)]
        reopened = any(isinstance(fact, Command) and ends and fact.at > ends[-1].at for fact in facts)
        if ends and not reopened and ends[-1].at < history.queue_read_at - LEFTOVER_AFTER_S:
            ago_s = history.queue_read_at - ends[-1].at
            sentence = f"attempt {work.attempt} is queued for {work.agent}, {ago_s:.0f} s after the end"
            yield Violation("I14", work.execution, sentence, work.task)
