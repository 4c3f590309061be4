"""Taking an execution up again: its failed tasks run again, completed results stay. Pure.

What was undone meanwhile must run again too, and so must everything after it.
"""

from collections.abc import Set
from typing import Any

from infinity_matrix_actors.effect import Effect, PublishStatus
from infinity_matrix_actors.group import Group
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.beginning import arm_execution, stop
from infinity_matrix_coordinator.execution import PAUSED, Execution
from infinity_matrix_coordinator.routing import take_up


def reopen(
    execution: Execution,
    skipped: Set[str],
    at: float,
    effects: list[Effect],
    *,
    is_asked_for: bool = False,
    refusal: dict[str, Any] | None = None,
) -> None:
    """Runs what did not complete once more, with the `skipped` among it counted as skipped.

    `is_asked_for`: by somebody; then its time, and the attempts of its tasks, count anew. With a `refusal` nothing of
    the graph runs: what keeps it from beginning is still there.
    """
    undone = set(execution.compensated)
    # What undid these may have done so before it failed: their results stand for nothing any more.
    doubtful = undone if execution.saga is None else undone | execution.saga.maybe_undone(execution.tasks)
    execution.saga = None
    execution.stopped_at = execution.stopped_by = execution.decided_at = execution.finished = None
    execution.error = execution.grace = None
    execution.is_error_answered = False
    execution.reopen_at = None
    if is_asked_for:
        execution.begun_at = at
    execution.runs += 1
    execution.held.clear()
    execution.state = ExecutionState.PAUSED if PAUSED in execution.holds else ExecutionState.RUNNING
    effects.append(PublishStatus(None, execution.state, 0, at))
    again = _again(execution, doubtful) - skipped
    nodes = execution.plan.nodes
    changed = {name for name in again if not again.isdisjoint(nodes[name].definition.depends_on)}
    members_undone = _members(doubtful)
    for name, actor in list(execution.tasks.items()):
        base = name.split("~", 1)[0]
        if name in skipped:
            actor.state = TaskState.SKIPPED
            effects.append(PublishStatus(name, actor.state, actor.attempt, at))
        elif base in again:
            members = members_undone.get(name, set())
            if actor.group is not None:
                _reopen_group(actor, actor.group, members, is_changed=base in changed)
            is_kept = actor.state is TaskState.COMPLETED and not members and name not in doubtful
            if name == base or base in changed or not is_kept:
                actor.reset(is_undone=name in undone, is_asked_for=is_asked_for)
        elif execution.is_undoing(name):
            actor.reset(is_asked_for=is_asked_for)
    execution.settled = sum(execution.is_settled(name) for name in nodes)
    if refusal is not None:
        stop(execution, ExecutionState.FAILED, refusal, at, effects)
        return
    take_up(execution, at, effects)
    arm_execution(execution, effects)


def _again(execution: Execution, undone: Set[str]) -> set[str]:
    """The tasks of the graph that are to run again, with all that come after them."""
    plan = execution.plan
    bases = {name.split("~", 1)[0] for name in undone}
    stack = [
        name for name in plan.nodes if name in execution.tasks and (name in bases or _is_unfinished(execution, name))
    ]
    again: set[str] = set()
    while stack:
        name = stack.pop()
        if name not in again:
            again.add(name)
            stack.extend(plan.nodes[name].subscribers)
    return again


def _is_unfinished(execution: Execution, name: str) -> bool:
    """Whether a task was begun and came to nothing; one that waits or is between two attempts begins anew, too."""
    match execution.tasks[name].state:
        case TaskState.WAITING | TaskState.COMPLETED | TaskState.SKIPPED:
            return False
        case TaskState.FAILED:
            return not execution.plan.nodes[name].failure_is_handled
        case _:
            return True


def _reopen_group(actor: TaskActor, group: Group, members: Set[int], *, is_changed: bool) -> None:
    """Takes a map up where it failed; from the beginning where what comes before it runs again, too."""
    is_loop = group.items is None
    if is_changed or (is_loop and members):
        group.restart()
    elif actor.state is not TaskState.COMPLETED or members:
        group.reopen(members)


def _members(undone: Set[str]) -> dict[str, set[int]]:
    """The places of the instances that were undone, by the task they are instances of, at every depth."""
    found: dict[str, set[int]] = {}
    for name in undone:
        above, mark, index = name.rpartition("~")
        while mark:
            found.setdefault(above, set()).add(int(index))
            above, mark, index = above.rpartition("~")
    return found
