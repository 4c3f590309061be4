"""Tasks that wait: for a signal, a decision, a time. Nobody is asked to do anything; a fact ends the wait. Pure."""

from typing import Any

from infinity_matrix_actors.definition import OnDeadline, OnReject
from infinity_matrix_actors.effect import Arm, Disarm, Effect, PublishStatus
from infinity_matrix_actors.fact import APPROVAL_SIGNAL, ErrorType, Signal, TaskError
from infinity_matrix_actors.state import TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.callbacks import task_failed
from infinity_matrix_coordinator.execution import Execution
from infinity_matrix_coordinator.routing import settle

#: Signals of one execution that nobody waits for yet; those beyond are ignored.
SIGNALS_KEPT_MAX = 1000
APPROVED = "approve"
REJECTED = "reject"


def signalled(execution: Execution, fact: Signal, effects: list[Effect]) -> bool:
    """Gives a signal to the task that waits for it, or keeps it for who will; answers whether it changed anything."""
    if fact.name == APPROVAL_SIGNAL:
        return _decided(execution, fact, effects)
    for name, actor in execution.tasks.items():
        if actor.is_waiting and actor.node.definition.wait_for == fact.name:
            actor.result, actor.content = fact.data, fact.content
            _end(execution, name, actor, TaskState.COMPLETED, fact.at, effects)
            return True
    return keep_signal(execution, fact)


def keep_signal(execution: Execution, fact: Signal) -> bool:
    """Nobody waits for it yet: it is kept for who will, if that is in another run of the execution."""
    if sum(map(len, execution.signals.values())) >= SIGNALS_KEPT_MAX:
        return False
    execution.signals.setdefault(fact.name, []).append((fact.data, fact.content))
    return True


def end_waiting(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> None:
    """The time of a waiting task has come: a sleep is over, or a signal or a decision did not come in time."""
    definition = actor.node.definition
    if definition.approval is not None:
        _end_approval(execution, name, actor, at, effects)
        return
    state = TaskState.COMPLETED
    if definition.wait_for is not None and definition.on_timeout is None:
        message = f"the signal {definition.wait_for!r} did not come within timeout, {definition.timeout:g} s"
        actor.error = TaskError(ErrorType.TIMED_OUT, message, retryable=False)
        state = TaskState.FAILED
    elif definition.on_timeout is not None:
        actor.result = definition.on_timeout["result"]
    _end(execution, name, actor, state, at, effects)


def _decided(execution: Execution, fact: Signal, effects: list[Effect]) -> bool:
    data = fact.data if isinstance(fact.data, dict) else {}
    name = str(data.get("task"))
    actor = execution.tasks.get(name)
    decision = data.get("decision")
    if actor is None or not actor.is_waiting or actor.node.definition.approval is None:
        return False
    approval = actor.node.definition.approval
    asked = approval.escalate_to if actor.is_escalated else approval.assignees
    if decision not in (APPROVED, REJECTED) or (asked and data.get("by") not in asked):
        return False
    _conclude_approval(execution, name, actor, data, fact.at, effects)
    return True


def _end_approval(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> None:
    approval = actor.node.definition.approval
    assert approval is not None
    assert approval.deadline is not None
    if approval.on_deadline is OnDeadline.ESCALATE and not actor.is_escalated:
        actor.is_escalated = True
        # The next deadline is another `due`, which needs a number of its own.
        actor.attempt += 1
        actor.retry_at = at + approval.deadline
        effects.append(PublishStatus(name, actor.state, 0, at))
        effects.append(Arm(name, actor.retry_at))
        return
    decision = APPROVED if approval.on_deadline is OnDeadline.APPROVE else REJECTED
    comment = f"nobody decided within {approval.deadline:g} s"
    _conclude_approval(execution, name, actor, {"decision": decision, "by": None, "comment": comment}, at, effects)


def _conclude_approval(
    execution: Execution, name: str, actor: TaskActor, data: dict[str, Any], at: float, effects: list[Effect]
) -> None:
    approval = actor.node.definition.approval
    assert approval is not None
    is_approved = data["decision"] == APPROVED
    actor.result = {
        "decision": "approved" if is_approved else "rejected",
        "by": data.get("by"),
        "comment": data.get("comment"),
        "data": data.get("data"),
    }
    if is_approved or approval.on_reject is OnReject.COMPLETE:
        _end(execution, name, actor, TaskState.COMPLETED, at, effects)
        return
    by = f" by {data['by']}" if data.get("by") else ""
    comment = f": {data['comment']}" if data.get("comment") else ""
    actor.error = TaskError(ErrorType.REJECTED, f"rejected{by}{comment}"[:4096], retryable=False)
    _end(execution, name, actor, TaskState.FAILED, at, effects)


def _end(execution: Execution, name: str, actor: TaskActor, state: TaskState, at: float, effects: list[Effect]) -> None:
    actor.retry_at = None
    effects.append(Disarm(name))
    if state is TaskState.FAILED:
        assert actor.error is not None
        task_failed(execution, name, actor, actor.error, at, effects)
        return
    settle(execution, name, actor, state, at, effects)
