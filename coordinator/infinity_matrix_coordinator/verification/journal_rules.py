"""What agents and clients wrote down, and what lies in the queue, against the log."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from infinity_matrix_actors.definition import CHILD_AGENT
from infinity_matrix_actors.fact import Command, Fact, Finished, Outcome, Signal, Started
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_bus.artifacts import ARTIFACT_BYTES_MAX, is_reference, target_of
from infinity_matrix_bus.codec import encode

from infinity_matrix_coordinator.slots import KEY_PREFIX, SlotActor
from infinity_matrix_coordinator.verification.account import Account
from infinity_matrix_coordinator.verification.end_rules import decided_at
from infinity_matrix_coordinator.verification.history import (
    JOURNAL_SKEW_S,
    AgentLine,
    AttemptKey,
    ClientLine,
    Entry,
    History,
    Violation,
    is_open,
)

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
#: What clients give to an execution, by its event in their journal.
_GIVEN = frozenset({"signal", "cancel", "pause", "resume", "retry", "compensate"})
_NEVER_BEGUN = frozenset({str(TaskState.SKIPPED), str(TaskState.CANCELLED)})
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
        if line.event == "acknowledged" and history.is_whole and not _is_stored(history, line, outcomes.get(key)):
            place = f" at {line.sequence}" if line.sequence else ""
            sentence = f"the outcome of attempt {line.attempt} was acknowledged{place} and is not in the log"
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


def _is_stored(history: History, line: AgentLine, outcome: Outcome | None) -> bool:
    """Whether the outcome that was acknowledged is in the log, where it was said to be, and as what it was."""
    if line.sequence:
        there = history.facts.get(line.execution, ())
        outcome = next((fact for at, fact in there if at == line.sequence and isinstance(fact, Outcome)), None)
    if outcome is None or (outcome.task, outcome.attempt) != (line.task, line.attempt):
        return False
    return not line.state or (line.state == TaskState.COMPLETED) == (outcome.error is None)


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
        elif line.event in _GIVEN and line.fate == "ok":
            if not any(_is_given(line, fact) for fact in facts):
                name = f"{line.event} {line.id}".rstrip()
                yield Violation("I7", line.execution, f"a {name} was acknowledged and is not in the log")
        elif line.event == "ended":
            yield from _check_shown_end(history, line, facts, accounts.get(line.execution))
        elif line.event == "update":
            updates[line.execution].append(line)
        elif line.event == "metrics" and line.execution in accounts:
            yield from _check_shown_metrics(line, accounts[line.execution])
    for execution, lines in updates.items():
        yield from _check_updates(execution, lines)
        yield from _check_last_updates(history, execution, lines, accounts.get(execution))


def _check_start(line: ClientLine, facts: list[Fact]) -> Iterator[Violation]:
    started = next((fact for fact in facts if isinstance(fact, Started)), None)
    if line.fate == "ok" and started is None:
        yield Violation("I7", line.execution, "its start was acknowledged and is not in the log")
    elif line.fate != "failed" and started and line.data is not None and not _is_same(started.input, line.data):
        yield Violation("I8", line.execution, "its start is in the log with another input than was given")


def _is_given(line: ClientLine, fact: Fact) -> bool:
    """Whether a fact is what a client gave, as far as the client wrote down what it was."""
    if line.event == "signal":
        return isinstance(fact, Signal) and (not line.id or fact.id == line.id)
    return isinstance(fact, Command) and str(fact.kind) == line.event and (not line.id or fact.id == line.id)


def _is_same(stored: Any, shown: Any) -> bool:
    """Whether a client was shown what the log has; of a large result the log has the hash of its JSON."""
    if not is_reference(stored) or is_reference(shown):
        return bool(stored == shown)
    name, _ = target_of(stored)
    return sha256(encode(shown, limit_bytes=ARTIFACT_BYTES_MAX)).hexdigest() == name


def _check_shown_end(
    history: History, line: ClientLine, facts: list[Fact], account: Account | None
) -> Iterator[Violation]:
    ends = {fact.state for fact in facts if isinstance(fact, Finished)}
    # An end is told once it is decided, which is before it is written.
    is_undecided = history.is_over or (account is not None and decided_at(account) is None)
    if ends and line.state not in ends:
        sentence = f"a client was told that it is {line.state}, its end is {', '.join(sorted(ends))}"
        yield Violation("I3", line.execution, sentence)
    elif not ends and is_undecided:
        yield Violation("I3", line.execution, f"a client was told that it is {line.state}, and it has no end")
    results = _results(facts) if account is None else account.results()
    for task, result in (line.data or {}).items():
        if task in results:
            if not _is_same(results[task], result):
                yield Violation("I3", line.execution, "a client was given another result than the log has", task)
        elif account is not None or _is_plain(history, line.execution, task):
            yield Violation("I3", line.execution, "a client was given a result, and the log has none", task)


def _results(facts: list[Fact]) -> dict[str, Any]:
    return {fact.task: fact.result for fact in facts if isinstance(fact, Outcome) and fact.error is None}


def _is_plain(history: History, execution: str, task: str) -> bool:
    """Whether a task has its result from an outcome of its own, so that it has none without it."""
    started = history.started(execution)
    definition = history.definitions.get(started.definition) if started is not None else None
    known = next((one for one in definition.tasks if one.id == task), None) if definition is not None else None
    if started is None or known is None or task in started.seed:
        return False
    return bool(known.agent) and known.map is None and known.loop is None


def _check_last_updates(
    history: History, execution: str, lines: list[ClientLine], account: Account | None
) -> Iterator[Violation]:
    """I3: what was shown last of what has ended is what the log says of it."""
    last = {line.task: line for line in lines if line.task is not None or line.state in _ENDS}
    for task, line in last.items():
        if task is None:
            ends = {fact.state for _, fact in history.facts.get(execution, ()) if isinstance(fact, Finished)}
            if line.state not in ends and (ends or history.is_over):
                sentence = f"it was shown as {line.state}, its end is {', '.join(sorted(ends)) or 'missing'}"
                yield Violation("I3", execution, sentence)
        elif account is not None and _TASK_RANKS[TaskState(line.state)] == _TASK_RANKS[TaskState.COMPLETED]:
            state = account.state_of(task)
            # Of what never began, whether its execution was stopped first or it was passed over is not reckoned.
            is_same = state == line.state or (line.attempt == 0 and {state, line.state} <= _NEVER_BEGUN)
            if state is not None and not is_same:
                yield Violation(
                    "I3", execution, f"it was shown as {line.state} at last, by the log it is {state}", task
                )


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
    """I14: no work is queued of an execution that ended a minute ago, unless an agent gave its outcome; no slot is held
    and no checkpoint kept for it.

    An agent that died before its acknowledgement left such a work out; the next of its name is told that it is settled.
    """
    for work in history.queued:
        facts = [fact for _, fact in history.facts.get(work.execution, ())]
        if any(
            isinstance(fact, Outcome) and (fact.task, fact.attempt) == (work.task, work.attempt) and not fact.closed
            for fact in facts
        ):
            continue
        ago_s = _ended_ago_s(history, work.execution)
        if ago_s > LEFTOVER_AFTER_S:
            sentence = f"attempt {work.attempt} is queued for {work.agent}, {ago_s:.0f} s after the end"
            yield Violation("I14", work.execution, sentence, work.task)
    for execution in history.checkpoints:
        ago_s = _ended_ago_s(history, execution)
        if ago_s > LEFTOVER_AFTER_S:
            yield Violation("I14", execution, f"its checkpoint is kept, {ago_s:.0f} s after the end")
    for key, facts_of_key in history.facts.items():
        if key.startswith(KEY_PREFIX):
            yield from _check_slots(history, facts_of_key)


def _check_slots(history: History, facts: Sequence[Entry]) -> Iterator[Violation]:
    actor = SlotActor()
    granted_at: dict[str, float] = {}
    for sequence, fact in facts:
        if isinstance(fact, Signal):
            granted_at |= {ticket.id: fact.at for ticket in actor.receive(fact, sequence)}
    for ticket in actor.running.values():
        # It may have waited longer than it lived.
        ago_s = min(_ended_ago_s(history, ticket.execution), history.queue_read_at - granted_at[ticket.id])
        if ago_s > LEFTOVER_AFTER_S:
            sentence = f"it holds a slot of its key, {ago_s:.0f} s after the end"
            yield Violation("I14", ticket.execution, sentence, None, ticket.sequence)


def _ended_ago_s(history: History, execution: str) -> float:
    """For how long an execution has ended; below zero of one that is open, or of which the log has no end."""
    facts = history.facts.get(execution, ())
    ends = [fact.at for _, fact in facts if isinstance(fact, Finished)]
    return history.queue_read_at - ends[-1] if ends and not is_open(facts) else -1.0
