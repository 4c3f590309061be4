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
    agent: str
    depends_on: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    condition: str | None = None
    run_when: RunWhen = RunWhen.DEFAULT
    retry: RetryDefinition = RetryDefinition()
    timeout: float | None = None
    queue_timeout: float | None = None
    total_timeout: float = ATTEMPT_LIMIT_S


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
        tasks = []
        for task in record.pop("tasks"):
            retry = task.pop("retry")
            retry["non_retryable"] = tuple(retry["non_retryable"])
            retry["backoff"] = Backoff(retry["backoff"])
            task["depends_on"] = tuple(task["depends_on"])
            task["run_when"] = RunWhen(task["run_when"])
            tasks.append(TaskDefinition(retry=RetryDefinition(**retry), **task))
        triggers = tuple(TriggerDefinition(**trigger) for trigger in record.pop("triggers"))
        return cls(tasks=tuple(tasks), triggers=triggers, **record)
