"""Approvals: what waits for a decision, and the decisions.

A decision is a signal of the system's own; the task that waits for it takes the first and no other.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.errors import NotAnAssignee, PayloadTooLarge, UnknownExecution, UnknownTask, WrongState
from infinity_matrix_actors.fact import APPROVAL_SIGNAL
from infinity_matrix_actors.task_actor import TaskActor
from infinity_matrix_bus.artifacts import OFFLOAD_BYTES
from infinity_matrix_bus.codec import encode

from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.listing import Selection
from infinity_matrix_coordinator.operations import Operations, new_execution_id

#: Executions folded at once while pending approvals are looked for.
FOLDS_AT_ONCE = 32
#: Pending approvals in one answer, unless told otherwise.
PENDING_LIMIT = 1000
#: A decision with its comment and data; PayloadTooLarge above.
DECISION_BYTES_MAX = OFFLOAD_BYTES
APPROVE = "approve"
REJECT = "reject"
#: The word in the result for each.
DECIDED = {APPROVE: "approved", REJECT: "rejected"}
#: How long a decision that was written is looked for in the log, to tell whether it was the first.
COUNTED_WAIT_S = 2.0
COUNTED_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Approval:
    """A decision that is waited for. Times are seconds since the epoch."""

    execution_id: str
    workflow: str
    task_id: str
    #: Who may decide; empty: anyone.
    assignees: tuple[str, ...]
    asked_at: float
    #: When the deadline's own answer counts; None: never.
    due_at: float | None
    #: What is decided upon: the results of the tasks directly before, by id.
    upstream: dict[str, Any] = field(default_factory=dict)


class Approvals:
    """The approvals of one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def pending(self, workflow: str | None = None, limit: int = PENDING_LIMIT) -> list[Approval]:
        """What waits for a decision now, the longest first; at most `limit`.

        Folds the open executions of workflows that have an approval, and no others.
        """
        listed = [each for each in await self._operations.select(Selection(workflow)) if each.is_open]
        asking: set[str] = set()
        for digest in {each.definition for each in listed}:
            plan = await self._operations.plan(digest)
            if any(task.approval is not None for task in plan.definition.tasks):
                asking.add(digest)
        executions = [each.execution_id for each in listed if each.definition in asking]
        found: list[Approval] = []
        # The oldest first: they wait longest.
        executions.reverse()
        for begin in range(0, len(executions), FOLDS_AT_ONCE):
            folds = (self._pending_of(execution) for execution in executions[begin : begin + FOLDS_AT_ONCE])
            for pending in await asyncio.gather(*folds):
                found.extend(pending)
            if len(found) >= limit:
                break
        found.sort(key=lambda approval: approval.asked_at)
        return found[:limit]

    async def _pending_of(self, execution: str) -> list[Approval]:
        try:
            return pending_of(await self._operations.fold(execution))
        except UnknownExecution:
            # It was listed, and has left the log since.
            return []

    async def decide(
        self, execution: str, task: str | None, decision: str, *, by: str = "", comment: str = "", data: Any = None
    ) -> str:
        """Approves or rejects; answers the task. `task` None means the only one that waits.

        `data` is edited data, handed on with the decision. Raises UnknownExecution, UnknownTask for one that is no
        approval, WrongState for one that does not wait (or when `task` is None and not exactly one waits),
        NotAnAssignee, PayloadTooLarge; WrongState also where somebody else was quicker.
        """
        actor = await self._operations.fold(execution)
        waiting = {approval.task_id: approval for approval in pending_of(actor)}
        if task is None:
            if len(waiting) != 1:
                problem = f"it waits for {', '.join(waiting)}: say which" if waiting else "it waits for no decision"
                raise WrongState(f"execution {execution!r}", str(actor.state), problem)
            (task,) = waiting
        elif task not in waiting:
            _refuse(actor, task)
        assignees = waiting[task].assignees
        if assignees and by not in assignees:
            raise NotAnAssignee(task, by, assignees)
        record = {"task": task, "decision": decision, "by": by, "comment": comment, "data": data}
        size_bytes = len(encode(record, "the decision"))
        if size_bytes > DECISION_BYTES_MAX:
            # The core reads a decision itself: no reference may take its place.
            raise PayloadTooLarge("the decision", size_bytes, DECISION_BYTES_MAX)
        await self._operations.publish_signal(execution, APPROVAL_SIGNAL, record, new_execution_id())
        await self._check_counted(execution, task, decision, by)
        return task

    async def _check_counted(self, execution: str, task: str, decision: str, by: str) -> None:
        """Raises WrongState where another decision came first; says nothing where that is not to be seen soon."""
        deadline = asyncio.get_running_loop().time() + COUNTED_WAIT_S
        while asyncio.get_running_loop().time() < deadline:
            actor = await self._operations.fold(execution)
            decided = actor.tasks.get(task)
            result = None if decided is None or decided.is_waiting else decided.result
            if isinstance(result, dict):
                if (result.get("decision"), result.get("by")) != (DECIDED[decision], by):
                    raise WrongState(f"task {task!r}", f"{result.get('decision')}", f"{result.get('by')} was quicker")
                return
            if decided is None or decided.is_settled:
                return
            # The replica that was read has not seen the decision yet.
            await asyncio.sleep(COUNTED_POLL_S)


def pending_of(actor: ExecutionActor) -> list[Approval]:
    """The approvals an execution waits for."""
    if actor.is_decided:
        return []
    return [
        _approval(actor, name, task)
        for name, task in actor.tasks.items()
        if task.is_waiting and task.node.definition.approval is not None
    ]


def _approval(actor: ExecutionActor, name: str, task: TaskActor) -> Approval:
    definition = task.node.definition
    asked = definition.approval
    assert asked is not None
    assert task.dispatched_at is not None
    before = {above: actor.tasks[above].result for above in definition.depends_on if above in actor.tasks}
    return Approval(
        actor.id,
        actor.started.workflow,
        name,
        asked.escalate_to if task.is_escalated else asked.assignees,
        task.dispatched_at,
        task.retry_at,
        before,
    )


def _refuse(actor: ExecutionActor, task: str) -> None:
    known = [each.id for each in actor.plan.definition.tasks if each.approval is not None]
    if task.partition("~")[0] not in known:
        raise UnknownTask(actor.started.workflow, task, ", ".join(known))
    state = str(actor.tasks[task].state) if task in actor.tasks else "waiting"
    raise WrongState(f"task {task!r}", state, "it waits for no decision")
