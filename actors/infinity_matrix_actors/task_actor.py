"""The task actor: one task of one execution.

It subscribes to the completion of its upstream tasks, waits until all are settled, and then decides whether it runs.
It knows nothing of the rest of the execution; what it decides is data for the execution actor.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from infinity_matrix_actors.condition import ConditionError
from infinity_matrix_actors.definition import RunWhen
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_actors.group import Group
from infinity_matrix_actors.plan import Node
from infinity_matrix_actors.state import SETTLED, TaskState

#: What is said of work that may have been done.
UNKNOWN = "unknown"
#: And of work that failed, and whose agent said so.
ATTEMPTED = "attempted"
#: An attempt that had begun and ends with one of these may have been done: it was interrupted, or had a result that
#: could not be given.
_DOUBTFUL = frozenset({ErrorType.CANCELLED, ErrorType.RESULT_NOT_ENCODABLE, ErrorType.PAYLOAD_TOO_LARGE})


class TaskActor:
    """The state of one task, changed only by the execution actor that owns it."""

    __slots__ = (
        "attempt",
        "base",
        "closed",
        "closed_at",
        "completed_at",
        "config",
        "content",
        "dispatched_at",
        "error",
        "first_dispatched_at",
        "group",
        "input",
        "instance",
        "is_escalated",
        "is_late",
        "is_open",
        "is_released",
        "left",
        "member_of",
        "node",
        "result",
        "retry_at",
        "started_at",
        "state",
        "taken_at",
        "tried_before",
        "upstream_completed",
        "upstream_failed",
        "waiting_for",
    )

    def __init__(self, node: Node) -> None:
        self.node = node
        self.state = TaskState.WAITING
        self.attempt = 0
        #: Attempts of an earlier run of the execution: they count no more against the retries.
        self.base = 0
        #: Attempts before somebody took the execution up again: they count no more at all.
        self.tried_before = 0
        #: An attempt was dispatched and has no outcome.
        self.is_open = False
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
        #: What a result that travels as a reference stands for, where an expression looks into it.
        self.content: Any = None
        self.error: TaskError | None = None
        #: The config and the child's input with their templates filled in; None where there are none.
        self.config: Any = None
        self.input: Any = None
        #: Who has it: an agent's process, or the child's execution.
        self.instance = ""
        #: Its instances, or of which task and at which place it is one.
        self.group: Group | None = None
        self.member_of: tuple[str, int] | None = None
        #: The last attempt a coordinator closed (0: none): whether its effect happened is unknown.
        self.closed = 0
        self.closed_at: float | None = None
        #: Its agent has let go of the closed attempt, and `is_late`: had completed it by then.
        self.is_released = False
        self.is_late = False
        #: What an earlier run of the execution did and nobody undid: its `state` (completed, unknown or attempted),
        #: `result` and `attempt`, and `closed_at` while its agent may still be at it.
        self.left: dict[str, Any] | None = None
        #: Nobody decided in time, and others are asked now.
        self.is_escalated = False

    @property
    def value(self) -> Any:
        """The result as expressions see it."""
        return self.result if self.content is None else self.content

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED

    @property
    def is_waiting(self) -> bool:
        """It waits for its signal, its decision or its time: nobody was asked to do anything."""
        return self.state is TaskState.RUNNING and self.node.definition.is_waiting and self.group is None

    @property
    def is_delayed(self) -> bool:
        """The next attempt waits for its time: a backoff, or the lease of the attempt it undoes."""
        return self.retry_at is not None and (
            self.state is TaskState.RETRYING or self.state is TaskState.WAITING or self.is_waiting
        )

    @property
    def is_unknown(self) -> bool:
        """Whether it did not complete, and may have been done all the same: closed, interrupted, or done with a result
        that is not admitted."""
        if self.state is TaskState.COMPLETED:
            return False
        if self.closed > 0 or (self.left is not None and self.left["state"] == UNKNOWN):
            return True
        if self.error is None:
            return False
        is_doubtful = self.error.type in _DOUBTFUL and self.started_at is not None
        return is_doubtful or self.error.type == ErrorType.INVALID_RESULT

    @property
    def has_left(self) -> bool:
        """Whether an earlier run completed it, and nobody has undone that."""
        return self.left is not None and self.left["state"] == TaskState.COMPLETED

    @property
    def held_since(self) -> float | None:
        """When an attempt was closed whose agent has not let go of it yet, as far as is known; None for none."""
        earlier = None if self.left is None else self.left["closed_at"]
        latest = None if self.is_released else self.closed_at
        return max((at for at in (earlier, latest) if at is not None), default=None)

    def reset(self, *, is_undone: bool = False, is_asked_for: bool = False) -> None:
        """Back to the beginning, to run again; attempts go on counting, because each has its own subjects.

        Unless it `is_undone`, what it did stays known: whatever becomes of the next run, it is there to be undone.
        `is_asked_for`: by somebody, and not by what the workflow says of failures.
        """
        self.left = None if is_undone else self._left()
        if self.node.definition.is_waiting:
            # A wait has no attempt, but its `due` needs a number of its own.
            self.attempt += 1
        self.state = TaskState.WAITING
        self.base = self.attempt
        if is_asked_for:
            self.tried_before = self.attempt
        self.is_open = self.is_released = self.is_late = self.is_escalated = False
        self.closed = 0
        self.first_dispatched_at = self.dispatched_at = self.taken_at = self.retry_at = self.started_at = None
        self.completed_at = self.closed_at = None
        self.result = self.content = self.error = self.config = self.input = None

    def _left(self) -> dict[str, Any] | None:
        if self.attempt == self.base or self.group is not None or self.node.definition.is_waiting:
            return self.left
        if self.state is TaskState.COMPLETED:
            state = str(TaskState.COMPLETED)
        elif self.has_left:
            return self.left
        else:
            state = UNKNOWN if self.is_unknown else ATTEMPTED
        return {"state": state, "result": self.result, "attempt": self.attempt, "closed_at": self.held_since}

    def joins(self, upstream: Iterable["TaskActor"]) -> None:
        """Counts its upstream tasks anew."""
        states = [actor.state for actor in upstream]
        self.waiting_for = sum(state not in SETTLED for state in states)
        self.upstream_completed = sum(state is TaskState.COMPLETED for state in states)
        self.upstream_failed = sum(state is TaskState.FAILED or state is TaskState.CANCELLED for state in states)

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
            "result": self.value,
            "state": str(self.state),
            "error": self.error.record() if self.error is not None else None,
        }

    def record(self) -> dict[str, Any]:
        """The whole state as plain data; two actors are in the same state when their records are equal."""
        record = {name: getattr(self, name) for name in self.__slots__ if name != "node"}
        record["group"] = self.group.record() if self.group is not None else None
        record["state"] = str(self.state)
        record["error"] = self.error.record() if self.error is not None else None
        return record
