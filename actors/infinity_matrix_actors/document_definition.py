"""From a document to a definition: what it means as a whole is checked here, and never again."""

from typing import Any

from infinity_matrix_actors.condition import compile_conditions, compile_filter
from infinity_matrix_actors.definition import (
    BRIDGE_AGENT,
    CHILD_AGENT,
    MAX_PARALLEL,
    ApprovalDefinition,
    ChildDefinition,
    ClosePolicy,
    CompensateWhen,
    LoopDefinition,
    MapDefinition,
    OnDeadline,
    RetryDefinition,
    RunWhen,
    SlotsDefinition,
    TaskDefinition,
    TriggerDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.document_field import SERVICE_SCHEME
from infinity_matrix_actors.document_model import (
    KINDS_OF_TASK,
    ActionDocument,
    ApprovalDocument,
    RetryDocument,
    TaskDocument,
    WorkflowDocument,
)
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.formula import OPEN
from infinity_matrix_actors.graph import find_cycle
from infinity_matrix_actors.plain import plain
from infinity_matrix_actors.plan import compile_formulas
from infinity_matrix_actors.schedule import new_schedule
from infinity_matrix_actors.schema import problem_of
from infinity_matrix_actors.suggestion import did_you_mean

#: Of the canonical form. Stored compressed, some twentieth of this, it is still one message.
DEFINITION_BYTES_MAX = 16 * 1024 * 1024


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
        input_schema=document.input_schema,
        on_error=_policy(document.on_error),
        on_task_failure=_policy(document.on_task_failure),
        callback_timeout=document.callback_timeout,
        slots=_slots(document),
        schedules=_schedules(document),
    )
    for number, trigger in enumerate(document.triggers):
        if trigger in document.triggers[:number]:
            raise InvalidDefinition("the same trigger is there twice", where=f"triggers[{number}]", hint="remove one")
        if trigger.filter is not None:
            compile_filter(trigger.filter, where=f"triggers[{number}].filter")
    return checked(definition)


def checked(definition: WorkflowDefinition) -> WorkflowDefinition:
    """Answers a definition whose configs may have been changed since it was defined; raises `InvalidDefinition`."""
    compile_conditions(definition)
    compile_formulas(definition)
    for task in (*definition.tasks, *definition.on_failure):
        if task.config_schema is not None and OPEN not in repr(task.config):
            problem = problem_of(task.config_schema, task.config)
            if problem is not None:
                where = f"task {task.id!r}"
                raise InvalidDefinition(f"config is not as config_schema says: {problem}", where=where)
    size_bytes = len(definition.canonical())
    if size_bytes > DEFINITION_BYTES_MAX:
        raise InvalidDefinition(
            f"its canonical form is {size_bytes} bytes, the limit is {DEFINITION_BYTES_MAX}",
            where=f"workflow {definition.name!r}",
            hint="store large configuration elsewhere and pass a reference",
        )
    return definition


def _policy(actions: list[ActionDocument] | None) -> tuple[dict[str, Any], ...] | None:
    if actions is None:
        return None
    return tuple(
        {
            "action": str(action.action),
            **action.model_dump(exclude={"action"}, exclude_none=True, exclude_defaults=True),
        }
        for action in actions
    )


def _schedules(document: WorkflowDocument) -> tuple[dict[str, Any], ...]:
    """The schedules as they were written, each with its name, once they are known to be possible."""
    found: dict[str, dict[str, Any]] = {}
    for number, schedule in enumerate(document.schedules):
        where = f"schedules[{number}]"
        fields = schedule.model_dump(exclude={"name"}, exclude_defaults=True)
        if "overlap" in fields:
            fields["overlap"] = str(schedule.overlap)
        if "priority" in fields:
            fields["priority"] = str(schedule.priority)
        if "input" in fields:
            fields["input"] = plain(schedule.input, f"{where}, input")
        name = schedule.name or document.name
        if name in found:
            raise InvalidDefinition(f"there are two schedules {name!r}", where=where, hint="give each a name")
        new_schedule(name, document.name, **fields)
        found[name] = {"name": name, **fields}
    return tuple(found.values())


