"""How a task begins: an attempt goes out, a wait begins, or its instances do; and what settles it. Pure.

A function that answers a bool says whether the task was settled by that; who called it makes that known to others.
"""

from typing import Any

from infinity_matrix_actors.definition import ClosePolicy, TaskDefinition
from infinity_matrix_actors.effect import (
    Arm,
    CancelChild,
    CloseAttempt,
    Effect,
    PublishStatus,
    PublishWork,
    StartChild,
    TellAgents,
)
from infinity_matrix_actors.errors import ConditionError
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_actors.formula import Formula, Template
from infinity_matrix_actors.group import ITEMS_MAX, Group
from infinity_matrix_actors.schema import problem_of
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.dead import bury
from infinity_matrix_coordinator.deadlines import QUIET_ASK_S, attempt_deadline
from infinity_matrix_coordinator.execution import SLOT, Execution

ABANDONED = TaskError(ErrorType.CANCELLED, "the child goes on without its parent", retryable=False)


def stop(execution: Execution, to: ExecutionState, error: dict[str, Any], at: float, effects: list[Effect]) -> None:
    """No new task starts from here on; running agents are told, and have the grace to give their outcome."""
    if execution.stopped_at is not None:
        return
    execution.stopped_at = at
    execution.stopped_by = to
    execution.error = error
    execution.held.clear()
    # What winds it up needs no slot: waiting for one it would hold up its own compensations.
    execution.holds -= {SLOT}
    if execution.open:
        effects.append(TellAgents(None, execution.stop_reason))
        effects.extend(stop_children(execution))
    # What an agent has it says itself; what lies in a queue is found there, and need not wait for the grace.
    tasks = execution.tasks
    effects.extend(Arm(name, at + QUIET_ASK_S) for name in sorted(execution.open) if tasks[name].taken_at is None)
    arm_execution(execution, effects)


def stop_children(execution: Execution) -> list[Effect]:
    """What becomes of the open children of an execution that is to end: cancelled, or let go where they may outlive it.

    One that is cancelled is waited for, grace or not: it has compensations of its own.
    """
    effects: list[Effect] = []
    for name in sorted(execution.open):
        actor = execution.tasks[name]
        child = actor.node.definition.child
        if child is None:
            continue
        if child.close is ClosePolicy.ABANDON:
            effects.append(CloseAttempt(name, actor.attempt, ABANDONED))
        else:
            effects.append(CancelChild(name, actor.attempt, execution.stop_reason))
    return effects


def mark(execution: Execution, name: str, actor: TaskActor, state: TaskState, at: float, effects: list[Effect]) -> bool:
    """Settles a task for good; a failure that nobody handles stops the execution. Answers True."""
    actor.state = state
    actor.completed_at = at
    error = actor.error
    effects.append(PublishStatus(name, state, actor.attempt, at, error.record() if error is not None else None))
    bury(name, actor, effects)
    if actor.member_of is None:
        execution.settled += 1
        if state is TaskState.FAILED and not actor.node.failure_is_handled:
            assert error is not None
            stop(execution, ExecutionState.FAILED, {**error.record(), "task": name}, at, effects)
    return True


