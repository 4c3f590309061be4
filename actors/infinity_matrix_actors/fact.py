"""Facts: what the log holds, decoded. A fact never changes, and only facts change an execution.

Times (`at`) are the stream's own, in seconds since the epoch; `sequence` is the fact's place in its log.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ErrorType(StrEnum):
    """The error types this system itself gives; an agent's own are any other string."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    UNDELIVERABLE = "undeliverable"
    POISON = "poison"
    GARBAGE = "garbage"
    CONDITION = "condition_error"
    RESULT_NOT_ENCODABLE = "ResultNotEncodable"
    PAYLOAD_TOO_LARGE = "PayloadTooLarge"


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why an attempt failed. `retry_after` is in seconds and goes before the task's own backoff."""

    type: str
    message: str
    retryable: bool = True
    retry_after: float | None = None

    def record(self) -> dict[str, Any]:
        """The form it has on the wire."""
        record: dict[str, Any] = {"type": str(self.type), "message": self.message, "retryable": self.retryable}
        if self.retry_after is not None:
            record["retry_after"] = self.retry_after
        return record


@dataclass(frozen=True, slots=True)
class Started:
    execution: str
    at: float
    workflow: str
    definition: str
    input: Any = None
    cause: dict[str, Any] = field(default_factory=dict)
    decide: int = 1


@dataclass(frozen=True, slots=True)
class Taken:
    execution: str
    at: float
    agent: str
    task: str
    attempt: int
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: completed when `error` is None, else failed."""

    execution: str
    at: float
    agent: str
    task: str
    attempt: int
    result: Any = None
    error: TaskError | None = None
    started_at: float | None = None
    #: Given by a coordinator: nobody knows whether the agent did the work.
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    execution: str
    at: float
    task: str
    attempt: int


#: The signal by which an agent says that it let go of an attempt that was closed: `{"task", "attempt", "late"}`.
RELEASED_SIGNAL = "im-released"


@dataclass(frozen=True, slots=True)
class Signal:
    execution: str
    at: float
    name: str
    id: str
    data: Any = None


class CommandKind(StrEnum):
    CANCEL = "cancel"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Command:
    execution: str
    at: float
    kind: CommandKind
    id: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    execution: str
    at: float
    n: int
    state: str
    error: dict[str, Any] | None = None
    #: `complete` or `incomplete` where there was something to undo.
    compensation: str | None = None
    compensated: tuple[str, ...] = ()


Fact = Started | Taken | Outcome | Due | Signal | Command | Finished
