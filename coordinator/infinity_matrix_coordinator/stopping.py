"""How an execution ends: the barrier, the saga, the terminal state. Pure."""

from infinity_matrix_actors.effect import Arm, Disarm, Effect, PublishStatus
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_actors.state import ExecutionState, TaskState

from infinity_matrix_coordinator.beginning import dispatch, mark, prepare
from infinity_matrix_coordinator.callbacks import execution_failed
from infinity_matrix_coordinator.execution import PAUSED, Execution
from infinity_matrix_coordinator.saga import Saga

#: The error of an attempt that nobody had taken when its execution was stopped.
NOT_BEGUN = TaskError(ErrorType.CANCELLED, "stopped before any agent took it", retryable=False)


def conclude(execution: Execution, at: float, effects: list[Effect]) -> None:
    """Decides the terminal state, or goes on with the saga, once no dispatched attempt is without its outcome."""
    if execution.is_decided:
        return
    while execution.saga is None:
        if execution.open or execution.reopen_at is not None:
            return
        if execution.stopped_by is None:
            if execution.is_complete:
                _decide(execution, ExecutionState.COMPLETED, at, effects)
            return
        # Else it goes on after all; it may have nothing left to do, or have failed again at once.
        if execution_failed(execution, at, effects):
            _begin_saga(execution, at, effects)
    go_on_with_saga(execution, at, effects)


def go_on_with_saga(execution: Execution, at: float, effects: list[Effect]) -> None:
    """Begins the compensations whose turn it is, and decides once all are settled."""
    saga = execution.saga
    assert saga is not None
    assert execution.stopped_by is not None
    while _begin_undoing(execution, saga, at, effects):
        pass  # one could not begin, and those that waited for it may
    if saga.is_over and not execution.notices:
        _decide(execution, ExecutionState.FAILED if saga.failed else execution.stopped_by, at, effects)


def _begin_undoing(execution: Execution, saga: Saga, at: float, effects: list[Effect]) -> bool:
    """Begins what may begin now; answers whether any of it failed by that."""
    has_failed = False
    for undo in saga.ready():
        actor = execution.task(undo)
        leased_until = saga.leased_until.get(undo, at)
        if leased_until > at:
            if actor.retry_at is None:
                actor.retry_at = leased_until
                effects.append(Arm(undo, leased_until))
            continue
        saga.begin(undo)
        actor.error = prepare(execution, actor)
        if actor.error is None:
            dispatch(execution, undo, actor, at, effects)
            continue
        has_failed = True
        actor.state, actor.completed_at = TaskState.FAILED, at
        effects.append(PublishStatus(undo, actor.state, 0, at, actor.error.record()))
        saga.settle(undo, is_completed=False)
    return has_failed


def _begin_saga(execution: Execution, at: float, effects: list[Effect]) -> None:
    for name in (*execution.plan.nodes, *[n for n, actor in execution.tasks.items() if actor.member_of is not None]):
        actor = execution.task(name)
        if not actor.is_settled:
            if actor.is_delayed:
                effects.append(Disarm(name))
            mark(execution, name, actor, TaskState.CANCELLED, at, effects)
    execution.saga = Saga(execution.plan, execution.tasks)
    if not execution.saga.is_over:
        if PAUSED not in execution.holds:
            execution.state = ExecutionState.COMPENSATING
        effects.append(Disarm(None))
        effects.append(PublishStatus(None, execution.state, 0, at, execution.error))


def _decide(execution: Execution, state: ExecutionState, at: float, effects: list[Effect]) -> None:
    if execution.notices:
        return
    execution.state = state
    execution.decided_at = at
    # Who takes it up again wants it to go on, though it was paused when it ended.
    execution.holds = frozenset()
    effects.append(Disarm(None))
    effects.append(execution.finish_effect())
    effects.append(PublishStatus(None, state, 0, at, execution.error))
