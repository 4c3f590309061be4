"""What is done about failures beyond what is always done: actions from the definition, or from who holds the workflow.

A question to the host is a task like any other, `im-call~<n>`, done by an agent; its result is the list of actions. No
answer within `callback_timeout` means the default. Pure.
"""

from typing import Any

from infinity_matrix_actors.definition import ASK_ACTION, NOTIFY_AGENT, TaskDefinition, host_agent
from infinity_matrix_actors.duration import parse_duration
from infinity_matrix_actors.effect import Arm, Effect, PublishStatus, PublishWork
from infinity_matrix_actors.errors import InvalidDefinition
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
INVALID_ANSWER = "InvalidAnswer"
ACTIONS = ("retry", "skip", "fail", "compensate", "notify")
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
    actions: Actions = []
    if actor.error is None:
        try:
            actions = actions_of(actor.result)
        except (ValueError, InvalidDefinition) as problem:
            actor.error = TaskError(INVALID_ANSWER, str(problem), retryable=False)
    actor.state = TaskState.COMPLETED if actor.error is None else TaskState.FAILED
    if actor.error is not None:
        effects.append(PublishStatus(call, actor.state, actor.attempt, at, actor.error.record()))
    if about is None:
        _apply_to_execution(execution, actions, at, effects)
        return
    subject = execution.tasks[about]
    if execution.stopped_at is not None:
        settle(execution, about, subject, TaskState.FAILED, at, effects)
    else:
        _apply_to_task(execution, about, subject, actions, at, effects)


def actions_of(result: Any) -> Actions:
    """The actions in an answer, whoever gave it; raises ValueError or InvalidDefinition for one that is none."""
    found = [result] if isinstance(result, dict) else [] if result is None else result
    if not isinstance(found, list):
        raise ValueError(f"the answer {result!r:.100} is neither an action nor a list of actions")
    return [_checked(one) for one in found]


def _checked(action: Any) -> dict[str, Any]:
    kind = action.get("action") if isinstance(action, dict) else None
    if kind not in ACTIONS:
        raise ValueError(f"{action!r:.100} is no action; they are {', '.join(ACTIONS)}")
    checked = dict(action)
    if checked.get("delay") is not None:
        # As people write it, which is how it stands in definitions.
        checked["delay"] = parse_duration(checked["delay"], f"delay of {kind}", zero_allowed=True)
    if kind == "notify" and not checked.get("recipients"):
        raise ValueError("notify has no recipients")
    attempts = checked.get("max_attempts")
    if attempts is not None and (not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1):
        raise ValueError(f"max_attempts is {attempts!r:.40}, it must be a whole number above 0")
    return checked


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
            case "retry" if _is_tried(actor) and actor.attempt - actor.tried_before < _attempts(action):
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
    # Whoever cancelled it meanwhile wants it to end, and its own time goes on no longer for being asked.
    may_go_on = execution.stopped_by is ExecutionState.FAILED and not execution.is_timed_out
    failed = execution.failed_tasks() if may_go_on else []
    for action in actions:
        match action.get("action"):
            case "notify":
                _notify(execution, "on_error", action, execution.error, at, effects)
            case "retry" if failed and all(0 < _tried(execution, name) < _attempts(action) for name in failed):
                _reopen_later(execution, failed, _seconds(action.get("delay")), at, effects)
                return False
            case "skip" if failed:
                reopen(execution, set(failed), at, effects)
                return False
            case "fail" | "compensate":
                break
    return True


def _reopen_later(
    execution: Execution, failed: list[str], wait_s: float | None, at: float, effects: list[Effect]
) -> None:
    """Takes it up again after so long, or after the longest backoff of what failed."""
    if wait_s is None:
        waits = (
            delay_s(actor.node.definition.retry, max(1, _tried(execution, name)), actor.error, execution.id, name)
            for name in failed
            if (actor := execution.tasks[name]).error is not None
        )
        wait_s = max(waits, default=0.0)
    if wait_s == 0.0:
        reopen(execution, set(), at, effects)
        return
    execution.reopen_at = at + wait_s
    effects.append(Arm(None, execution.reopen_at))


def _is_tried(actor: TaskActor) -> bool:
    """Whether a task is done by trying: what waits, for people or time, has nothing that could be tried again."""
    return actor.attempt > 0 and not actor.node.definition.is_waiting


def _tried(execution: Execution, name: str) -> int:
    """The attempts of a failed task; of one with instances those of the failed one that was tried most."""
    actor = execution.tasks[name]
    if actor.group is None:
        return actor.attempt - actor.tried_before if _is_tried(actor) else 0
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