def dispatch(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> None:
    """Sends an attempt out, unless nothing is dispatched for now."""
    if execution.holds:
        execution.held[name] = None
        actor.retry_at = None
        return
    actor.attempt += 1
    actor.is_open = True
    actor.dispatched_at = at
    # What is known of the attempt before goes, except its error: that says why there is another.
    actor.taken_at = actor.started_at = actor.completed_at = actor.retry_at = None
    if actor.first_dispatched_at is None:
        actor.first_dispatched_at = at
    execution.open.add(name)
    if actor.node.definition.child is None:
        actor.state = TaskState.QUEUED
        effects.append(PublishWork(name, actor.attempt, at))
    else:
        actor.state = TaskState.RUNNING
        actor.taken_at = at
        actor.instance = ""
        effects.append(StartChild(name, actor.attempt, at))
    effects.append(PublishStatus(name, actor.state, actor.attempt, at))
    arm(name, actor, effects)


def begin(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> bool:
    """Begins a task that is to run; answers whether it is settled by that."""
    node = actor.node
    if not node.is_special:
        dispatch(execution, name, actor, at, effects)
        return False
    if node.is_group:
        return _begin_group(execution, name, actor, at, effects)
    problem = prepare(execution, actor)
    if problem is not None:
        return _fail(execution, name, actor, problem, at, effects)
    if node.definition.is_waiting:
        return _begin_waiting(execution, name, actor, at, effects)
    dispatch(execution, name, actor, at, effects)
    return False


def prepare(execution: Execution, actor: TaskActor) -> TaskError | None:
    """Fills in the config and the child's input of a task that is to begin; answers why that cannot be."""
    node = actor.node
    definition = node.definition
    try:
        if node.config is not None:
            actor.config = _fill(execution, actor, node.config)
        if node.input is not None:
            actor.input = _fill(execution, actor, node.input)
        elif definition.child is not None:
            actor.input = definition.child.input
    except ConditionError as problem:
        return TaskError(ErrorType.EXPRESSION, problem.reason, retryable=False)
    if definition.config_schema is not None and node.config is not None:
        wrong = problem_of(definition.config_schema, actor.config)
        if wrong is not None:
            message = f"config is not as its schema says: {wrong}"
            return TaskError(ErrorType.INVALID_CONFIG, message, retryable=False)
    return None


def feed(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> bool:
    """Begins what instances may begin now, and settles the task when there are no more. Answers whether it did."""
    group = actor.group
    assert group is not None
    definition = actor.node.definition
    while execution.stopped_at is None:
        if group.items is None:
            if group.running or group.is_done:
                break
        else:
            assert definition.map is not None
            if not group.has_more(definition.map):
                break
        index = group.take()
        member = f"{name}~{index}"
        instance = _instance(execution, actor, member, index)
        if begin(execution, member, instance, at, effects):
            hear(execution, member, instance)
    if group.is_cancelled:
        return not group.running and mark(execution, name, actor, TaskState.CANCELLED, at, effects)
    if definition.map is not None and group.items is not None:
        if not group.is_over(definition.map):
            return False
        actor.result, actor.error = group.outcome(definition.map)
        actor.content = None if actor.error is not None else group.content
    elif not group.is_done:
        return False
    elif group.states.get(group.next - 1) is TaskState.SKIPPED:
        # `on_task_failure` passed over the iteration: there is neither a result nor a failure.
        return mark(execution, name, actor, TaskState.SKIPPED, at, effects)
    return mark(
        execution, name, actor, TaskState.FAILED if actor.error is not None else TaskState.COMPLETED, at, effects
    )


def hear(execution: Execution, member: str, instance: TaskActor) -> str:
    """Tells a task that one of its instances settled; answers the task's name."""
    assert instance.member_of is not None
    name, index = instance.member_of
    actor = execution.tasks[name]
    group = actor.group
    assert group is not None
    group.hear(member, index, instance.state, instance.attempt, instance.result, instance.error)
    if instance.content is not None:
        group.contents[index] = instance.content
    if group.items is None:
        _end_loop(execution, actor, instance, index)
    if instance.state is TaskState.COMPLETED and instance.group is None and not _is_undone(execution, name):
        execution.leaving.append(member)
    return name


def arm(name: str, actor: TaskActor, effects: list[Effect]) -> None:
    at = attempt_deadline(actor)
    if at is not None:
        effects.append(Arm(name, at))


def arm_execution(execution: Execution, effects: list[Effect]) -> None:
    at = execution.deadline()
    if at is not None:
        effects.append(Arm(None, at))


def wait_until(definition: TaskDefinition, at: float) -> float | None:
    """When a task that waits from `at` on has waited long enough; None when it waits as long as it takes."""
    if definition.until is not None:
        return definition.until
    wait_s = definition.sleep if definition.sleep is not None else definition.timeout
    if definition.approval is not None:
        wait_s = definition.approval.deadline
    return at + wait_s if wait_s is not None else None


def _begin_waiting(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> bool:
    definition = actor.node.definition
    actor.state = TaskState.RUNNING
    actor.dispatched_at = actor.taken_at = at
    effects.append(PublishStatus(name, actor.state, 0, at))
    kept = execution.signals.get(definition.wait_for) if definition.wait_for is not None else None
    if kept:
        actor.result, actor.content = kept.pop(0)
        return mark(execution, name, actor, TaskState.COMPLETED, at, effects)
    actor.retry_at = wait_until(definition, at)
    if actor.retry_at is not None:
        effects.append(Arm(name, actor.retry_at))
    return False


def _begin_group(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> bool:
    node = actor.node
    if actor.group is None or (node.items is not None and actor.group.items is None):
        items = None
        if node.items is not None:
            try:
                items = _fill(execution, actor, node.items)
            except ConditionError as problem:
                error = TaskError(ErrorType.EXPRESSION, problem.reason, False)
                return _fail(execution, name, actor, error, at, effects)
            if not isinstance(items, list) or len(items) > ITEMS_MAX:
                found = f"{len(items)} items, the limit is {ITEMS_MAX}" if isinstance(items, list) else "no list"
                error = TaskError(ErrorType.EXPRESSION, f"for_each {node.items.source!r} gave {found}", False)
                return _fail(execution, name, actor, error, at, effects)
        # Attempts go on counting when it runs again: each has its own subjects.
        actor.group = Group(items, attempts=actor.group.attempts if actor.group is not None else {})
    actor.state = TaskState.RUNNING
    actor.dispatched_at = actor.taken_at = at
    effects.append(PublishStatus(name, actor.state, 0, at))
    return feed(execution, name, actor, at, effects)


def _instance(execution: Execution, actor: TaskActor, member: str, index: int) -> TaskActor:
    instance = execution.tasks.get(member)
    if instance is not None:
        instance.reset()
        if member in execution.leaving:
            execution.leaving.remove(member)
        return instance
    assert actor.node.instance is not None
    assert actor.group is not None
    instance = execution.tasks[member] = TaskActor(actor.node.instance)
    instance.member_of = (member.rpartition("~")[0], index)
    known = actor.group.attempts.get(index)
    if known is not None:
        # It ran before. A wait has no attempt, but its next `due` needs a number of its own.
        instance.attempt = instance.base = known + instance.node.definition.is_waiting
    return instance


def _end_loop(execution: Execution, actor: TaskActor, instance: TaskActor, index: int) -> None:
    group, loop, until = actor.group, actor.node.definition.loop, actor.node.until
    assert group is not None
    assert loop is not None
    assert until is not None
    if instance.state is not TaskState.COMPLETED:
        group.is_done = True
        actor.error = instance.error
        return
    variables = execution.variables(actor) | {"result": instance.value, "iteration": index}
    try:
        answer = until.evaluate({}, variables)
        if not isinstance(answer, bool):
            raise ConditionError(f"{until.source!r} is neither true nor false")
    except ConditionError as problem:
        group.is_done = True
        actor.error = TaskError(ErrorType.EXPRESSION, f"loop.until: {problem.reason}", False)
        return
    if answer:
        group.is_done = True
        actor.result, actor.content = instance.result, instance.content
    elif index + 1 >= loop.max_iterations:
        group.is_done = True
        message = f"{loop.until!r} did not hold after {loop.max_iterations} iterations"
        actor.error = TaskError(ErrorType.MAX_ITERATIONS, message, False)


def _is_undone(execution: Execution, task: str) -> bool:
    return task.split("~", 1)[0] in execution.plan.undo_of


def _fill(execution: Execution, actor: TaskActor, expression: Template | Formula) -> Any:
    tasks = execution.tasks
    views = {name: tasks[name].view() for name in expression.references}
    variables = execution.variables(actor)
    if isinstance(expression, Template):
        return expression.fill(views, variables)
    return expression.evaluate(views, variables)


def _fail(
    execution: Execution, name: str, actor: TaskActor, error: TaskError, at: float, effects: list[Effect]
) -> bool:
    actor.error = error
    return mark(execution, name, actor, TaskState.FAILED, at, effects)
