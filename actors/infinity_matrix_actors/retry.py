"""Whether a failed attempt is tried again, and when.

Jitter comes from a hash, so every coordinator finds the same time.
"""

from hashlib import blake2b

from infinity_matrix_actors.definition import Backoff, RetryDefinition
from infinity_matrix_actors.fact import TaskError

_HASH_RANGE = 2**64


def is_retried(retry: RetryDefinition, attempt: int, error: TaskError) -> bool:
    """Whether another attempt follows attempt number `attempt` (from 1) that failed with `error`."""
    return error.retryable and attempt < retry.max_attempts and error.type not in retry.non_retryable


def delay_s(retry: RetryDefinition, attempt: int, error: TaskError, execution: str, task: str) -> float:
    """Seconds from the failure of attempt number `attempt` to the next.

    An agent's `retry_after` is taken as it is. Jitter is a share of the delay either way: delay x (1 +- jitter).
    """
    if error.retry_after is not None:
        return max(0.0, error.retry_after)
    delay = retry.initial_delay
    if retry.backoff is Backoff.LINEAR:
        delay = retry.initial_delay * attempt
    elif retry.backoff is Backoff.EXPONENTIAL:
        delay = _grown_s(retry, attempt)
    delay = min(delay, retry.max_delay)
    digest = blake2b(f"{execution}/{task}/{attempt}".encode(), digest_size=8).digest()
    unit = int.from_bytes(digest, "big") / _HASH_RANGE
    return delay * (1.0 + retry.jitter * (2.0 * unit - 1.0))


def _grown_s(retry: RetryDefinition, attempt: int) -> float:
    try:
        return retry.initial_delay * retry.multiplier ** (attempt - 1)
    except OverflowError:
        return retry.max_delay if retry.initial_delay else 0.0
