"""Who hears of a completion, and what they decide: the graph goes on. Pure."""

from collections import deque
from collections.abc import Iterable

from infinity_matrix_actors.effect import Effect, PublishStatus
from infinity_matrix_actors.fact import TaskError
from infinity_matrix_actors.state import TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.beginning import begin, feed, hear, mark
from infinity_matrix_coordinator.dead import bury
from infinity_matrix_coordinator.execution import Execution


def decide(execution: Execution, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> bool:
    """All upstream tasks are settled: begin, skip or fail the task. Answers whether it is settled by that."""
    if not actor.runs():
        return mark(execution, name, actor, TaskState.SKIPPED, at, effects)
    answer = actor.asks_condition(execution.tasks, execution.content)
    if isinstance(answer, TaskError):
        actor.error = answer
        return mark(execution, name, actor, TaskState.FAILED, at, effects)
    if not answer:
        return mark(execution, name, actor, TaskState.SKIPPED, at, effects)
    return begin(execution, name, actor, at, effects)


def route(execution: Execution, completions: deque[TaskActor], at: float, effects: list[Effect]) -> None:
    """Routes completions to their subscribers, and those that follow at once to theirs, without recursion."""
    while completions and execution.stopped_at is None:
        settled = completions.popleft()
        for subscriber in settled.node.subscribers:
            listener = execution.task(subscriber)
            if (
                listener.hears(settled.state)
                and execution.stopped_at is None
                and decide(execution, subscriber, listener, at, effects)
            ):
                completions.append(listener)


def begin_ready(execution: Execution, names: Iterable[str], at: float, effects: list[Effect]) -> None:
    """Decides tasks whose upstream is settled already: the roots, or what is ready when the graph is taken up again."""
    completions: deque[TaskActor] = deque()
    for name in names:
        actor = execution.task(name)
        if execution.stopped_at is None and decide(execution, name, actor, at, effects):
            completions.append(actor)
    route(execution, completions, at, effects)


def take_up(execution: Execution, at: float, effects: list[Effect]) -> None:
    """Goes on with a graph of which some tasks are settled and the others have not begun, or are under way."""
    plan = execution.plan
    ready = []
    for name, node in plan.nodes.items():
        actor = execution.task(name)
        if actor.is_settled or actor.state is not TaskState.WAITING:
            continue
        actor.joins(execution.task(upstream) for upstream in node.definition.depends_on)
        if actor.waiting_for == 0:
            ready.append(name)
    begin_ready(execution, ready, at, effects)


def settle(
    execution: Execution, name: str, actor: TaskActor, state: TaskState, at: float, effects: list[Effect]
) -> None:
    """Settles a task whose outcome came, and makes it known to who waits for it."""
    saga = execution.saga
    if saga is not None and name in saga.running:
        actor.state = state
        actor.completed_at = at
        error = actor.error.record() if actor.error is not None else None
        effects.append(PublishStatus(name, state, actor.attempt, at, error))
        bury(name, actor, effects)
        saga.settle(name, state is TaskState.COMPLETED)
        return
    mark(execution, name, actor, state, at, effects)
    while actor.member_of is not None:
        name = hear(execution, name, actor)
        actor = execution.tasks[name]
        if not feed(execution, name, actor, at, effects):
            return
    if actor.node.subscribers:
        route(execution, deque((actor,)), at, effects)
