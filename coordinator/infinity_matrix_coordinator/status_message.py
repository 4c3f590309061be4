"""The status message: one transition as JSON, for people and tails."""

from functools import lru_cache

from infinity_matrix_actors.effect import PublishStatus
from infinity_matrix_actors.state import ExecutionState
from infinity_matrix_bus.codec import encode, rfc3339

from infinity_matrix_coordinator.execution_actor import ExecutionActor


def status_payload(execution: ExecutionActor, effect: PublishStatus, *, with_error: bool = True) -> bytes:
    """The transition as JSON; raises PayloadTooLarge when its error is too long.

    Put together by hand: there are two for each task and two for each execution, and the encoder takes 3 times as long.
    """
    error = f',"error":{encode(effect.error).decode()}' if effect.error is not None and with_error else ""
    progress = _percent(execution.settled, len(execution.plan.nodes), execution.state is ExecutionState.COMPLETED)
    return (
        f'{_head(execution.id, execution.plan.definition.name)}{_quoted(effect.task)},"status":"{effect.state}",'
        f'"attempt":{effect.attempt},"at":"{rfc3339(effect.at)}","progress":{progress}{error}}}'
    ).encode()


@lru_cache(maxsize=4096)
def _quoted(text: str | None) -> str:
    return encode(text).decode()


@lru_cache(maxsize=4096)
def _head(execution: str, workflow: str) -> str:
    # Anyone permitted may start an execution of any id; only what is all letters and digits is sure to need no escape.
    id = f'"{execution}"' if execution.isalnum() else encode(execution).decode()
    return f'{{"v":1,"execution":{id},"workflow":{_quoted(workflow)},"task":'


@lru_cache(maxsize=4096)
def _percent(settled: int, total: int, is_completed: bool) -> float:
    """What `progress_percent` says, rounded: a few numbers, again and again."""
    return 100.0 if is_completed else round(100.0 * settled / total, 1)
