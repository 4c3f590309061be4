"""The state of one execution: what its facts have come to so far. Plain data and questions about it; nothing decides.

The modules above it decide, each one thing: `beginning` how a task begins, `routing` who hears of its completion,
`stopping` how an execution ends, `waiting`, `callbacks` and `reopening` what their names say. `ExecutionActor` gives
each fact to the right one.
"""

import sys
from typing import Any

from infinity_matrix_actors.effect import PublishFinished
from infinity_matrix_actors.fact import ErrorType, Finished, Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.saga import Saga

#: The place of the first fact that is not in the checkpoint, when all are.
CLEAN = sys.maxsize
#: Why nothing is dispatched for now.
PAUSED = "paused"
SLOT = "slot"
#: Of a hundred thousand executions nearly none is held or notifies: they share one empty set.
_NOTHING: frozenset[str] = frozenset()


class Execution:
    """One execution's state. Only the fold of a fact changes it."""

    __slots__ = (
        "begun_at",
        "calls",
        "calls_made",
        "content",
        "decided_at",
        "error",
        "finished",
        "finishes",
        "folded",
        "grace",
        "held",
        "holds",
        "id",
        "ignored",
        "input",
        "is_error_answered",
        "leaving",
        "notices",
        "open",
        "plan",
        "reopen_at",
        "runs",
        "saga",
        "sequence",
        "settled",
        "signals",
        "slot_key",
        "started",
        "state",
        "stopped_at",
        "stopped_by",
        "tasks",
    )

    def __init__(self, started: Started, plan: Plan, sequence: int = 0) -> None:
        self.id = started.execution
        self.plan = plan
        self.started = started
        #: The first fact that is in no checkpoint: a new owner reads from there.
        self.sequence = sequence
        #: Facts up to this place in the log are in the state already, however they came.
        self.folded = 0
        #: As it travels, and as expressions see it.
        self.input = started.input
        self.content = started.input if started.content is None else started.content
        #: Since when its own timeout counts: its start, or when it was reopened; and how often that was.
        self.begun_at = started.at
        self.runs = 1
        #: Running until the fact that decides otherwise; what that fact decided is final until a command reopens it.
        self.state = ExecutionState.RUNNING
        self.tasks: dict[str, TaskActor] = {}
        #: Tasks with a dispatched attempt that has no outcome: the barrier before anything terminal.
        self.open: set[str] = set()
        self.settled = 0
        #: Why nothing is dispatched (paused, no slot yet), and what would have been, in order.
        self.holds: frozenset[str] = _NOTHING
        self.held: dict[str, None] = {}
        #: The concurrency key it got or asked for a slot of.
        self.slot_key: str | None = None
        #: Questions to the host, each with the task it is about (None: the execution), and how many there were.
        self.calls: dict[str, str | None] = {}
        self.calls_made = 0
        #: Notifications on their way: nothing waits for them but the end.
        self.notices: frozenset[str] = _NOTHING
        self.is_error_answered = False
        #: When its failed tasks are tried again, as `on_error` says.
        self.reopen_at: float | None = None
        #: Instances that settled with the last fact; their actors are not needed after its effects.
        self.leaving: list[str] = []
        #: Signals that nobody waited for yet, by name, oldest first: the data, and what it stands for.
        self.signals: dict[str, list[tuple[Any, Any]]] = {}
        #: Set when no new task may start; `stopped_by` is the state the execution is heading for.
        self.stopped_at: float | None = None
        self.stopped_by: ExecutionState | None = None
        self.error: dict[str, Any] | None = None
        self.grace: float | None = None
        #: Begun once an execution that was stopped has no attempt open.
        self.saga: Saga | None = None
        self.decided_at: float | None = None
        self.finished: Finished | None = None
        self.finishes = 0
        #: Facts that changed nothing: late, forged or of an attempt that is not open.
        self.ignored = 0

    @property
    def is_decided(self) -> bool:
        return self.decided_at is not None

    @property
    def is_complete(self) -> bool:
        """Its work is done, whatever notification is on its way: no cancel and no timeout undoes it any more."""
        return self.stopped_at is None and self.settled == len(self.plan.nodes)

    @property
    def is_asking(self) -> bool:
        """All its tasks have ended, and it waits for the answer to `on_error`, for which there is a time of its own."""
        return None in self.calls.values()

    @property
    def may_go_on(self) -> bool:
        """A failure is being wound up, and `on_error` may yet have it taken up again."""
        if self.stopped_by is not ExecutionState.FAILED or self.saga is not None or self.is_decided:
            return False
        is_to_be_asked = self.plan.definition.on_error is not None and not self.is_error_answered
        return is_to_be_asked or self.is_asking or self.reopen_at is not None

    @property
    def is_timed_out(self) -> bool:
        """Its own time was over, not that of one of its tasks."""
        return self.error is not None and self.error["type"] == ErrorType.TIMED_OUT and "task" not in self.error

    def task(self, task: str) -> TaskActor:
        """The actor of a task; it exists from the first time it is spoken to."""
        actor = self.tasks.get(task)
        if actor is None:
            actor = self.tasks[task] = TaskActor(self.plan.node(task))
        return actor

    def is_undoing(self, task: str) -> bool:
        """Whether the task is of `on_failure`, or an instance of one that is."""
        return bool(self.plan.undo_nodes) and task.split("~", 1)[0] in self.plan.undo_nodes

    def is_stopping(self, task: str, actor: TaskActor) -> bool:
        """The execution is to end, and this attempt may still lie in its queue."""
        return (
            self.stopped_at is not None
            and self.saga is None
            and not self.is_asking
            and actor.is_open
            and actor.taken_at is None
            and task in self.open
        )

    def variables(self, actor: TaskActor) -> dict[str, Any]:
        """What a formula of the task may name besides other tasks."""
        found: dict[str, Any] = {"input": self.content}
        while actor.member_of is not None:
            above, index = actor.member_of
            actor = self.tasks[above]
            assert actor.group is not None
            if actor.group.items is None:
                found.setdefault("iteration", index)
                found.setdefault("previous", actor.group.last)
            elif "item" not in found:
                found["item"], found["index"] = actor.group.items[index], index
        return found

    def deadline(self) -> float | None:
        """When the execution's own timer is due: its timeout, the end of the grace once it is stopped, or the time
        to go on."""
        if self.is_decided or self.saga is not None or self.is_asking or self.is_complete:
            return None
        if self.reopen_at is not None:
            return self.reopen_at
        definition = self.plan.definition
        if self.stopped_at is not None:
            return self.stopped_at + (definition.grace if self.grace is None else self.grace)
        return None if definition.timeout is None else self.begun_at + definition.timeout

    @property
    def grace_s(self) -> float:
        """How long running tasks may go on once it is stopped, in seconds."""
        return self.plan.definition.grace if self.grace is None else self.grace

    @property
    def stop_reason(self) -> str:
        return str(self.error["message"]) if self.error is not None else ""

    @property
    def compensation(self) -> str | None:
        """`complete` or `incomplete` once there was something to undo, else None; `incomplete` until all is undone."""
        if self.saga is None or not (self.saga.compensated or self.saga.failed):
            return None
        return "incomplete" if self.saga.failed or not self.saga.is_over else "complete"

    @property
    def compensated(self) -> tuple[str, ...]:
        """The tasks that were undone, in the order it was done."""
        return tuple(self.saga.compensated) if self.saga is not None else ()

    def finish_effect(self) -> PublishFinished:
        """The terminal record of an execution that is decided."""
        assert self.decided_at is not None
        return PublishFinished(
            self.state, self.error, self.decided_at, self.compensation, self.compensated, self.finishes + 1
        )

    def progress_percent(self) -> float:
        """Settled tasks over all tasks, in percent."""
        return 100.0 if self.state is ExecutionState.COMPLETED else 100.0 * self.settled / len(self.plan.nodes)

    def record(self) -> dict[str, Any]:
        """The whole state as plain data; two actors are in the same state when their records are equal."""
        return {
            "id": self.id,
            "state": str(self.state),
            "open": sorted(self.open),
            "settled": self.settled,
            "holds": sorted(self.holds),
            "held": list(self.held),
            "slot_key": self.slot_key,
            "calls": dict(sorted(self.calls.items())),
            "calls_made": self.calls_made,
            "notices": sorted(self.notices),
            "is_error_answered": self.is_error_answered,
            "reopen_at": self.reopen_at,
            "begun_at": self.begun_at,
            "runs": self.runs,
            "stopped_at": self.stopped_at,
            "stopped_by": self.stopped_by,
            "grace": self.grace,
            "error": self.error,
            "decided_at": self.decided_at,
            "finished": self.finished,
            "finishes": self.finishes,
            "signals": {name: [data for data, _ in kept] for name, kept in sorted(self.signals.items()) if kept},
            "saga": self.saga.record() if self.saga is not None else None,
            "tasks": {name: actor.record() for name, actor in sorted(self.tasks.items()) if name not in self.leaving},
        }

    def is_settled(self, task: str) -> bool:
        actor = self.tasks.get(task)
        return actor is not None and actor.is_settled

    def failed_tasks(self) -> list[str]:
        """The tasks of the graph whose failure stopped the execution, or would have."""
        return [
            name
            for name, node in self.plan.nodes.items()
            if name in self.tasks and self.tasks[name].state is TaskState.FAILED and not node.failure_is_handled
        ]
