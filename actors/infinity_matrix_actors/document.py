"""The door to definitions: what users write, in Python, YAML or JSON, and how it becomes a `WorkflowDefinition`.

A document is checked twice: its shape as soon as a part of it is made (`parse_task` and its siblings), its meaning as
a whole by `define`. Behind the door nothing is checked again. Every failure is an `InvalidDefinition` that says where.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from infinity_matrix_actors.condition import compile_conditions, compile_filter
from infinity_matrix_actors.definition import (
    ATTEMPT_LIMIT_S,
    GRACE_S,
    Backoff,
    CompensateWhen,
    RetryDefinition,
    RunWhen,
    TaskDefinition,
    TriggerDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.document_problem import explain
from infinity_matrix_actors.duration import DURATION_MAX_S, DURATION_PATTERN, parse_duration, parse_instant
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.graph import find_cycle
from infinity_matrix_actors.names import check_name
from infinity_matrix_actors.plain import plain, plain_text
from infinity_matrix_actors.suggestion import did_you_mean

#: An execution's facts are folded in one process, and its ancestors take a bit for every pair: 12 MB at this size.
TASKS_MAX = 10_000
TRIGGERS_MAX = 100
ATTEMPTS_MAX = 10_000
MULTIPLIER_MAX = 1_000.0
ERROR_TYPES_MAX = 100
VERSION_LENGTH_MAX = 64
#: With the prefix before it an event's subject stays within the 512 bytes of a subject.
EVENT_LENGTH_MAX = 256
#: Of the canonical form. Stored compressed, some twentieth of this, it is still one message.
DEFINITION_BYTES_MAX = 8 * 1024 * 1024

_NAME_PATTERN = "(?!im-)[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_TOKEN_PATTERN = rf"({_NAME_PATTERN}|\*)"


def _checked(check: Callable[[Any, str], Any]) -> Callable[[Any, ValidationInfo], Any]:
    """Answers `check(value, field name)` as a validator that pydantic can give a place to."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        field = info.field_name or "value"
        try:
            return check(value, field)
        except InvalidDefinition as problem:
            deeper = problem.where.removeprefix(field)
            context = {"problem": problem.problem, "hint": problem.hint, "deeper": deeper}
            raise PydanticCustomError("invalid_definition", "{problem}", context) from problem

    return validate


def _check_event(event: str, field: str) -> str:
    if len(event) > EVENT_LENGTH_MAX:
        raise InvalidDefinition(f"an event has at most {EVENT_LENGTH_MAX} characters", where=field)
    tokens = event.split(".")
    for number, token in enumerate(tokens):
        if token == ">" and number < len(tokens) - 1:
            raise InvalidDefinition(
                f"in the event {event!r} something follows '>'", where=field, hint="'>' is the last"
            )
        if token not in ("*", ">"):
            check_name(f"in the event {event!r} the token", token)
    return event


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_KINDS = {"name": "the workflow name", "id": "the task id", "agent": "the agent name", "depends_on": "the task id"}
_DURATION_TEXT = {"type": "string", "pattern": DURATION_PATTERN}


def _duration_schema(bound: str) -> WithJsonSchema:
    number = {"type": "number", bound: 0, "maximum": DURATION_MAX_S}
    return WithJsonSchema(
        {"anyOf": [number, _DURATION_TEXT], "description": "Seconds, or text such as 90s, 5m, 1h30m."}
    )


