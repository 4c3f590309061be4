"""Facts: what the log holds, decoded. A fact never changes, and only facts change an execution.

Times (`at`) are the stream's own, in seconds since the epoch; `sequence` is the fact's place in its log.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: The version of the rules that decide, pinned by `started`: a coordinator leaves alone what it has not the rules of.
DECIDE_VERSION = 1


class ErrorType(StrEnum):
    """The error types this system itself gives; an agent's own are any other string."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    UNDELIVERABLE = "undeliverable"
    POISON = "poison"
    GARBAGE = "garbage"
    CONDITION = "condition_error"
    EXPRESSION = "expression_error"
    INVALID_INPUT = "invalid_input"
    INVALID_CONFIG = "invalid_config"
    INVALID_RESULT = "invalid_result"
    MAX_ITERATIONS = "max_iterations"
    TOO_MANY_FAILURES = "too_many_failures"
    REJECTED = "rejected"
    CHILD_FAILED = "child_failed"
    UNKNOWN_WORKFLOW = "unknown_workflow"
    TOO_DEEP = "too_deep"
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


class Priority(StrEnum):
    """Whose work goes first to an agent that has more of it than it can take."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Started:
    execution: str
    at: float
    workflow: str
    definition: str
    input: Any = None
    cause: dict[str, Any] = field(default_factory=dict)
    decide: int = DECIDE_VERSION
    priority: Priority = Priority.NORMAL
    #: Results of tasks that need not run again, by task id: what a fork brings along.
    seed: dict[str, Any] = field(default_factory=dict)
    #: A tick of a schedule that was passed over: nothing runs, and no coordinator that lags fires it later.
    skipped: bool = False
    #: What an input that travels as a reference stands for, where an expression looks into it.
    content: Any = None


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
    #: Nobody knows whether the work was done: a coordinator gave this, or an agent that was not the first to begin it.
    closed: bool = False
    #: What a result that travels as a reference stands for, where an expression looks into it.
    content: Any = None


@dataclass(frozen=True, slots=True)
class Due:
    execution: str
    at: float
    task: str
    attempt: int


#: The signal by which an agent says that it let go of an attempt that was closed: `{"task", "attempt", "late"}`.
RELEASED_SIGNAL = "im-released"
#: The signal of a decision: `{"task", "decision": "approve" or "reject", "by", "comment", "data"}`.
APPROVAL_SIGNAL = "im-approval"
#: The claim on a message before it is sent; the core has no use for it.
NOTIFIED_SIGNAL = "im-notified"
#: The signal by which an execution gets the slot of its concurrency key.
SLOT_SIGNAL = "im-slot"
#: On a concurrency key's own subject: an execution asks for a slot, `{"execution", "max"}`, and gives it back.
ENTER_SIGNAL = "im-enter"
LEAVE_SIGNAL = "im-leave"


@dataclass(frozen=True, slots=True)
class Signal:
    execution: str
    at: float
    name: str
    id: str
    data: Any = None
    #: What data that travels as a reference stands for, where an expression looks into it.
    content: Any = None


class CommandKind(StrEnum):
    CANCEL = "cancel"
    DEADLINE = "deadline"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"  #: of an execution that ended otherwise than completed: its unfinished tasks run again
    COMPENSATE = "compensate"  #: of one whose compensation is incomplete: what failed of it runs again


@dataclass(frozen=True, slots=True)
class Command:
    execution: str
    at: float
    kind: CommandKind
    id: str
    reason: str = ""
    #: Of a cancel: in place of the workflow's own grace, in seconds.
    grace: float | None = None


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
