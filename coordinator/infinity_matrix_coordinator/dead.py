"""Which failures are dead letters: work that could not be done, not work that an agent did and failed at. Pure."""

from infinity_matrix_actors.effect import Effect, PublishDead
from infinity_matrix_actors.fact import ErrorType
from infinity_matrix_actors.names import RESERVED
from infinity_matrix_actors.state import TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.deadlines import ATTEMPT_TOOK

#: No agent could do it, whatever it is.
_NOT_DOABLE = frozenset({ErrorType.POISON, ErrorType.UNDELIVERABLE, ErrorType.GARBAGE})


def is_dead(actor: TaskActor) -> bool:
    """Whether a task failed for good at work that no agent could do, or that no agent is known to have taken."""
    error = actor.error
    if error is None or actor.state is not TaskState.FAILED or not actor.attempt:
        return False
    definition = actor.node.definition
    if definition.is_waiting or definition.child is not None or definition.id.startswith(RESERVED):
        return False
    if error.type in _NOT_DOABLE:
        return True
    is_closed = actor.closed == actor.attempt and error.type == ErrorType.TIMED_OUT
    return is_closed and actor.taken_at is None and not error.message.startswith(ATTEMPT_TOOK)


def bury(name: str, actor: TaskActor, effects: list[Effect]) -> None:
    """Adds the dead letter of a task that has just failed for good, if it is one."""
    if is_dead(actor):
        effects.append(PublishDead(name, actor.attempt))
