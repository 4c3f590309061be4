"""What people are shown of an execution: status, result, updates, metrics. All folded from its facts, all pure."""

from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.effect import Effect, PublishStatus
from infinity_matrix_actors.errors import ExecutionFailed
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_bus.codec import Undecodable, decode_record, json_size, parse_rfc3339

from infinity_matrix_coordinator.execution_actor import ExecutionActor

#: Outputs of about this many bytes travel with the end of their execution.
OUTPUTS_SMALL = 32 * 1024
_RUNNING_FIRST = (TaskState.RUNNING, TaskState.QUEUED, TaskState.RETRYING)


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """Where a task stands. Times are seconds since the epoch, by the stream's clock."""

    id: str
    agent: str
    state: str
    attempt: int = 0
    error: dict[str, Any] | None = None
    result: Any = None
    queued_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    #: Of a map or a loop: how many there are (`total`, of a loop so far), are `running`, and came to each state.
    instances: dict[str, int] | None = None
    #: Of a task that is another workflow: the execution it is, once that has begun.
    child: str | None = None
    #: Of an attempt that was closed (timed out, cancelled): its agent has let go of it since, and `late`: had done it.
    released: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class ExecutionStatus:
    """Where an execution stands. `progress` is settled tasks over all tasks, in percent."""

    execution_id: str
    workflow: str
    definition: str
    state: str
    progress: float
    current_task: str | None
    started_at: float
    completed_at: float | None
    error: dict[str, Any] | None
    tasks: dict[str, TaskStatus] = field(default_factory=dict)
    #: `complete` or `incomplete` once something was undone or should have been; `compensated` in the order it was done.
    compensation: str | None = None
    compensated: tuple[str, ...] = ()
    #: The last run of its id, where it did not complete and was run again.
    latest_run: str | None = None


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """How an execution ended. `outputs` has the result of every task that completed; `duration` is in seconds."""

    execution_id: str
    workflow: str
    status: str
    duration: float
    outputs: dict[str, Any]
    error: dict[str, Any] | None
    #: The tasks that were undone, in the order it was done, and whether that was all there was to undo.
    compensated: tuple[str, ...] = ()
    compensation: str | None = None

    def raise_for_failure(self) -> "ExecutionResult":
        """Answers itself when completed; raises ExecutionFailed otherwise."""
        if self.status != ExecutionState.COMPLETED:
            raise ExecutionFailed(self.execution_id, self.status, self.error)
        return self


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """One transition; `task_id` is None for the execution itself, `at` is seconds since the epoch."""

    execution_id: str
    task_id: str | None
    status: str
    attempt: int
    at: float
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """`queue_time` and `run_time` of the last attempt, in seconds; None while it has none."""

    attempts: int
    queue_time: float | None
    run_time: float | None
    state: str


@dataclass(frozen=True, slots=True)
class ExecutionMetrics:
    """Per task and in total; times in seconds."""

    execution_id: str
    tasks: dict[str, TaskMetrics]
    duration: float | None
    total_attempts: int
    total_queue_time: float
    total_run_time: float
    completed: int
    failed: int
    skipped: int


def status_of(execution: ExecutionActor) -> ExecutionStatus:
    """The status as of the last fact folded."""
    undoing = [name for name in execution.plan.undo_nodes if name in execution.tasks]
    tasks = {name: _task_status(execution, name) for name in (*execution.plan.nodes, *undoing)}
    current = None
    for state in _RUNNING_FIRST:
        current = next((name for name, task in tasks.items() if task.state == state), None)
        if current is not None:
            break
    return ExecutionStatus(
        execution.id,
        execution.started.workflow,
        execution.started.definition,
        str(execution.state),
        round(execution.progress_percent(), 1),
        None if execution.is_decided else current,
        execution.started.at,
        execution.decided_at,
        execution.error,
        tasks,
        execution.compensation,
        execution.compensated,
    )


def result_of(execution: ExecutionActor) -> ExecutionResult:
    """The result of an execution that is decided."""
    assert execution.decided_at is not None
    return ExecutionResult(
        execution.id,
        execution.started.workflow,
        str(execution.state),
        max(0.0, execution.decided_at - execution.started.at),
        outputs_of(execution),
        execution.error,
        execution.compensated,
        execution.compensation,
    )


