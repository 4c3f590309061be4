"""The listing of executions: where each stands, from its start, its ends and the commands that change its state alone.

Nothing is folded here: what only a fold can tell (an execution that undoes itself, or is stopping) is `running`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from infinity_matrix_actors.fact import Command, CommandKind, Finished, Started
from infinity_matrix_actors.state import ExecutionState
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.history import read_all, read_each
from infinity_matrix_bus.log_reader import Entry
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.checkpoint_store import Checkpoint, read_checkpoint

#: Of a tick that a schedule passed over.
SKIPPED = "skipped"
INCOMPLETE = "incomplete"
#: What a listing can say of an execution.
LISTED_STATES = (
    str(ExecutionState.RUNNING),
    str(ExecutionState.PAUSED),
    str(ExecutionState.COMPLETED),
    str(ExecutionState.FAILED),
    str(ExecutionState.CANCELLED),
    SKIPPED,
)
OPEN_STATES = frozenset({str(ExecutionState.RUNNING), str(ExecutionState.PAUSED)})
_COMMANDS = tuple(kind for kind in CommandKind if kind is not CommandKind.DEADLINE)
_UNSUCCESSFUL = frozenset({str(ExecutionState.FAILED), str(ExecutionState.CANCELLED)})


@dataclass(frozen=True, slots=True)
class ExecutionSummary:
    """A line of a listing. Times are seconds since the epoch."""

    execution_id: str
    workflow: str
    #: One of `LISTED_STATES`.
    state: str
    started_at: float
    finished_at: float | None
    #: The hash of the definition it runs on.
    definition: str = ""
    #: `complete` or `incomplete` where there was something to undo at its last end.
    compensation: str | None = None
    priority: str = "normal"
    #: What started it: a trigger, a schedule, a parent, a fork (`fork`), an earlier run (`rerun_of`); or empty.
    cause: dict[str, Any] = field(default_factory=dict)
    #: Why it stands still, if its coordinator cannot fold it; known only of those that need attention.
    problem: str | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def base(self) -> str:
        """The execution id it is a run of: its own, unless it was started as a further run of another."""
        base = self.cause.get("rerun_of")
        return base if isinstance(base, str) else self.execution_id

    @property
    def run(self) -> int:
        """Which run of that id it is, from 1."""
        number = self.cause.get("run")
        return number if isinstance(number, int) and isinstance(self.cause.get("rerun_of"), str) else 1

    @property
    def needs_attention(self) -> bool:
        """It stands still, or something of it could not be undone and nobody has taken that up."""
        return self.is_undone_in_part or self.problem is not None

    @property
    def is_undone_in_part(self) -> bool:
        """It has ended, and something of it could not be undone."""
        return not self.is_open and self.compensation == INCOMPLETE


@dataclass(frozen=True, slots=True)
class Selection:
    """Which executions are meant; what is None, or False, leaves none out. Times are seconds since the epoch."""

    workflow: str | None = None
    state: str | None = None
    started_after: float | None = None
    started_before: float | None = None
    needs_attention: bool = False
    #: At most so many, the newest.
    limit: int | None = None

    def admits(self, summary: ExecutionSummary) -> bool:
        return (
            (self.workflow is None or summary.workflow == self.workflow)
            and (self.state is None or summary.state == self.state)
            and (self.started_after is None or summary.started_at >= self.started_after)
            and (self.started_before is None or summary.started_at < self.started_before)
            and (not self.needs_attention or summary.needs_attention)
        )

    def select(self, summaries: Iterable[ExecutionSummary]) -> list[ExecutionSummary]:
        """Those that are meant, newest first."""
        found = [summary for summary in summaries if self.admits(summary)]
        found.sort(key=lambda summary: summary.started_at, reverse=True)
        return found[: self.limit]


def last_runs(summaries: Iterable[ExecutionSummary]) -> dict[str, int]:
    """By execution id the number of its last run."""
    last: dict[str, int] = {}
    for summary in summaries:
        last[summary.base] = max(summary.run, last.get(summary.base, 0))
    return last


async def read_listed(session: Session, subjects: Subjects, shard: int) -> list[Entry]:
    """The facts of a shard that a listing is made of; raises SessionLost, StorageUnavailable, JetStreamError."""
    filters = (
        subjects.all_started(shard),
        subjects.all_finished(shard),
        *(subjects.all_commands(shard, str(kind)) for kind in _COMMANDS),
    )
    return await read_all(session, subjects.facts_stream(shard), filters)


async def list_shard(session: Session, subjects: Subjects, shard: int) -> list[ExecutionSummary]:
    """All executions of a shard; raises SessionLost, StorageUnavailable, JetStreamError."""
    found = summarize(subjects, await read_listed(session, subjects, shard))
    known = {summary.execution_id for summary in found}

    def take(entry: Entry) -> None:
        checkpoint = read_checkpoint(entry.subject, entry.data, entry.sequence)
        if checkpoint is not None and checkpoint.execution not in known:
            found.append(_checkpointed(checkpoint))

    # Open for longer than the log keeps facts.
    await read_each(session, subjects.bucket_stream("checkpoints"), (subjects.checkpoint(shard, "*"),), take)
    return found


def _checkpointed(checkpoint: Checkpoint) -> ExecutionSummary:
    is_paused = checkpoint.state_name == ExecutionState.PAUSED
    state = str(ExecutionState.PAUSED if is_paused else ExecutionState.RUNNING)
    return ExecutionSummary(
        checkpoint.execution, checkpoint.workflow, state, checkpoint.started_at, None, checkpoint.definition
    )


def summarize(subjects: Subjects, entries: Iterable[Entry]) -> list[ExecutionSummary]:
    """The executions whose facts these are, in the order they were started."""
    found: dict[str, ExecutionSummary] = {}
    #: Those that are held, also while they have ended: one that is taken up again still is.
    paused: set[str] = set()
    for entry in entries:
        subject = subjects.parse_fact(entry.subject)
        fact = decode_fact(subject, entry.data, entry.at) if subject is not None else None
        if isinstance(fact, Started):
            found[fact.execution] = _begun(fact)
        elif fact is not None and fact.execution in found:
            seen = found[fact.execution]
            if isinstance(fact, Finished):
                seen = replace(seen, state=fact.state, finished_at=fact.at, compensation=fact.compensation)
            elif isinstance(fact, Command):
                seen = _commanded(seen, fact.kind, paused)
            found[fact.execution] = seen
    return list(found.values())


def _begun(fact: Started) -> ExecutionSummary:
    state = SKIPPED if fact.skipped else str(ExecutionState.RUNNING)
    return ExecutionSummary(
        fact.execution,
        fact.workflow,
        state,
        fact.at,
        fact.at if fact.skipped else None,
        fact.definition,
        None,
        str(fact.priority),
        fact.cause,
    )


def _commanded(seen: ExecutionSummary, kind: CommandKind, paused: set[str]) -> ExecutionSummary:
    """What a command makes of an execution in this state; one that does not fit changes nothing, as in the core."""
    if seen.is_open:
        if kind is CommandKind.PAUSE:
            paused.add(seen.execution_id)
        elif kind in (CommandKind.RESUME, CommandKind.CANCEL):
            paused.discard(seen.execution_id)
        else:
            return seen
    elif not (kind is CommandKind.RETRY and seen.state in _UNSUCCESSFUL) and not (
        kind is CommandKind.COMPENSATE and seen.needs_attention
    ):
        return seen
    state = ExecutionState.PAUSED if seen.execution_id in paused else ExecutionState.RUNNING
    return replace(seen, state=str(state), finished_at=None)
