"""Effects: what a decision asks the shell to do. Small, never changed, and safe to do twice.

The four that every task makes are not frozen by the interpreter: a frozen one takes four times as long to make
(0.67 us, not 0.15), and those of a chain of 3 are eighteen.

`at` is the stream time of the fact an effect follows from, in seconds since the epoch.
"""

from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.fact import TaskError
from infinity_matrix_actors.state import ExecutionState, TaskState


@dataclass(slots=True)
class PublishWork:
    """One attempt to do."""

    task: str
    attempt: int
    at: float


@dataclass(frozen=True, slots=True)
class StartChild:
    """Start the execution that is this attempt."""

    task: str
    attempt: int
    at: float


@dataclass(frozen=True, slots=True)
class CancelChild:
    """Cancel the execution that is this attempt, also one that has not started yet."""

    task: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class AskSlot:
    """Ask for one of the slots of this execution's concurrency key."""

    key: str
    max_running: int
    #: Counts the times the execution was begun.
    n: int = 1


@dataclass(slots=True)
class PublishStatus:
    """A transition, for people and tails. `task` is None for the execution itself."""

    task: str | None
    state: TaskState | ExecutionState
    attempt: int
    at: float
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class Arm:
    """Call `expire` for this task (None: the execution) once the stream's time is `at`; replaces its earlier timer."""

    task: str | None
    at: float


@dataclass(slots=True)
class Disarm:
    task: str | None


@dataclass(frozen=True, slots=True)
class PublishDue:
    """The attempt's backoff is over: make it a fact before anything follows from it."""

    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AskTaken:
    """Ask the consumer whether the attempt is still queued, and call `expire` again with the answer."""

    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AskHeartbeat:
    """Ask when the attempt's agent last showed progress, and call `expire_heartbeat` with the answer."""

    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class CloseAttempt:
    """Plant the attempt's tombstone, purge its work, then take its outcome's subject with this error."""

    task: str
    attempt: int
    error: TaskError


@dataclass(frozen=True, slots=True)
class PurgeWork:
    """Purge the work of an attempt that a coordinator closed, once more, now that the closing is a fact."""

    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class TellAgents:
    """Push to agents: stop this attempt now (task None: every task of the execution, attempt 0: any)."""

    task: str | None
    reason: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class PublishDeadline:
    """The execution's own timer is due: make it a fact. `n` counts the times the execution was begun.

    It is over the workflow's timeout, or `is_again`: the time has come to try its failed tasks again.
    """

    n: int = 1
    is_again: bool = False

    @property
    def id(self) -> str:
        """The command's id: one for each time it was begun, so that a late one does not end the next."""
        name = "again" if self.is_again else "timeout"
        return name if self.n == 1 else f"{name}-{self.n}"


@dataclass(frozen=True, slots=True)
class PublishDead:
    """Put the work of an attempt that could not be done, and is not tried again, with the dead letters."""

    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class PublishFinished:
    """The terminal record; `compensated` are the tasks undone, in the order it was done."""

    state: ExecutionState
    error: dict[str, Any] | None
    at: float
    compensation: str | None = None
    compensated: tuple[str, ...] = ()
    n: int = 1


Effect = (
    PublishWork
    | StartChild
    | CancelChild
    | AskSlot
    | PublishStatus
    | Arm
    | Disarm
    | PublishDue
    | AskTaken
    | AskHeartbeat
    | CloseAttempt
    | PurgeWork
    | TellAgents
    | PublishDeadline
    | PublishDead
    | PublishFinished
)