def outputs_of(execution: ExecutionActor) -> dict[str, Any]:
    """The result of every task that completed, by task id."""
    return {
        name: execution.tasks[name].result
        for name in execution.plan.nodes
        if name in execution.tasks and execution.tasks[name].state is TaskState.COMPLETED
    }


def is_small(outputs: dict[str, Any]) -> bool:
    """Whether the outputs go into the `finished` fact: then whoever waits reads one message instead of all of them.

    Stops at the first value that is too much, for all of them together may be a thousand times as large.
    """
    room = OUTPUTS_SMALL
    for name, value in outputs.items():
        if isinstance(value, str | list | dict) and len(value) > room:
            return False
        room -= len(name) + json_size(value)
        if room <= 0:
            return False
    return True


def result_of_finished(execution_id: str, workflow: str, finished: bytes) -> ExecutionResult | None:
    """The result that stands in a `finished` fact; None when it does not, and the log must be folded."""
    try:
        record = decode_record(finished)
    except Undecodable:
        return None
    outputs = record.get("outputs")
    started_at, decided_at = parse_rfc3339(record.get("started_at")), parse_rfc3339(record.get("decided_at"))
    if record.get("state") != ExecutionState.COMPLETED or not isinstance(outputs, dict):
        return None
    if started_at is None or decided_at is None:
        return None
    duration = max(0.0, decided_at - started_at)
    return ExecutionResult(execution_id, workflow, str(ExecutionState.COMPLETED), duration, outputs, None)


def updates_of(execution: ExecutionActor, effects: list[Effect]) -> list[StatusUpdate]:
    """The transitions among the effects of one fact."""
    return [
        StatusUpdate(execution.id, effect.task, str(effect.state), effect.attempt, effect.at, effect.error)
        for effect in effects
        if isinstance(effect, PublishStatus)
    ]


def metrics_of(execution: ExecutionActor) -> ExecutionMetrics:
    """Queue time, run time and attempts, from the facts' own times."""
    tasks: dict[str, TaskMetrics] = {}
    for name in execution.plan.nodes:
        actor = execution.tasks.get(name)
        if actor is None:
            tasks[name] = TaskMetrics(0, None, None, TaskState.WAITING)
            continue
        began_at = actor.started_at if actor.started_at is not None else actor.taken_at
        queue_time = None
        if began_at is not None and actor.dispatched_at is not None:
            # The agent's clock may differ a little from the stream's.
            queue_time = max(0.0, began_at - actor.dispatched_at)
        run_time = None
        if actor.attempt and actor.completed_at is not None and actor.dispatched_at is not None:
            run_time = max(0.0, actor.completed_at - (began_at if began_at is not None else actor.dispatched_at))
        attempts = actor.attempt if actor.group is None else sum(actor.group.attempts.values())
        tasks[name] = TaskMetrics(attempts, queue_time, run_time, str(actor.state))
    states = [task.state for task in tasks.values()]
    return ExecutionMetrics(
        execution.id,
        tasks,
        None if execution.decided_at is None else max(0.0, execution.decided_at - execution.started.at),
        sum(task.attempts for task in tasks.values()),
        sum(task.queue_time or 0.0 for task in tasks.values()),
        sum(task.run_time or 0.0 for task in tasks.values()),
        states.count(TaskState.COMPLETED),
        states.count(TaskState.FAILED),
        states.count(TaskState.SKIPPED),
    )


def _task_status(execution: ExecutionActor, name: str) -> TaskStatus:
    actor = execution.tasks.get(name)
    agent = execution.plan.node(name).definition.agent
    if actor is None:
        return TaskStatus(name, agent, TaskState.WAITING)
    return TaskStatus(
        name,
        agent,
        str(actor.state),
        actor.attempt,
        actor.error.record() if actor.error is not None else None,
        actor.result,
        actor.dispatched_at,
        actor.started_at if actor.started_at is not None else actor.taken_at,
        actor.completed_at,
        actor.group.counts() if actor.group is not None else None,
        (actor.instance or None) if actor.node.definition.child is not None else None,
        actor.is_released,
        actor.is_late,
    )