def _slots(document: WorkflowDocument) -> SlotsDefinition | None:
    if document.max_running is None:
        if document.key is not None:
            raise InvalidDefinition("key has no meaning here", where="key", hint="it belongs to max_running")
        return None
    return SlotsDefinition(document.max_running, document.key)


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
    forward = {task.id: task for task in document.tasks}
    undoing = [
        _undoing(task.compensation.model_copy(update={"compensates": task.id}), task, task.compensation.compensates)
        for task in document.tasks
        if task.compensation is not None
    ]
    for task in document.on_failure:
        compensated = forward.get(task.compensates or "")
        undoing.append(task if compensated is None else _undoing(task, compensated, task.compensates))
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
            ("waiting", task.agent is None and task.workflow is None),
            ("for_each", bool(task.for_each)),
            ("loop", task.loop is not None),
        ):
            if is_there:
                raise InvalidDefinition(f"{field} has no meaning here", where=where, hint=f"remove {field}")
        if task.compensates is None:
            continue
        if task.compensates not in forward:
            hint = did_you_mean(task.compensates, forward)
            raise InvalidDefinition(f"compensates names an unknown task {task.compensates!r}", where=where, hint=hint)
        _check_undoes(task, forward[task.compensates], where)
        if task.compensates in undone:
            raise InvalidDefinition(
                f"the task {task.compensates!r} is compensated twice", where=where, hint="remove one"
            )
        undone.add(task.compensates)
    for task in document.tasks:
        if task.compensate_when is not CompensateWhen.DEFAULT and task.id not in undone:
            where, hint = f"task {task.id!r}", "give it a compensation, or remove it"
            raise InvalidDefinition("compensate_when has no meaning here: nothing undoes it", where=where, hint=hint)
    return tuple(_define_task(task) for task in undoing)


def _undoing(compensation: TaskDocument, forward: TaskDocument, compensates: str | None) -> TaskDocument:
    """The compensation with the choice of when, made on it or on the task it belongs to."""
    where = f"on_failure task {compensation.id!r}"
    if compensates not in (None, forward.id):
        hint = f"it belongs to {forward.id!r}; leave compensates out"
        problem = f"it is the compensation of one task and compensates {compensates!r}"
        raise InvalidDefinition(problem, where=where, hint=hint)
    own, others = compensation.compensate_when, forward.compensate_when
    if CompensateWhen.DEFAULT not in (own, others) and own is not others:
        problem = f"compensate_when is {str(own)!r}, and {str(others)!r} on the task {forward.id!r}"
        raise InvalidDefinition(problem, where=where, hint="say it once")
    return compensation.model_copy(update={"compensate_when": others if own is CompensateWhen.DEFAULT else own})


def _check_undoes(task: TaskDocument, forward: TaskDocument, where: str) -> None:
    if forward.agent is None and forward.workflow is None:
        problem = f"there is nothing to undo of {forward.id!r}, which only waits"
        raise InvalidDefinition(problem, where=where, hint="remove compensates: it runs after all compensations then")
    if task.workflow is not None and (forward.for_each or forward.loop is not None):
        problem = f"a workflow is not told which instance of {forward.id!r} it is to undo"
        raise InvalidDefinition(problem, where=where, hint="undo it by an agent, which may start the workflow")


