"""What is done about failures beyond what is always done: actions from the definition, or from who holds the workflow.

A question to the host is a task like any other, `im-call~<n>`, done by an agent; its result is the list of actions. No
answer within `callback_timeout` means the default. Pure.
"""

from typing import Any

from infinity_matrix_actors.definition import ASK_ACTION, NOTIFY_AGENT, TaskDefinition, host_agent
from infinity_matrix_actors.effect import Arm, Effect, PublishStatus, PublishWork
from infinity_matrix_actors.fact import TaskError
from infinity_matrix_actors.plan import Node
from infinity_matrix_actors.retry import delay_s
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.beginning import arm, stop
from infinity_matrix_coordinator.execution import Execution
from infinity_matrix_coordinator.reopening import reopen
from infinity_matrix_coordinator.routing import settle

NOTIFY_TIMEOUT_S = 60.0
#: Questions and notifications of one execution; beyond that the default applies, unasked.
CALLS_MAX = 1000
#: A year; a delay beyond it is none.
DELAY_MAX_S = 365 * 86_400
Actions = list[dict[str, Any]]


def task_failed(
    execution: Execution, name: str, actor: TaskActor, error: TaskError, at: float, effects: list[Effect]
) -> None:
    """A task has spent its retries: does what `on_task_failure` says, and fails it otherwise."""
    policy = execution.plan.definition.on_task_failure
    if policy is None or execution.stopped_at is not None:
        settle(execution, name, actor, TaskState.FAILED, at, effects)
        return
    if _is_asked(policy) and execution.calls_made < CALLS_MAX:
        actor.state = TaskState.RETRYING
        question = {"callback": "on_task_failure", "task": name, "attempt": actor.attempt, "error": error.record()}
        _ask(execution, name, question, at, effects)
        return
    _apply_to_task(execution, name, actor, [a for a in policy if a["action"] != ASK_ACTION], at, effects)


def execution_failed(execution: Execution, at: float, effects: list[Effect]) -> bool:
    """Asks `on_error`, once, before an execution without open attempts fails. Answers whether it goes on failing."""
    policy = execution.plan.definition.on_error
    if policy is None or execution.is_error_answered or execution.stopped_by is not ExecutionState.FAILED:
        return True
    if _is_asked(policy) and execution.calls_made < CALLS_MAX:
        execution.is_error_answered = True
        _ask(execution, None, {"callback": "on_error", "error": execution.error}, at, effects)
        return False
    execution.is_error_answered = True
    return _apply_to_execution(execution, [a for a in policy if a["action"] != ASK_ACTION], at, effects)


def answered(execution: Execution, call: str, actor: TaskActor, at: float, effects: list[Effect]) -> None:
    """A question has its answer, or will have none: then there are no actions."""
    if call in execution.notices:
        execution.notices -= {call}
        actor.state = TaskState.COMPLETED if actor.error is None else TaskState.FAILED
        return
    about = execution.calls.pop(call)
    actor.state = TaskState.COMPLETED if actor.error is None else TaskState.FAILED
    actions = actions_of(actor.result) if actor.error is None else []
    if about is None:
        _apply_to_execution(execution, actions, at, effects)
        return
    subject = execution.tasks[about]
    if execution.stopped_at is not None:
        settle(execution, about, subject, TaskState.FAILED, at, effects)
    else:
        _apply_to_task(execution, about, subject, actions, at, effects)


def actions_of(result: Any) -> Actions:
    """The actions in an answer; what is no action is passed over."""
    found = [result] if isinstance(result, dict) else result
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _is_asked(policy: tuple[dict[str, Any], ...]) -> bool:
    return any(action["action"] == ASK_ACTION for action in policy)