Name = Annotated[
    str,
    AfterValidator(_checked(lambda value, field: check_name(_KINDS.get(field, field), value))),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME_PATTERN}$"}),
]
Text = Annotated[str, AfterValidator(_checked(plain_text))]
Seconds = Annotated[float, BeforeValidator(_checked(parse_duration)), _duration_schema("exclusiveMinimum")]
SecondsOrZero = Annotated[
    float,
    BeforeValidator(_checked(lambda value, field: parse_duration(value, field, zero_allowed=True))),
    _duration_schema("minimum"),
]
Event = Annotated[
    str,
    AfterValidator(_checked(_check_event)),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": EVENT_LENGTH_MAX,
            "pattern": rf"^({_TOKEN_PATTERN}(\.{_TOKEN_PATTERN})*(\.>)?|>)$",
            "description": "Dotted tokens; '*' stands for one token, '>' at the end for all that follow.",
        }
    ),
]
Instant = Annotated[
    float,
    BeforeValidator(_checked(lambda value, field: parse_instant(value, field))),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "Such as 2026-12-24T18:00:00+01:00."}),
]
PlainMap = Annotated[dict[str, Any], BeforeValidator(_checked(lambda value, field: plain(value, field)))]
# -0.0 would have another canonical form than 0.
Number = Annotated[float, AfterValidator(lambda value: value + 0.0)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RetryDocument(_Document):
    """How often a task is tried, and how long it waits between two attempts."""

    max_attempts: int = Field(default=1, ge=1, le=ATTEMPTS_MAX, description="Counts the first attempt.")
    backoff: Backoff = Field(default=Backoff.EXPONENTIAL, strict=False)
    initial_delay: SecondsOrZero = 1.0
    multiplier: Number = Field(default=2.0, ge=1, le=MULTIPLIER_MAX, description="Of the exponential backoff.")
    max_delay: SecondsOrZero = 300.0
    jitter: Number = Field(default=0.2, ge=0, le=1, description="The part of a delay that is left to chance, 0 to 1.")
    non_retryable: Annotated[list[Text], BeforeValidator(_listed)] = Field(
        default=[], max_length=ERROR_TYPES_MAX, description="Types of errors that are final."
    )


#: Who does a task: an agent, or nobody, because it waits.
_KINDS_OF_TASK = ("agent", "wait_for", "sleep", "until")


class TaskDocument(_Document):
    """A task: what to do, by which agent, after which other tasks."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [kind]} for kind in _KINDS_OF_TASK]})

    id: Name
    agent: Name | None = Field(default=None, description="The name of the agent that does it.")
    wait_for: Name | None = Field(
        default=None, description="Instead of an agent: wait for this signal; its data is the result."
    )
    sleep: Seconds | None = Field(default=None, description="Instead of an agent: wait for so long.")
    until: Instant | None = Field(default=None, description="Instead of an agent: wait until this time, with its zone.")
    on_timeout: Any = Field(
        default=None, description="With wait_for: the result when timeout passes; without it the task fails."
    )
    depends_on: Annotated[list[Name], BeforeValidator(_listed)] = Field(
        default=[], description="The ids of its upstream tasks."
    )
    config: PlainMap = Field(default={}, description="Given to the agent as it is.")
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
            and not any(value.get(kind) is not None for kind in _KINDS_OF_TASK)
        ):
            hint = "who does it; or wait_for, sleep or until, for a task that waits"
            context = {"problem": "the field 'agent' is missing", "hint": hint, "deeper": ""}
            raise PydanticCustomError("invalid_definition", "{problem}", context)
        return value


class TriggerDocument(_Document):
    """Events that start an execution, with the event's data as its input."""

    event: Event
    filter: Text | None = Field(default=None, description="CEL over `event`, such as: event.total > 100")


class WorkflowDocument(_Document):
    """A workflow: a graph of tasks, and what starts it."""

    name: Name
    version: Text = Field(default="1", min_length=1, max_length=VERSION_LENGTH_MAX)
    description: Text = ""
    timeout: Seconds | None = Field(default=None, description="Of a whole execution.")
    grace: SecondsOrZero = Field(
        default=GRACE_S, description="How long running tasks may go on when an execution is to end."
    )
    tasks: Annotated[list[TaskDocument], BeforeValidator(_listed)] = Field(default=[], max_length=TASKS_MAX)
    triggers: Annotated[list[TriggerDocument], BeforeValidator(_listed)] = Field(default=[], max_length=TRIGGERS_MAX)
    on_failure: Annotated[list[TaskDocument], BeforeValidator(_listed)] = Field(
        default=[],
        max_length=TASKS_MAX,
        description="What runs when an execution fails or is cancelled: compensations, then the others in this order.",
    )


_Model = TypeVar("_Model", bound=_Document)


def _parse(model: type[_Model], value: object, what: str) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explain(error, model, value, what) from None


def parse_document(value: Mapping[str, Any]) -> WorkflowDocument:
    """Answers the document that `value` is; raises `InvalidDefinition` for what has the wrong shape.

    Tasks and triggers may be mappings or documents already.
    """
    return _parse(WorkflowDocument, value, "a workflow")


def parse_task(**fields: Any) -> TaskDocument:
    """Answers the task with these fields; raises `InvalidDefinition` for what has the wrong shape."""
    return _parse(TaskDocument, fields, "a task")


def parse_trigger(**fields: Any) -> TriggerDocument:
    """Answers the trigger with these fields; raises `InvalidDefinition` for what has the wrong shape."""
    return _parse(TriggerDocument, fields, "a trigger")


def define(document: WorkflowDocument) -> WorkflowDefinition:
    """Answers the definition a document stands for; raises `InvalidDefinition` for one that cannot run."""
    if not document.tasks:
        raise InvalidDefinition("it has no task", where=f"workflow {document.name!r}", hint="add at least one")
    _check_graph(document.tasks)
    definition = WorkflowDefinition(
        name=document.name,
        tasks=tuple(
            _define_task(task.model_copy(update={"compensate_when": CompensateWhen.DEFAULT})) for task in document.tasks
        ),
        version=document.version,
        description=document.description,
        timeout=document.timeout,
        grace=document.grace,
        triggers=tuple(TriggerDefinition(trigger.event, trigger.filter) for trigger in document.triggers),
        on_failure=_define_on_failure(document),
    )
    compile_conditions(definition)
    for number, trigger in enumerate(document.triggers):
        if trigger in document.triggers[:number]:
            raise InvalidDefinition("the same trigger is there twice", where=f"triggers[{number}]", hint="remove one")
        if trigger.filter is not None:
            compile_filter(trigger.filter, where=f"triggers[{number}].filter")
    size_bytes = len(definition.canonical())
    if size_bytes > DEFINITION_BYTES_MAX:
        raise InvalidDefinition(
            f"its canonical form is {size_bytes} bytes, the limit is {DEFINITION_BYTES_MAX}",
            where=f"workflow {document.name!r}",
            hint="store large configuration elsewhere and pass a reference",
        )
    return definition


def _check_graph(tasks: list[TaskDocument]) -> None:
    upstream: dict[str, list[str]] = {}
    for number, task in enumerate(tasks):
        if task.compensates is not None:
            raise InvalidDefinition(
                "compensates belongs to a task of on_failure", where=f"task {task.id!r}", hint="move it to on_failure"
            )
        if task.id in upstream:
            raise InvalidDefinition(f"there are two tasks {task.id!r}", where=f"tasks[{number}].id", hint="rename one")
        upstream[task.id] = task.depends_on
    for task in tasks:
        where = f"task {task.id!r}"
        if len(set(task.depends_on)) < len(task.depends_on):
            twice = next(one for one in task.depends_on if task.depends_on.count(one) > 1)
            raise InvalidDefinition(f"depends_on names {twice!r} twice", where=where, hint="remove one")
        for above in task.depends_on:
            if above == task.id:
                raise InvalidDefinition("it depends on itself", where=where, hint="remove it from depends_on")
            if above not in upstream:
                hint = did_you_mean(above, upstream.keys() - {task.id})
                raise InvalidDefinition(f"depends_on names an unknown task {above!r}", where=where, hint=hint)
    if cycle := find_cycle(upstream):
        raise InvalidDefinition(
            f"the tasks depend on each other in a cycle: {' -> '.join(cycle)}",
            where=f"task {cycle[0]!r}",
            hint="remove one of these from depends_on",
        )


def _define_on_failure(document: WorkflowDocument) -> tuple[TaskDefinition, ...]:
    """The undoing tasks in one list: a task's own `compensation` is one that names it in `compensates`."""
    undoing = [
        task.compensation.model_copy(
            update={"compensates": task.id, "compensate_when": _chosen(task.compensation, task)}
        )
        for task in document.tasks
        if task.compensation is not None
    ]
    undoing += document.on_failure
    forward = {task.id for task in document.tasks}
    ids = set(forward)
    undone: set[str] = set()
    for task in undoing:
        where = f"on_failure task {task.id!r}"
        if task.id in ids:
            raise InvalidDefinition(f"there are two tasks {task.id!r}", where=where, hint="rename one")
        ids.add(task.id)
        for field, is_there in (
            ("depends_on", bool(task.depends_on)),
            ("condition", task.condition is not None),
            ("run_when", task.run_when is not RunWhen.DEFAULT),
            ("compensation", task.compensation is not None),
            ("waiting", task.agent is None),
        ):
            if is_there:
                raise InvalidDefinition(f"{field} has no meaning here", where=where, hint=f"remove {field}")
        if task.compensates is None:
            continue
        if task.compensates not in forward:
            hint = did_you_mean(task.compensates, forward)
            raise InvalidDefinition(f"compensates names an unknown task {task.compensates!r}", where=where, hint=hint)
        if task.compensates in undone:
            raise InvalidDefinition(
                f"the task {task.compensates!r} is compensated twice", where=where, hint="remove one"
            )
        undone.add(task.compensates)
    return tuple(_define_task(task) for task in undoing)


def _chosen(compensation: TaskDocument, forward: TaskDocument) -> CompensateWhen:
    """Where the choice was made: on the compensation, else on the task it belongs to."""
    chosen = compensation.compensate_when
    return forward.compensate_when if chosen is CompensateWhen.DEFAULT else chosen


def _check_kind(task: TaskDocument, where: str) -> None:
    kinds = {"agent": task.agent, "wait_for": task.wait_for, "sleep": task.sleep, "until": task.until}
    given = [kind for kind, value in kinds.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise InvalidDefinition(
            f"it needs one of agent, wait_for, sleep and until, and has {found}", where=where, hint="say who does it"
        )
    if "on_timeout" in task.model_fields_set and (task.wait_for is None or task.timeout is None):
        raise InvalidDefinition(
            "on_timeout has no meaning here", where=where, hint="it belongs to wait_for with a timeout"
        )
    if task.agent is not None:
        return
    for field, is_there in (
        ("retry_config", task.retry_config != RetryDocument()),
        ("queue_timeout", task.queue_timeout is not None),
        ("compensation", task.compensation is not None),
        ("timeout", task.timeout is not None and task.wait_for is None),
    ):
        if is_there:
            raise InvalidDefinition(
                f"{field} has no meaning for a task that waits", where=where, hint=f"remove {field}"
            )


def _define_task(task: TaskDocument) -> TaskDefinition:
    retry = task.retry_config
    where = f"task {task.id!r}"
    if retry.initial_delay > retry.max_delay:
        raise InvalidDefinition(
            f"retry_config: initial_delay {retry.initial_delay:g} s is above max_delay {retry.max_delay:g} s",
            where=where,
            hint="raise max_delay",
        )
    for field, limit_s in (("timeout", task.timeout), ("queue_timeout", task.queue_timeout)):
        if limit_s is not None and limit_s > task.total_timeout:
            raise InvalidDefinition(
                f"{field} {limit_s:g} s is above total_timeout {task.total_timeout:g} s",
                where=where,
                hint="raise total_timeout, the limit of all attempts together (a day unless set)",
            )
    _check_kind(task, where)
    on_timeout = None
    if "on_timeout" in task.model_fields_set:
        on_timeout = {"result": plain(task.on_timeout, f"{where}, on_timeout")}
    return TaskDefinition(
        id=task.id,
        agent=task.agent or "",
        wait_for=task.wait_for,
        sleep=task.sleep,
        until=task.until,
        on_timeout=on_timeout,
        depends_on=tuple(task.depends_on),
        config=task.config,
        condition=task.condition,
        run_when=task.run_when,
        retry=RetryDefinition(
            max_attempts=retry.max_attempts,
            backoff=retry.backoff,
            initial_delay=retry.initial_delay,
            multiplier=retry.multiplier,
            max_delay=retry.max_delay,
            jitter=retry.jitter,
            non_retryable=tuple(retry.non_retryable),
        ),
        timeout=task.timeout,
        queue_timeout=task.queue_timeout,
        total_timeout=task.total_timeout,
        compensates=task.compensates,
        compensate_when=task.compensate_when,
    )


def json_schema() -> dict[str, Any]:
    """Answers the JSON Schema (2020-12) of a workflow document; docs/reference has it as a file."""
    schema = WorkflowDocument.model_json_schema()
    # At least one task, as `define` demands; the model itself also serves a workflow that is still being put together.
    schema["properties"]["tasks"]["minItems"] = 1
    schema["required"] = ["name", "tasks"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Infinity Matrix workflow"}
