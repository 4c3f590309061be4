"""The models of a document: what a workflow, a task and their parts may have, field by field."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from infinity_matrix_actors.definition import (
    ATTEMPT_LIMIT_S,
    CALLBACK_TIMEOUT_S,
    GRACE_S,
    MAX_ITERATIONS,
    MAX_PARALLEL,
    Backoff,
    ClosePolicy,
    CompensateWhen,
    OnDeadline,
    OnReject,
    RunWhen,
)
from infinity_matrix_actors.document_field import (
    AgentName,
    Document,
    Event,
    Instant,
    Name,
    Number,
    PlainMap,
    Schema,
    Seconds,
    SecondsOrZero,
    Share,
    Text,
    listed,
    listed_text,
)
from infinity_matrix_actors.fact import Priority
from infinity_matrix_actors.schedule import CATCH_UP_S, Overlap

#: An execution's facts are folded in one process, and its ancestors take a bit for every pair: 12 MB at this size.
TASKS_MAX = 10_000
TRIGGERS_MAX = 100
SCHEDULES_MAX = 100
ATTEMPTS_MAX = 10_000
MULTIPLIER_MAX = 1_000.0
ERROR_TYPES_MAX = 100
VERSION_LENGTH_MAX = 64
#: Maps within maps.
MAP_DEPTH_MAX = 3
PARALLEL_MAX = 10_000
ITERATIONS_MAX = 10_000
ASSIGNEES_MAX = 100
RECIPIENTS_MAX = 100
RUNNING_MAX = 100_000


class ActionKind(StrEnum):
    """What can be done about a failure; `ask` is the process that holds the workflow."""

    RETRY = "retry"
    SKIP = "skip"
    FAIL = "fail"
    COMPENSATE = "compensate"
    NOTIFY = "notify"
    ASK = "ask"


class RetryDocument(Document):
    """How often a task is tried, and how long it waits between two attempts."""

    max_attempts: int = Field(default=1, ge=1, le=ATTEMPTS_MAX, description="Counts the first attempt.")
    backoff: Backoff = Field(default=Backoff.EXPONENTIAL, strict=False)
    initial_delay: SecondsOrZero = 1.0
    multiplier: Number = Field(default=2.0, ge=1, le=MULTIPLIER_MAX, description="Of the exponential backoff.")
    max_delay: SecondsOrZero = 300.0
    jitter: Number = Field(default=0.2, ge=0, le=1, description="The part of a delay that is left to chance, 0 to 1.")
    non_retryable: Annotated[list[Text], BeforeValidator(listed)] = Field(
        default=[], max_length=ERROR_TYPES_MAX, description="Types of errors that are final."
    )


class LoopDocument(Document):
    """A task that runs again and again."""

    until: Text = Field(description="CEL over the task's last `result`, such as: result.done")
    max_iterations: int = Field(default=MAX_ITERATIONS, ge=1, le=ITERATIONS_MAX)


class ApprovalDocument(Document):
    """A decision of people's."""

    assignees: Annotated[list[Text], BeforeValidator(listed_text)] = Field(default=[], max_length=ASSIGNEES_MAX)
    deadline: Seconds | None = Field(default=None, description="How long the decision is waited for.")
    on_deadline: OnDeadline = Field(default=OnDeadline.REJECT, strict=False)
    escalate_to: Annotated[list[Text], BeforeValidator(listed_text)] = Field(
        default=[], max_length=ASSIGNEES_MAX, description="With on_deadline escalate: who decides then."
    )
    on_reject: OnReject = Field(
        default=OnReject.FAIL, strict=False, description="A rejection fails the task, or is its result."
    )


#: Who does a task: an agent, another workflow, or nobody, because it waits.
KINDS_OF_TASK = ("agent", "wait_for", "sleep", "until", "approval", "workflow")


