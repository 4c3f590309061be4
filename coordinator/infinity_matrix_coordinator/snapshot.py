"""Snapshots: the state of one execution as plain data, and back. Pure.

What a checkpoint holds. Whoever takes a snapshot up again and folds the facts after it comes to the same state, and to
the same effects, as one who folded all facts from the first.
"""

from operator import attrgetter
from typing import Any

from infinity_matrix_actors.definition import TaskDefinition
from infinity_matrix_actors.fact import Finished, Priority, Started, TaskError
from infinity_matrix_actors.group import Group
from infinity_matrix_actors.plan import Node, Plan
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.saga import Saga

SNAPSHOT_VERSION = 1
#: Fields of an execution that are plain data as they are.
_PLAIN = (
    "begun_at",
    "calls",
    "calls_made",
    "content",
    "decided_at",
    "error",
    "finishes",
    "grace",
    "is_error_answered",
    "reopen_at",
    "runs",
    "settled",
    "slot_key",
    "stopped_at",
)
_SETS = ("holds", "notices", "open")
_TASK_DERIVED = frozenset({"node", "state", "error", "group", "member_of"})
_TASK_PLAIN = tuple(name for name in TaskActor.__slots__ if name not in _TASK_DERIVED)
_STARTED = tuple(name for name in Started.__dataclass_fields__ if name != "content")
_SAGA_PLAIN = ("compensated", "failed", "forward_of", "leased_until", "plain")
_CALL = "im-call"
#: All at once: a third of the time that asking for one after the other takes.
_plain_of, _task_plain_of, _started_of = attrgetter(*_PLAIN), attrgetter(*_TASK_PLAIN), attrgetter(*_STARTED)
_TASK_FIRST = _task_plain_of(TaskActor(Node(TaskDefinition("im-fresh"))))


def snapshot(execution: ExecutionActor) -> dict[str, Any]:
    """The state as JSON can hold it; what has its first value is left out."""
    record: dict[str, Any] = {"v": SNAPSHOT_VERSION, "started": _started(execution.started)}
    record.update(zip(_PLAIN, _plain_of(execution), strict=True))
    if execution.started.content is None:
        # It is the input itself.
        del record["content"]
    record |= {name: sorted(getattr(execution, name)) for name in _SETS}
    record["state"] = str(execution.state)
    record["stopped_by"] = None if execution.stopped_by is None else str(execution.stopped_by)
    record["held"] = list(execution.held)
    record["leaving"] = list(execution.leaving)
    record["signals"] = {name: [list(pair) for pair in kept] for name, kept in execution.signals.items() if kept}
    record["finished"] = None if execution.finished is None else _finished(execution.finished)
    record["saga"] = None if execution.saga is None else _saga(execution.saga)
    record["tasks"] = {name: _task(actor) for name, actor in execution.tasks.items()}
    return record


def restore(record: dict[str, Any], plan: Plan, sequence: int) -> ExecutionActor:
    """The execution of which `record` is the snapshot; raises KeyError, TypeError or ValueError for anything else."""
    if record["v"] != SNAPSHOT_VERSION:
        raise ValueError(f"a snapshot of version {record['v']} cannot be read")
    execution = ExecutionActor(read_started(record), plan, sequence)
    for name in _PLAIN:
        if name in record:
            setattr(execution, name, record[name])
    execution.open = set(record["open"])
    execution.holds, execution.notices = frozenset(record["holds"]), frozenset(record["notices"])
    execution.state = ExecutionState(record["state"])
    execution.stopped_by = None if record["stopped_by"] is None else ExecutionState(record["stopped_by"])
    execution.held = dict.fromkeys(record["held"])
    execution.leaving = list(record["leaving"])
    execution.signals = {name: [(data, content) for data, content in kept] for name, kept in record["signals"].items()}
    if record["finished"] is not None:
        finished = record["finished"]
        execution.finished = Finished(**{**finished, "compensated": tuple(finished["compensated"])})
    for name, task in record["tasks"].items():
        execution.tasks[name] = _restore_task(name, task, plan)
    if record["saga"] is not None:
        execution.saga = _restore_saga(record["saga"], execution)
    return execution


