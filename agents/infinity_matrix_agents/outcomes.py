"""What a handler returned or raised, as an outcome's payload."""

import socket
import time
from typing import Any

from infinity_matrix_actors.errors import PayloadNotEncodable, PayloadTooLarge
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_bus.artifacts import OFFLOAD_BYTES
from infinity_matrix_bus.codec import encode, rfc3339
from infinity_matrix_bus.facts import failed_payload

from infinity_matrix_agents.failure import Failure

MESSAGE_TEXT_MAX = 4096
HOST = socket.gethostname().split(".")[0]


def completed(result: Any, started_at: float, instance: str) -> bytes:
    """The payload of a result; that of a failure when it has no JSON. Raises PayloadTooLarge above 256 KiB."""
    record = {"started_at": rfc3339(started_at), "instance": instance, "result": result}
    try:
        return encode(record, "the result", OFFLOAD_BYTES)
    except PayloadNotEncodable as error:
        failure = TaskError(ErrorType.RESULT_NOT_ENCODABLE, str(error)[:MESSAGE_TEXT_MAX], retryable=False)
    return failed_payload(failure, started_at, instance)


def too_large(error: PayloadTooLarge, started_at: float, instance: str) -> bytes:
    return failed_payload(TaskError(ErrorType.PAYLOAD_TOO_LARGE, str(error), retryable=False), started_at, instance)


def failed(error: BaseException, started_at: float, instance: str, *, is_repeated: bool = False) -> bytes:
    """The payload of what a handler raised: a Failure as it says, anything else as retryable.

    `is_repeated`: someone may have begun it before, and done it, and died of that.
    """
    if isinstance(error, Failure):
        failure = TaskError(
            str(error.type), str(error.message)[:MESSAGE_TEXT_MAX], error.retryable is not False, error.retry_after
        )
    else:
        failure = TaskError(type(error).__name__, str(error)[:MESSAGE_TEXT_MAX])
    return failed_payload(failure, started_at, instance, is_closed=is_repeated)


def cancelled(reason: str, started_at: float | None, instance: str, *, is_repeated: bool = False) -> bytes:
    error = TaskError(ErrorType.CANCELLED, reason or "cancelled", retryable=False)
    return failed_payload(error, started_at, instance, is_closed=is_repeated)


def refused(reason: str, instance: str) -> bytes:
    error = TaskError(ErrorType.PAYLOAD_TOO_LARGE, f"the server refused the result: {reason}", retryable=False)
    return failed_payload(error, time.time(), instance)


def poison(deliveries: int, begun: int, instance: str) -> bytes:
    message = (
        f"delivered {deliveries} times, begun again {begun} times, without an outcome: "
        "the agent dies of it, or never answers"
    )
    error = TaskError(ErrorType.POISON, message, retryable=False)
    return failed_payload(error, time.time(), instance, is_closed=True)