class TaskDocument(Document):
    """A task: what to do, by which agent, after which other tasks."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [kind]} for kind in KINDS_OF_TASK]})

    id: Name
    agent: AgentName | None = Field(
        default=None, description="The name of the agent that does it, or service: and a subject that answers requests."
    )
    workflow: Name | None = Field(default=None, description="Instead of an agent: the workflow to run as this task.")
    input: Any = Field(
        default=None,
        description="With workflow: its input, plain data with ${{ }} in it, or one CEL expression as text.",
    )
    close_policy: ClosePolicy = Field(
        default=ClosePolicy.CANCEL,
        strict=False,
        description="With workflow: what becomes of it when this execution ends before it.",
    )
    approval: ApprovalDocument | None = Field(default=None, description="Instead of an agent: people decide.")
    for_each: Annotated[list[Text], BeforeValidator(listed_text)] = Field(
        default=[],
        max_length=MAP_DEPTH_MAX,
        description="CEL for a list, such as extract.result.items: one instance of the task for each item. "
        "Every expression beyond the first is over the `item` before and makes a map in the map.",
    )
    max_parallel: int = Field(default=MAX_PARALLEL, ge=1, le=PARALLEL_MAX, description="Instances at work at once.")
    tolerate_failures: Share = Field(default=0, description="With for_each: failed instances that do not fail it.")
    loop: LoopDocument | None = None
    wait_for: Name | None = Field(
        default=None, description="Instead of an agent: wait for this signal; its data is the result."
    )
    sleep: Seconds | None = Field(default=None, description="Instead of an agent: wait for so long.")
    until: Instant | None = Field(default=None, description="Instead of an agent: wait until this time, with its zone.")
    on_timeout: Any = Field(
        default=None, description="With wait_for: the result when timeout passes; without it the task fails."
    )
    depends_on: Annotated[list[Name], BeforeValidator(listed)] = Field(
        default=[], description="The ids of its upstream tasks."
    )
    config: PlainMap = Field(
        default={},
        description="Given to the agent; texts may hold ${{ }}, CEL over the tasks upstream and `input`.",
    )
    config_schema: Schema | None = Field(default=None, description="What `config` must be, once it is filled in.")
    result_schema: Schema | None = Field(default=None, description="What the agent's result must be.")
    condition: Text | None = Field(
        default=None, description="CEL over the tasks upstream and `input`, such as: extract.result.rows > 0"
    )
    run_when: RunWhen = Field(
        default=RunWhen.DEFAULT,
        strict=False,
        description="What its upstream tasks must have come to; else it is skipped.",
    )
    retry_config: RetryDocument = RetryDocument()
    timeout: Seconds | None = Field(default=None, description="Of one attempt, from when it was taken.")
    queue_timeout: Seconds | None = Field(default=None, description="How long an attempt may wait to be taken.")
    heartbeat_timeout: Seconds | None = Field(
        default=None, description="How long a running agent may go without a sign of progress."
    )
    total_timeout: Seconds = Field(default=ATTEMPT_LIMIT_S, description="Of all attempts together.")
    compensation: "TaskDocument | None" = Field(
        default=None, description="The task that undoes this one when the execution fails or is cancelled."
    )
    compensates: Name | None = Field(default=None, description="In on_failure: the id of the task it undoes.")
    compensate_when: CompensateWhen = Field(
        default=CompensateWhen.DEFAULT,
        strict=False,
        description="Undo a task that completed or of which it is unknown (default), only one that completed, "
        "or any that was attempted.",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_kind(cls, value: Any) -> Any:
        # A field that is unknown is told first: it may be a slip of the one that is missing.
        if (
            isinstance(value, Mapping)
            and value.keys() <= cls.model_fields.keys()
            and not any(value.get(kind) is not None for kind in KINDS_OF_TASK)
        ):
            hint = "who does it; or wait_for, approval, sleep or until, for a task that waits, or workflow"
            context = {"problem": "the field 'agent' is missing", "hint": hint, "deeper": ""}
            raise PydanticCustomError("invalid_definition", "{problem}", context)
        return value


#: What an action has beside its name.
ACTION_FIELDS = {
    ActionKind.RETRY: ("max_attempts", "delay"),
    ActionKind.NOTIFY: ("recipients", "title", "message"),
}


class ActionDocument(Document):
    """One thing to do about a failure."""

    action: ActionKind = Field(strict=False)
    max_attempts: int | None = Field(default=None, ge=1, le=ATTEMPTS_MAX, description="Of retry: counts all attempts.")
    delay: SecondsOrZero | None = Field(default=None, description="Of retry: seconds before the next attempt.")
    recipients: Annotated[list[Text], BeforeValidator(listed_text)] = Field(default=[], max_length=RECIPIENTS_MAX)
    title: Text | None = None
    message: Text | None = None

    @model_validator(mode="after")
    def _has_what_belongs_to_it(self) -> "ActionDocument":
        for field in sorted(self.model_fields_set - {"action", *ACTION_FIELDS.get(self.action, ())}):
            context = {"problem": f"{field} has no meaning here", "hint": f"remove {field}", "deeper": f".{field}"}
            raise PydanticCustomError("invalid_definition", "{problem}", context)
        if self.action is ActionKind.NOTIFY and not self.recipients:
            hint = "recipients: addresses, or URLs that Apprise knows"
            context = {"problem": "notify tells nobody", "hint": hint, "deeper": ".recipients"}
            raise PydanticCustomError("invalid_definition", "{problem}", context)
        return self


def _as_policy(value: Any) -> Any:
    """One action is as good as a list of one; `{"ask": true}` asks the process that holds the workflow."""
    if isinstance(value, dict):
        value = [value]
    return [{"action": "ask"} if one == {"ask": True} else one for one in value] if isinstance(value, list) else value


Policy = Annotated[list[ActionDocument] | None, BeforeValidator(_as_policy)]


class TriggerDocument(Document):
    """Events that start an execution, with the event's data as its input."""

    event: Event
    filter: Text | None = Field(default=None, description="CEL over `event`, such as: event.total > 100")