def read_started(record: dict[str, Any]) -> Started:
    """How the execution began of which `record` is the snapshot; raises KeyError, TypeError or ValueError."""
    started = record["started"]
    return Started(**{**started, "priority": Priority(started["priority"])})


def _started(fact: Started) -> dict[str, Any]:
    record = dict(zip(_STARTED, _started_of(fact), strict=True))
    record["priority"] = str(fact.priority)
    return record


def _finished(fact: Finished) -> dict[str, Any]:
    return {name: getattr(fact, name) for name in Finished.__dataclass_fields__}


def _task(actor: TaskActor) -> dict[str, Any]:
    # Most tasks have most fields at their first value; those are not written.
    values = zip(_TASK_PLAIN, _task_plain_of(actor), _TASK_FIRST, strict=True)
    record = {name: value for name, value, first in values if value is not first and value != first}
    record["waiting_for"] = actor.waiting_for
    record["state"] = str(actor.state)
    if actor.error is not None:
        record["error"] = actor.error.record()
    if actor.member_of is not None:
        record["member_of"] = list(actor.member_of)
    if actor.group is not None:
        record["group"] = _group(actor.group)
    if actor.node.definition.id == _CALL:
        definition = actor.node.definition
        record["call"] = {"agent": definition.agent, "config": definition.config, "timeout": definition.timeout}
    return record


def _restore_task(name: str, record: dict[str, Any], plan: Plan) -> TaskActor:
    record = dict(record)
    call = record.pop("call", None)
    if call is not None:
        limit_s = call["timeout"]
        definition = TaskDefinition(
            _CALL,
            call["agent"],
            config=call["config"],
            timeout=limit_s,
            queue_timeout=limit_s,
            total_timeout=2 * limit_s,
        )
        actor = TaskActor(Node(definition))
    else:
        actor = TaskActor(plan.node(name))
    actor.state = TaskState(record.pop("state"))
    error, member_of, group = record.pop("error", None), record.pop("member_of", None), record.pop("group", None)
    actor.error = None if error is None else TaskError(**error)
    actor.member_of = None if member_of is None else (member_of[0], member_of[1])
    actor.group = None if group is None else _restore_group(group)
    for field, value in record.items():
        setattr(actor, field, value)
    return actor


def _group(group: Group) -> dict[str, Any]:
    return {
        "items": group.items,
        "next": group.next,
        "again": group.again,
        "running": sorted(group.running),
        "settled": [
            [index, str(state), group.results.get(index), group.attempts.get(index, 0)]
            for index, state in group.states.items()
        ],
        "attempts": [[index, count] for index, count in group.attempts.items() if index not in group.states],
        "contents": [[index, content] for index, content in group.contents.items()],
        "first_error": group.first_error,
        "failures": group.failures,
        "is_done": group.is_done,
        "is_cancelled": group.is_cancelled,
    }


def _restore_group(record: dict[str, Any]) -> Group:
    group = Group(
        items=record["items"],
        next=record["next"],
        again=list(record["again"]),
        running=set(record["running"]),
        first_error=record["first_error"],
        failures=record["failures"],
        is_done=record["is_done"],
        is_cancelled=record["is_cancelled"],
    )
    for index, state, result, attempts in record["settled"]:
        group.states[index] = TaskState(state)
        group.results[index] = result
        group.attempts[index] = attempts
    group.attempts.update(dict(record["attempts"]))
    group.contents.update(dict(record["contents"]))
    return group


def _saga(saga: Saga) -> dict[str, Any]:
    record = {name: getattr(saga, name) for name in _SAGA_PLAIN}
    return {
        **record,
        "after": {undo: sorted(before) for undo, before in saga.after.items()},
        "running": sorted(saga.running),
    }


def _restore_saga(record: dict[str, Any], execution: ExecutionActor) -> Saga:
    saga = Saga(execution.plan, {})
    for name in _SAGA_PLAIN:
        setattr(saga, name, record[name])
    saga.after = {undo: set(before) for undo, before in record["after"].items()}
    saga.running = set(record["running"])
    return saga
