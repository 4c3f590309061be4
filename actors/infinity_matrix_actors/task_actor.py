"""The task actor: one task of one execution.

It subscribes to the completion of its upstream tasks, waits until all are settled, and then decides whether it runs.
It knows nothing of the rest of the execution; what it decides is data for the execution actor.
"""

from collections.abc import Mapping
from typing import Any

from infinity_matrix_actors.condition import ConditionError
from infinity_matrix_actors.definition import RunWhen
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_actors.plan import Node
from infinity_matrix_actors.state import SETTLED, TaskState


class TaskActor:
    """The state of one task, changed only by the execution actor that owns it."""

    __slots__ = (
        "attempt",
        "closed",
        "closed_at",
        "completed_at",
        "dispatched_at",
        "error",
        "first_dispatched_at",
        "is_late",
        "is_released",
        "node",
        "result",
        "retry_at",
        "started_at",
        "state",
        "taken_at",
        "upstream_completed",
        "upstream_failed",
        "waiting_for",
    )

    def __init__(self, node: Node) -> None:
        self.node = node
        self.state = TaskState.WAITING
        self.attempt = 0
        self.waiting_for = len(node.definition.depends_on)
        self.upstream_completed = 0
        self.upstream_failed = 0
        self.first_dispatched_at: float | None = None
        self.dispatched_at: float | None = None
        self.taken_at: float | None = None
        self.retry_at: float | None = None
        self.started_at: float | None = None
        self.completed_at: float | None = None
        self.result: Any = None
        self.error: TaskError | None = None
        #: The last attempt a coordinator closed (0: none): whether its effect happened is unknown.
        self.closed = 0
        self.closed_at: float | None = None
        #: Its agent has let go of the closed attempt, and `is_late`: had completed it by then.
        self.is_released = False
        self.is_late = False

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED

    @property
    def is_open(self) -> bool:
        """An attempt was dispatched and has no outcome. A task that waits has none: nobody was asked to do anything."""
        if self.state is TaskState.RUNNING:
            return self.attempt > 0
        return self.state is TaskState.QUEUED

    @property
    def is_waiting(self) -> bool:
        """It waits for its signal or its time."""
        return self.state is TaskState.RUNNING and self.attempt == 0

    @property
    def is_delayed(self) -> bool:
        """The next attempt waits for its time: a backoff, or the lease of the attempt it undoes."""
        return self.retry_at is not None and (
            self.state is TaskState.RETRYING or self.state is TaskState.WAITING or self.is_waiting
        )

    def hears(self, upstream: TaskState) -> bool:
        """Takes in that an upstream task settled; answers whether it was the last one."""
        self.waiting_for -= 1
        if upstream is TaskState.COMPLETED:
            self.upstream_completed += 1
        elif upstream is not TaskState.SKIPPED:
            self.upstream_failed += 1
        return self.waiting_for == 0

    def runs(self) -> bool:
        """Whether `run_when` holds, once all upstream tasks are settled."""
        upstream_count = len(self.node.definition.depends_on)
        match self.node.definition.run_when:
            case RunWhen.DEFAULT:
                return upstream_count == 0 or (self.upstream_failed == 0 and self.upstream_completed > 0)
            case RunWhen.ALL_COMPLETED:
                return self.upstream_completed == upstream_count
            case RunWhen.ANY_COMPLETED:
                return upstream_count == 0 or self.upstream_completed > 0
            case RunWhen.ALL_SETTLED:
                return True
            case RunWhen.ANY_FAILED:
                return self.upstream_failed > 0

    def asks_condition(self, tasks: Mapping[str, "TaskActor"], workflow_input: Any) -> bool | TaskError:
        """The answer of the task's condition; an error fails the task and never skips it silently."""
        condition = self.node.condition
        if condition is None:
            return True
        views = {name: tasks[name].view() for name in condition.references}
        try:
            return condition.evaluate(views, workflow_input)
        except ConditionError as error:
            return TaskError(ErrorType.CONDITION, str(error), retryable=False)

    def view(self) -> dict[str, Any]:
        """What a condition sees of this task."""
        return {
            "result": self.result,
            "state": str(self.state),
            "error": self.error.record() if self.error is not None else None,
        }

    def record(self) -> dict[str, Any]:
        """The whole state as plain data; two actors are in the same state when their records are equal."""
        record = {name: getattr(self, name) for name in self.__slots__ if name != "node"}
        record["state"] = str(self.state)
        record["error"] = self.error.record() if self.error is not None else None
        return record