class ScheduleDocument(Document):
    """When an execution starts by itself. Stored, or replaced, whenever the workflow is deployed."""

    name: Name | None = Field(default=None, description="The workflow's own unless it has several.")
    cron: Text | None = Field(default=None, description="Five fields, or an alias such as @daily.")
    run_at: Text | None = Field(default=None, description="Instead of cron: once, such as 2026-12-24T18:00:00.")
    timezone: Text = Field(default="UTC", description="In which cron and times without a zone are meant.")
    overlap: Overlap = Field(
        default=Overlap.SKIP, strict=False, description="What becomes of a tick while an earlier execution is open."
    )
    catch_up: Seconds = Field(default=CATCH_UP_S, description="How far back missed ticks are made up.")
    jitter: SecondsOrZero = Field(default=0.0, description="Starts are spread over so long.")
    start: Text | None = None
    end: Text | None = None
    limit: int | None = Field(default=None, ge=1, description="Executions in all.")
    input: Any = Field(default=None, description="Of every execution.")
    priority: Priority = Field(default=Priority.NORMAL, strict=False, description="Of every execution.")


class WorkflowDocument(Document):
    """A workflow: a graph of tasks, and what starts it."""

    name: Name
    version: Text = Field(default="1", min_length=1, max_length=VERSION_LENGTH_MAX)
    description: Text = ""
    timeout: Seconds | None = Field(default=None, description="Of a whole execution.")
    grace: SecondsOrZero = Field(
        default=GRACE_S, description="How long running tasks may go on when an execution is to end."
    )
    tasks: Annotated[list[TaskDocument], BeforeValidator(listed)] = Field(default=[], max_length=TASKS_MAX)
    triggers: Annotated[list[TriggerDocument], BeforeValidator(listed)] = Field(default=[], max_length=TRIGGERS_MAX)
    schedules: Annotated[list[ScheduleDocument], BeforeValidator(listed)] = Field(default=[], max_length=SCHEDULES_MAX)
    on_failure: Annotated[list[TaskDocument], BeforeValidator(listed)] = Field(
        default=[],
        max_length=TASKS_MAX,
        description="What runs when an execution fails or is cancelled: compensations, then the others in this order.",
    )
    input_schema: Schema | None = Field(default=None, description="What an execution's input must be.")
    on_error: Policy = Field(default=None, description="What to do when an execution fails.")
    on_task_failure: Policy = Field(default=None, description="What to do when a task has spent its retries.")
    callback_timeout: Seconds = Field(
        default=CALLBACK_TIMEOUT_S, description="How long the answer of a function is waited for."
    )
    max_running: int | None = Field(default=None, ge=1, le=RUNNING_MAX, description="Executions at a time; more wait.")
    key: Text | None = Field(
        default=None, description="With max_running: CEL over `input`; the limit is for each of its values."
    )