def _apply_to_task(
    execution: Execution, name: str, actor: TaskActor, actions: Actions, at: float, effects: list[Effect]
) -> None:
    error = actor.error
    assert error is not None
    for action in actions:
        match action.get("action"):
            case "notify":
                _notify(execution, f"on_task_failure:{name}", action, {**error.record(), "task": name}, at, effects)
            case "retry" if actor.attempt > 0 and actor.attempt - actor.base < _attempts(action):
                wait_s = _seconds(action.get("delay"))
                if wait_s is None:
                    wait_s = delay_s(actor.node.definition.retry, actor.attempt, error, execution.id, name)
                actor.state = TaskState.RETRYING
                actor.retry_at = at + wait_s
                effects.append(PublishStatus(name, actor.state, actor.attempt, at, error.record()))
                effects.append(Arm(name, actor.retry_at))
                return
            case "skip":
                settle(execution, name, actor, TaskState.SKIPPED, at, effects)
                return
            case "compensate":
                stop(execution, ExecutionState.FAILED, {**error.record(), "task": name}, at, effects)
                break
            case "fail":
                break
    settle(execution, name, actor, TaskState.FAILED, at, effects)


def _apply_to_execution(execution: Execution, actions: Actions, at: float, effects: list[Effect]) -> bool:
    for action in actions:
        match action.get("action"):
            case "notify":
                _notify(execution, "on_error", action, execution.error, at, effects)
            case "retry":
                failed = execution.failed_tasks()
                tries = _attempts(action)
                if failed and all(0 < _tried(execution, name) < tries for name in failed):
                    reopen(execution, set(), at, effects)
                    return False
            case "skip":
                failed = execution.failed_tasks()
                if failed:
                    reopen(execution, set(failed), at, effects)
                    return False
            case "fail" | "compensate":
                break
    return True


def _tried(execution: Execution, name: str) -> int:
    """The attempts of a failed task; of one with instances those of the failed one that was tried most."""
    actor = execution.tasks[name]
    if actor.group is None:
        return actor.attempt
    members = (f"{name}~{index}" for index, state in actor.group.states.items() if state is TaskState.FAILED)
    return max((_tried(execution, member) for member in members), default=0)


def _attempts(action: dict[str, Any]) -> int:
    """How many attempts a retry may make in all; unless it says so, one more than one."""
    attempts = action.get("max_attempts")
    return attempts if isinstance(attempts, int) and not isinstance(attempts, bool) else 2


def _seconds(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= DELAY_MAX_S else None  # type: ignore[arg-type, operator]


def _ask(execution: Execution, about: str | None, config: dict[str, Any], at: float, effects: list[Effect]) -> None:
    limit_s = execution.plan.definition.callback_timeout
    call = _call(execution, host_agent(execution.plan.digest), config, limit_s, at, effects)
    execution.calls[call] = about
    execution.open.add(call)


def _notify(
    execution: Execution, event: str, action: dict[str, Any], error: Any, at: float, effects: list[Effect]
) -> None:
    if execution.calls_made >= CALLS_MAX:
        return
    config: dict[str, Any] = {key: action[key] for key in ("recipients", "title", "message") if key in action}
    config |= {"event": event, "error": error}
    call = _call(execution, NOTIFY_AGENT, config, NOTIFY_TIMEOUT_S, at, effects)
    execution.notices |= {call}


def _call(
    execution: Execution, agent: str, config: dict[str, Any], limit_s: float, at: float, effects: list[Effect]
) -> str:
    """Sends a work out that is no task of the graph. It goes out also while the execution is paused or stopped."""
    execution.calls_made += 1
    call = f"im-call~{execution.calls_made}"
    definition = TaskDefinition(
        "im-call", agent, config=config, timeout=limit_s, queue_timeout=limit_s, total_timeout=2 * limit_s
    )
    actor = execution.tasks[call] = TaskActor(Node(definition))
    actor.state = TaskState.QUEUED
    actor.attempt, actor.is_open = 1, True
    actor.dispatched_at = actor.first_dispatched_at = at
    effects.append(PublishWork(call, 1, at))
    effects.append(PublishStatus(call, actor.state, 1, at))
    arm(call, actor, effects)
    return call
