"""Taking an execution up again: its failed tasks run again, completed results stay. Pure.

What was undone meanwhile must run again too, and so must everything after it.
"""

from collections.abc import Set

from infinity_matrix_actors.effect import Effect, PublishStatus
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.beginning import arm_execution
from infinity_matrix_coordinator.execution import PAUSED, Execution
from infinity_matrix_coordinator.routing import take_up


def reopen(execution: Execution, skipped: Set[str], at: float, effects: list[Effect]) -> None:
    """Runs what failed or was cancelled once more, with the `skipped` among it counted as skipped."""
    undone = set(execution.compensated)
    execution.saga = None
    execution.stopped_at = execution.stopped_by = execution.decided_at = execution.finished = None
    execution.error = execution.grace = None
    execution.is_error_answered = False
    execution.begun_at = at
    execution.held.clear()
    execution.state = ExecutionState.PAUSED if PAUSED in execution.holds else ExecutionState.RUNNING
    effects.append(PublishStatus(None, execution.state, 0, at))
    again = _again(execution, undone) - skipped
    for name, actor in list(execution.tasks.items()):
        if name in skipped:
            actor.state = TaskState.SKIPPED
            effects.append(PublishStatus(name, actor.state, actor.attempt, at))
            continue
        if actor.group is not None and name.split("~", 1)[0] in again:
            _reopen_group(name, actor, undone)
        if name in again or execution.is_undoing(name) or (actor.member_of is not None and not actor.is_settled):
            actor.reset()
    execution.settled = sum(execution.is_settled(name) for name in execution.plan.nodes)
    take_up(execution, at, effects)
    arm_execution(execution, effects)


def _again(execution: Execution, undone: Set[str]) -> set[str]:
    """The tasks of the graph that are to run again, with all that come after them."""
    plan = execution.plan
    bases = {name.split("~", 1)[0] for name in undone}
    stack = [
        name
        for name, actor in execution.tasks.items()
        if name in plan.nodes
        and (
            name in bases
            or actor.state is TaskState.CANCELLED
            or (actor.state is TaskState.FAILED and not plan.nodes[name].failure_is_handled)
        )
    ]
    again: set[str] = set()
    while stack:
        name = stack.pop()
        if name not in again:
            again.add(name)
            stack.extend(plan.nodes[name].subscribers)
    return again


def _reopen_group(name: str, actor: TaskActor, undone: Set[str]) -> None:
    """Takes a map up where it failed; begins again what had completed, because what comes before it has changed."""
    assert actor.group is not None
    members = _undone_members(name, undone)
    is_loop = actor.group.items is None
    if actor.state is TaskState.COMPLETED or (is_loop and members):
        actor.group.restart()
    else:
        actor.group.reopen(members)


def _undone_members(name: str, undone: Set[str]) -> set[int]:
    """The places of a task's own instances that were undone."""
    prefix = f"{name}~"
    return {int(one[len(prefix) :].split("~", 1)[0]) for one in undone if one.startswith(prefix)}