def _check_kind(task: TaskDocument, where: str) -> None:
    given = [kind for kind in KINDS_OF_TASK if getattr(task, kind) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        all_kinds = f"{', '.join(KINDS_OF_TASK[:-1])} and {KINDS_OF_TASK[-1]}"
        raise InvalidDefinition(f"it needs one of {all_kinds}, and has {found}", where=where, hint="say who does it")
    if "on_timeout" in task.model_fields_set and (task.wait_for is None or task.timeout is None):
        raise InvalidDefinition(
            "on_timeout has no meaning here", where=where, hint="it belongs to wait_for with a timeout"
        )
    if task.workflow is None and (task.input is not None or task.close_policy is not ClosePolicy.CANCEL):
        field = "input" if task.input is not None else "close_policy"
        raise InvalidDefinition(f"{field} has no meaning here", where=where, hint="it belongs to workflow")
    if not task.for_each and (task.max_parallel != MAX_PARALLEL or task.tolerate_failures != 0):
        field = "max_parallel" if task.max_parallel != MAX_PARALLEL else "tolerate_failures"
        raise InvalidDefinition(f"{field} has no meaning here", where=where, hint="it belongs to for_each")
    for field, is_there, kinds in (
        ("retry_config", task.retry_config != RetryDocument(), ("agent", "workflow")),
        ("queue_timeout", task.queue_timeout is not None, ("agent",)),
        ("heartbeat_timeout", task.heartbeat_timeout is not None, ("agent",)),
        ("config_schema", task.config_schema is not None, ("agent",)),
        ("result_schema", task.result_schema is not None, ("agent", "workflow")),
        ("config", bool(task.config), ("agent", "wait_for", "sleep", "until", "approval")),
        ("loop", task.loop is not None, ("agent", "workflow", "approval", "wait_for", "sleep")),
        ("compensation", task.compensation is not None, ("agent", "workflow")),
        ("timeout", task.timeout is not None, ("agent", "workflow", "wait_for")),
    ):
        if is_there and given[0] not in kinds:
            raise InvalidDefinition(
                f"{field} has no meaning for a task with {given[0]}", where=where, hint=f"remove {field}"
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
    total_timeout = task.total_timeout
    if "total_timeout" not in task.model_fields_set:
        # Nobody said how long all attempts may take together: not less than one of them.
        total_timeout = max(total_timeout, (task.timeout or 0.0) + (task.queue_timeout or 0.0))
    for field, limit_s in (("timeout", task.timeout), ("queue_timeout", task.queue_timeout)):
        if limit_s is not None and limit_s > total_timeout:
            raise InvalidDefinition(
                f"{field} {limit_s:g} s is above total_timeout {total_timeout:g} s",
                where=where,
                hint="raise total_timeout, the limit of all attempts together (a day unless set)",
            )
    _check_kind(task, where)
    on_timeout = None
    if "on_timeout" in task.model_fields_set:
        on_timeout = {"result": plain(task.on_timeout, f"{where}, on_timeout")}
    agent, service = _agent(task)
    return TaskDefinition(
        id=task.id,
        agent=agent,
        service=service,
        child=None if task.workflow is None else ChildDefinition(task.workflow, _input(task, where), task.close_policy),
        approval=None if task.approval is None else _approval(task.approval, where),
        map=_map(task) if task.for_each else None,
        loop=None if task.loop is None else LoopDefinition(task.loop.until, task.loop.max_iterations),
        config_schema=task.config_schema,
        result_schema=task.result_schema,
        heartbeat_timeout=task.heartbeat_timeout,
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
        total_timeout=total_timeout,
        compensates=task.compensates,
        compensate_when=task.compensate_when,
    )


def _agent(task: TaskDocument) -> tuple[str, str | None]:
    """The agent that gets the work, and the subject it calls when it is only a bridge."""
    if task.workflow is not None:
        return CHILD_AGENT, None
    agent = task.agent or ""
    if agent.startswith(SERVICE_SCHEME):
        return BRIDGE_AGENT, agent.removeprefix(SERVICE_SCHEME)
    return agent, None


def _input(task: TaskDocument, where: str) -> Any:
    """The child's input as a template; a text without one is itself an expression."""
    if isinstance(task.input, str) and OPEN not in task.input:
        return f"{OPEN} {task.input} }}}}"
    return plain(task.input, f"{where}, input")


def _approval(approval: ApprovalDocument, where: str) -> ApprovalDefinition:
    if approval.on_deadline is OnDeadline.ESCALATE and not approval.escalate_to:
        raise InvalidDefinition("it escalates to nobody", where=f"{where}, approval", hint="give escalate_to")
    if approval.deadline is None and "on_deadline" in approval.model_fields_set:
        raise InvalidDefinition(
            "on_deadline has no meaning here", where=f"{where}, approval", hint="it belongs to a deadline"
        )
    return ApprovalDefinition(
        tuple(approval.assignees),
        approval.deadline,
        approval.on_deadline,
        tuple(approval.escalate_to),
        approval.on_reject,
    )


def _map(task: TaskDocument) -> MapDefinition:
    tolerated = task.tolerate_failures
    if isinstance(tolerated, int):
        return MapDefinition(tuple(task.for_each), task.max_parallel, tolerated)
    return MapDefinition(tuple(task.for_each), task.max_parallel, 0, float(tolerated.rstrip("%")))
