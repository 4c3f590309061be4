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
#: How long a callback's answer is waited for; then the default applies.
CALLBACK_TIMEOUT_S = 30.0
#: Instances of a map at work at once, unless it says otherwise.
MAX_PARALLEL = 100
MAX_ITERATIONS = 100


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


class ClosePolicy(StrEnum):
    """What becomes of a child when its parent ends before it."""

    CANCEL = "cancel"
    ABANDON = "abandon"


class OnDeadline(StrEnum):
    """What an approval comes to that nobody decided in time."""

    APPROVE = "approve"
    REJECT = "reject"
    ESCALATE = "escalate"


class OnReject(StrEnum):
    """Whether a rejection fails the task, or is a result like any other."""

    FAIL = "fail"
    COMPLETE = "complete"


#: The reserved agents: names that no user's agent can have.
CHILD_AGENT = "im-workflow"
BRIDGE_AGENT = "im-bridge"
NOTIFY_AGENT = "im-notify"
#: What `on_error` and `on_task_failure` hold when a function of the user's answers: ask the host.
ASK_ACTION = "ask"


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """One instance of the task an item of a list; `items` are CEL, each beyond the first over the item before."""

    items: tuple[str, ...]
    max_parallel: int = MAX_PARALLEL
    #: Failed instances that do not fail the task: so many, or this share of all in percent, whichever is more.
    tolerated: int = 0
    tolerated_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class LoopDefinition:
    """The task again and again, until CEL over its last `result` holds."""

    until: str
    max_iterations: int = MAX_ITERATIONS


@dataclass(frozen=True, slots=True)
class ChildDefinition:
    """Another workflow, run as a task. `input` is plain data with templates in it."""

    workflow: str
    input: Any = None
    close: ClosePolicy = ClosePolicy.CANCEL


@dataclass(frozen=True, slots=True)
class ApprovalDefinition:
    """A decision of people's. `deadline` is in seconds from when it was asked for."""

    assignees: tuple[str, ...] = ()
    deadline: float | None = None
    on_deadline: OnDeadline = OnDeadline.REJECT
    escalate_to: tuple[str, ...] = ()
    on_reject: OnReject = OnReject.FAIL


@dataclass(frozen=True, slots=True)
class SlotsDefinition:
    """At most `max_running` executions at a time for each answer to `key`, CEL over `input` (None: for all)."""

    max_running: int
    key: str | None = None


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
    approval: ApprovalDefinition | None = None
    child: ChildDefinition | None = None
    map: MapDefinition | None = None
    loop: LoopDefinition | None = None
    #: The subject that answers requests and is called in an agent's place.
    service: str | None = None
    #: JSON Schemas, of the config as the agent gets it and of the result.
    config_schema: dict[str, Any] | None = None
    result_schema: dict[str, Any] | None = None
    #: How long an agent may go without a sign of life, in seconds.
    heartbeat_timeout: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether no agent does it: its outcome is a signal, a decision, or a time that has come."""
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
    input_schema: dict[str, Any] | None = None
    #: What to do about a failure: actions, or to ask the host. None: nothing but what is always done.
    on_error: tuple[dict[str, Any], ...] | None = None
    on_task_failure: tuple[dict[str, Any], ...] | None = None
    callback_timeout: float = CALLBACK_TIMEOUT_S
    slots: SlotsDefinition | None = None
    #: What `schedule.new_schedule` takes: stored when the workflow is deployed.
    schedules: tuple[dict[str, Any], ...] = ()

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
        for policy in ("on_error", "on_task_failure"):
            if record.get(policy) is not None:
                record[policy] = tuple(record[policy])
        if record.get("slots") is not None:
            record["slots"] = SlotsDefinition(**record["slots"])
        record["schedules"] = tuple(record.get("schedules", ()))
        return cls(tasks=tasks, on_failure=on_failure, triggers=triggers, **record)

    @property
    def asks_host(self) -> bool:
        """Whether a function of the user's is asked about failures."""
        policies = (*(self.on_error or ()), *(self.on_task_failure or ()))
        return any(action.get("action") == ASK_ACTION for action in policies)


def host_agent(digest: str) -> str:
    """The agent that answers for the workflow object of this definition hash."""
    return f"im-host-{digest[:16]}"


def _task(record: dict[str, Any]) -> TaskDefinition:
    retry = record.pop("retry")
    retry["non_retryable"] = tuple(retry["non_retryable"])
    retry["backoff"] = Backoff(retry["backoff"])
    record["depends_on"] = tuple(record["depends_on"])
    record["run_when"] = RunWhen(record["run_when"])
    record["compensate_when"] = CompensateWhen(record["compensate_when"])
    if (items := record.get("map")) is not None:
        record["map"] = MapDefinition(**{**items, "items": tuple(items["items"])})
    if (loop := record.get("loop")) is not None:
        record["loop"] = LoopDefinition(**loop)
    if (child := record.get("child")) is not None:
        record["child"] = ChildDefinition(**{**child, "close": ClosePolicy(child["close"])})
    if (approval := record.get("approval")) is not None:
        record["approval"] = ApprovalDefinition(
            tuple(approval["assignees"]),
            approval["deadline"],
            OnDeadline(approval["on_deadline"]),
            tuple(approval["escalate_to"]),
            OnReject(approval["on_reject"]),
        )
    return TaskDefinition(retry=RetryDefinition(**retry), **record)
