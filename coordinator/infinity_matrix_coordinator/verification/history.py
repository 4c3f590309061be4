"""The evidence a check is made of: the log, decoded, and what clients, agents and the work queue have to say beside it.

Only the log and its definitions are needed. What is missing is not checked, and nothing is guessed in its place.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.fact import Command, CommandKind, Fact, Finished, Outcome, Started
from infinity_matrix_actors.state import ExecutionState

#: What each invariant says, in a line; the key stands in every `Violation`.
INVARIANTS = {
    "I1": "what was started comes to an end, once",
    "I2": "an end is final",
    "I3": "an attempt has one outcome, a task one result, and everyone is shown the same",
    "I4": "no task begins before what it depends on allows it",
    "I5": "attempts count from 1, up to their limit, with their backoff between them",
    "I6": "undone is exactly what completed or is unknown, after the barrier, in reverse order",
    "I7": "nothing that was acknowledged is lost",
    "I8": "a start whose fate is unknown happened whole, or not at all",
    "I9": "no state that was shown goes back",
    "I10": "a tick or an event starts a workflow once",
    "I11": "no coordinator writes what nothing in the log asked for",
    "I12": "folding the log again gives the state that was written",
    "I13": "a result comes from the agent that was given the attempt",
    "I14": "nothing is left over of what has ended",
    "I15": "the metrics that were shown are the counts of the log",
    "I16": "a child starts after its parent, tells it its end, and is cancelled or let go as its close policy says",
}

#: An agent's journal has this machine's clock at one moment and the log that of the server at another.
JOURNAL_SKEW_S = 0.05
Entry = tuple[int, Fact]
AttemptKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken: which, where, and in a sentence how. `sequence` is the fact's place in its log."""

    invariant: str
    execution: str
    sentence: str
    task: str | None = None
    sequence: int | None = None

    def __str__(self) -> str:
        place = f" {self.task}" if self.task is not None else ""
        at = f" (sequence {self.sequence})" if self.sequence is not None else ""
        return f"{self.invariant} {self.execution}{place}: {self.sentence}{at}"


class AgentLine(NamedTuple):
    """A line of an agent's journal; `at` is seconds since the epoch by the agent's own clock.

    Events that are checked: `began`, and `acknowledged` (the server confirmed that it stored the outcome: `sequence` is
    its place in the log, 0 where it was not told, `state` completed or failed). Others are passed over.
    """

    event: str
    execution: str
    task: str
    attempt: int
    at: float
    process: int
    sequence: int = 0
    state: str = ""


class ClientLine(NamedTuple):
    """A line of a client's journal.

    Events: `start` (its `fate` is `ok`, `failed` or `unknown`), `signal` (with its `id`) and commands by their kind
    (`cancel`, `pause`, ...) with `fate` ok, `ended` (`state` and, in `data`, the outputs by task), `update` (a
    transition it was shown: `task`, `state`, `attempt`), `metrics` (`data` with some of attempts, completed, failed,
    skipped).
    """

    event: str
    execution: str
    fate: str = "ok"
    task: str | None = None
    state: str = ""
    attempt: int = 0
    data: Any = None
    id: str = ""


class QueuedWork(NamedTuple):
    """A work message that was in the queue at `History.queue_read_at`."""

    agent: str
    execution: str
    task: str
    attempt: int


@dataclass(slots=True)
class History:
    """What happened. `facts` holds each execution's facts in log order, each with its sequence."""

    facts: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    #: By hash; an execution whose definition is not here is checked without its graph.
    definitions: dict[str, WorkflowDefinition] = field(default_factory=dict)
    #: The agents' journal. None: they kept none, so who did what is not checked.
    journal: list[AgentLine] | None = None
    clients: Sequence[ClientLine] = ()
    queued: Sequence[QueuedWork] = ()
    #: The executions that have a record in the checkpoints, read then, too.
    checkpoints: Sequence[str] = ()
    #: The stream's time when `queued` was read, in seconds since the epoch.
    queue_read_at: float = 0.0
    #: How long after an outcome was stored an agent may begin all the same, in seconds: the clocks differ a little, and
    #: who asked whether it is still to be done may be slow to begin.
    journal_skew_s: float = JOURNAL_SKEW_S
    #: Everything had the time to end: an execution that is open is one too many.
    is_over: bool = False
    #: The log was read from its beginning: an execution without `started` has lost it.
    is_whole: bool = True
    #: Messages of the log that are no facts: garbage, and forged ones.
    garbage: int = 0

    @property
    def begun(self) -> list[AgentLine]:
        """The beginnings in the agents' journal."""
        return [line for line in self.journal or () if line.event == "began"]

    def outcomes(self) -> dict[AttemptKey, Outcome]:
        """The outcome of each attempt."""
        return {
            (fact.execution, fact.task, fact.attempt): fact
            for facts in self.facts.values()
            for _, fact in facts
            if isinstance(fact, Outcome)
        }

    def repeated(self) -> int:
        """Attempts that agents began more than once, which is allowed before the outcome is there."""
        return len(self.begun) - len({(line.execution, line.task, line.attempt) for line in self.begun})

    def started(self, execution: str) -> Started | None:
        """The `started` of an execution, if it is in the log."""
        return next((fact for _, fact in self.facts.get(execution, ()) if isinstance(fact, Started)), None)

    def open(self) -> list[str]:
        """The executions that have begun and not ended, or were taken up again after their end."""
        return [execution for execution, facts in self.facts.items() if is_open(facts)]


def is_open(facts: Sequence[Entry]) -> bool:
    """Whether an execution has begun, and has no end after all that took it up again."""
    has_started = False
    end: Finished | None = None
    for _, fact in facts:
        match fact:
            case Started():
                if fact.skipped:
                    return False
                has_started = True
            case Finished():
                end = fact
            case Command() if end is not None and is_reopened_by(end, fact):
                end = None
    return has_started and end is None


def is_reopened_by(end: Finished, command: Command) -> bool:
    """Whether an execution that ended so goes on after that command; of others nothing follows."""
    if command.kind is CommandKind.RETRY:
        return end.state != ExecutionState.COMPLETED
    return command.kind is CommandKind.COMPENSATE and end.compensation == "incomplete"
