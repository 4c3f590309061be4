"""A workflow's definition: what the core reads, frozen, with every default written out.

Users write documents (see `document`); behind that door there is only this. Durations are seconds.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

ATTEMPT_LIMIT_S = 86_400.0
GRACE_S = 10.0


class RunWhen(StrEnum):
    """What the upstream tasks must have come to for a task to run."""

    DEFAULT = "default"  #: none failed and at least one completed
    ALL_COMPLETED = "all_completed"
    ANY_COMPLETED = "any_completed"
    ALL_SETTLED = "all_settled"
    ANY_FAILED = "any_failed"


#: A task that runs when one of these holds handles the failure of an upstream task: it does not fail the execution.
HANDLES_FAILURE = frozenset({RunWhen.ANY_FAILED, RunWhen.ALL_SETTLED, RunWhen.ANY_COMPLETED})


class Backoff(StrEnum):
    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


class CompensateWhen(StrEnum):
    """Of which forward tasks a compensation runs."""

    DEFAULT = "default"  #: those that completed, or of which nobody knows whether they did
    COMPLETED = "completed"
    ATTEMPTED = "attempted"


@dataclass(frozen=True, slots=True)
class RetryDefinition:
    """How often a task is tried; `max_attempts` counts the first."""

    max_attempts: int = 1
    backoff: Backoff = Backoff.EXPONENTIAL
    initial_delay: float = 1.0
    multiplier: float = 2.0
    max_delay: float = 300.0
    jitter: float = 0.2
    non_retryable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """A node of the graph."""

    id: str
    #: Empty for a task that no agent does: one that waits for a signal or for time.
    agent: str = ""
    depends_on: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    condition: str | None = None
    run_when: RunWhen = RunWhen.DEFAULT
    retry: RetryDefinition = RetryDefinition()
    timeout: float | None = None
    queue_timeout: float | None = None
    total_timeout: float = ATTEMPT_LIMIT_S
    #: Only of a task in `on_failure`: the task it undoes.
    compensates: str | None = None
    compensate_when: CompensateWhen = CompensateWhen.DEFAULT
    #: Waits for the signal of this name; its data is the result. `timeout` limits it.
    wait_for: str | None = None
    #: Waits for so many seconds, or until this time in seconds since the epoch.
    sleep: float | None = None
    until: float | None = None
    #: The result when `timeout` passes without the signal: `{"result": ...}`; None fails the task.
    on_timeout: dict[str, Any] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether no agent does it: its outcome is a signal, or a time that has come."""
        return not self.agent


@dataclass(frozen=True, slots=True)
class TriggerDefinition:
    """Events on `im.trigger.<event>` that start an execution; `filter` is CEL over `event`."""

    event: str
    filter: str | None = None


@dataclass(frozen=True, slots=True)
class WorkflowDefinition:
    """The graph and its policies. Pinned by `digest`."""

    name: str
    tasks: tuple[TaskDefinition, ...]
    version: str = "1"
    description: str = ""
    timeout: float | None = None
    grace: float = GRACE_S
    triggers: tuple[TriggerDefinition, ...] = ()
    #: What runs when an execution fails or is cancelled: compensations, and then the others in this order.
    on_failure: tuple[TaskDefinition, ...] = ()

    def canonical(self) -> bytes:
        """The canonical form: JSON, sorted keys, defaults written out; what is stored and hashed."""
        return json.dumps(
            asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    def digest(self) -> str:
        """The SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def from_canonical(cls, data: bytes) -> "WorkflowDefinition":
        """Reads back what `canonical` wrote; raises ValueError, KeyError or TypeError for anything else."""
        record = json.loads(data)
        tasks = tuple(_task(task) for task in record.pop("tasks"))
        on_failure = tuple(_task(task) for task in record.pop("on_failure"))
        triggers = tuple(TriggerDefinition(**trigger) for trigger in record.pop("triggers"))
        return cls(tasks=tasks, on_failure=on_failure, triggers=triggers, **record)


def _task(record: dict[str, Any]) -> TaskDefinition:
    retry = record.pop("retry")
    retry["non_retryable"] = tuple(retry["non_retryable"])
    retry["backoff"] = Backoff(retry["backoff"])
    record["depends_on"] = tuple(record["depends_on"])
    record["run_when"] = RunWhen(record["run_when"])
    record["compensate_when"] = CompensateWhen(record["compensate_when"])
    return TaskDefinition(retry=RetryDefinition(**retry), **record)
