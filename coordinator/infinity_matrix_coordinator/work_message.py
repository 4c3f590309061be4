"""The work message: everything an agent needs to do one attempt, in one payload."""

from typing import Any

from infinity_matrix_actors.state import TaskState
from infinity_matrix_actors.task_actor import UNKNOWN
from infinity_matrix_bus.codec import encode, rfc3339
from infinity_matrix_bus.facts import WIRE_VERSION
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.execution_actor import ExecutionActor


def work_payload(record: dict[str, Any], *, is_repair: bool) -> bytes:
    """A work as JSON; raises PayloadTooLarge, PayloadNotEncodable."""
    if is_repair:
        record = {**record, "repair": True}
    return encode(record, f"the work of task {record['task']!r}")


def work_record(subjects: Subjects, shard: int, execution: ExecutionActor, task: str) -> dict[str, Any]:
    """The current attempt of `task`: everything its agent needs."""
    actor = execution.tasks[task]
    definition = actor.node.definition
    assert actor.dispatched_at is not None
    assert actor.first_dispatched_at is not None
    deadline = actor.first_dispatched_at + definition.total_timeout
    if definition.queue_timeout is not None and definition.timeout is not None:
        deadline = min(deadline, actor.dispatched_at + definition.queue_timeout + definition.timeout)
    tasks = execution.tasks
    record: dict[str, Any] = {
        "v": WIRE_VERSION,
        "execution": execution.id,
        "workflow": execution.plan.definition.name,
        "task": task,
        "attempt": actor.attempt,
        "agent": definition.agent,
        "version": execution.plan.definition.version,
        "input": execution.input,
        "config": definition.config if actor.config is None else actor.config,
        "upstream": {name: tasks[name].result for name in definition.depends_on},
        "reply_to": subjects.outcome(shard, execution.id, definition.agent, task, actor.attempt),
        "taken_to": subjects.taken(shard, execution.id, definition.agent, task, actor.attempt),
        "idempotency_key": f"{execution.id}/{task}",
        "timeout": definition.timeout,
        "ready_at": rfc3339(actor.dispatched_at),
        "deadline": rfc3339(deadline),
    }
    if definition.heartbeat_timeout is not None:
        record["heartbeat_timeout"] = definition.heartbeat_timeout
    if definition.service is not None:
        record["service"] = definition.service
    if actor.member_of is not None:
        record |= {name: value for name, value in execution.variables(actor).items() if name != "input"}
    if execution.saga is not None and execution.is_undoing(task):
        record |= _undoing(execution, execution.saga.forward_of.get(task))
    return record


def _undoing(execution: ExecutionActor, forward: str | None) -> dict[str, Any]:
    """What an undoing task is told besides: why, and of the task it undoes everything that task had and gave."""
    record: dict[str, Any] = {"cause": execution.error}
    if forward is None:
        return record
    actor = execution.tasks[forward]
    definition = actor.node.definition
    compensates: dict[str, Any] = {
        "task": forward,
        "attempt": actor.attempt,
        "config": definition.config if actor.config is None else actor.config,
        "upstream": {name: execution.tasks[name].result for name in definition.depends_on},
        "idempotency_key": f"{execution.id}/{forward}",
        "result": actor.result,
        "state": str(actor.state),
    }
    is_left = actor.state is not TaskState.COMPLETED and actor.has_left
    if is_left:
        # It failed when it ran again; what is to be undone is of the run before.
        assert actor.left is not None
        compensates |= {key: actor.left[key] for key in ("attempt", "result", "state")}
    if actor.member_of is not None:
        compensates |= {name: value for name, value in execution.variables(actor).items() if name != "input"}
    if definition.child is not None:
        compensates["input"] = actor.input
        if actor.instance:
            compensates["execution"] = actor.instance
    if actor.is_unknown and not is_left:
        # Its agent may have done it, may do it yet, or never began: undoing must be safe in each case.
        compensates["forward"] = UNKNOWN
    upstream = {forward.split("~", 1)[0]: compensates["result"]}
    return {**record, "compensates": compensates, "upstream": upstream}
