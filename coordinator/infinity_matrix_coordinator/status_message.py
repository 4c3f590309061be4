"""The status message: one transition as JSON, for people and tails."""

from functools import lru_cache

from infinity_matrix_actors.effect import PublishStatus
from infinity_matrix_bus.codec import encode, rfc3339

from infinity_matrix_coordinator.execution_actor import ExecutionActor


def status_payload(execution: ExecutionActor, effect: PublishStatus, *, with_error: bool = True) -> bytes:
    """The transition as JSON; raises PayloadTooLarge when its error is too long.

    Put together by hand: there are two for each task and two for each execution, and the encoder takes 3 times as long.
    """
    error = f',"error":{encode(effect.error).decode()}' if effect.error is not None and with_error else ""
    return (
        f'{{"v":1,"execution":{_id(execution.id)},"workflow":{_quoted(execution.plan.definition.name)},'
        f'"task":{_quoted(effect.task)},"status":"{effect.state}","attempt":{effect.attempt},'
        f'"at":"{rfc3339(effect.at)}","progress":{round(execution.progress_percent(), 1)}{error}}}'
    ).encode()


@lru_cache(maxsize=4096)
def _quoted(text: str | None) -> str:
    return encode(text).decode()


def _id(execution: str) -> str:
    # Anyone permitted may start an execution of any id; only what is all letters and digits is sure to need no escape.
    return f'"{execution}"' if execution.isalnum() else encode(execution).decode()
