"""Deadlines: when the timer of a task is due, and what its firing asks for.

A timer decides nothing. Its firing becomes a fact first (`due`, a command, or an outcome that closes the attempt), and
the log's order says whether it came before a cancel. All functions are pure: `now` is the stream's time, given.
"""

from infinity_matrix_actors.effect import Arm, AskHeartbeat, AskTaken, CloseAttempt, Effect, PublishDue
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_actors.task_actor import TaskActor

#: SDK agents say `taken` after 100 ms; an attempt that is quiet for longer is asked about.
QUIET_ASK_S = 0.25
#: Between two questions about an attempt that is still queued: one CONSUMER.INFO an agent.
QUEUED_ASK_S = 1.0
#: Long timeouts are asked about less often, as a share of them: a busy system, where works are queued for a second,
#: would otherwise spend more on asking than on working.
ASK_SHARE = 0.05
#: A closing that no fact has answered is asked for again after this long.
CLOSE_AGAIN_S = 5.0
#: How the message of an attempt begins that was taken, and took too long.
ATTEMPT_TOOK = "the attempt took longer than"


def attempt_deadline(actor: TaskActor) -> float | None:
    """The time the task's timer is due, or None when it needs none."""
    if actor.is_delayed:
        return actor.retry_at
    if not actor.is_open:
        return None
    definition = actor.node.definition
    assert actor.first_dispatched_at is not None
    assert actor.dispatched_at is not None
    total_at = actor.first_dispatched_at + definition.total_timeout
    if actor.taken_at is not None:
        limits = (definition.timeout, definition.heartbeat_timeout)
        return min([total_at, *(actor.taken_at + limit_s for limit_s in limits if limit_s is not None)])
    if definition.timeout is None and definition.queue_timeout is None:
        return total_at
    return min(total_at, actor.dispatched_at + _ask_after_s(actor, QUIET_ASK_S))


def expire_task(name: str, actor: TaskActor, now: float) -> list[Effect]:
    """What follows when the task's timer fires at `now`."""
    if actor.is_delayed:
        assert actor.retry_at is not None
        if now < actor.retry_at:
            return [Arm(name, actor.retry_at)]
        return [PublishDue(name, actor.attempt + 1), Arm(name, now + CLOSE_AGAIN_S)]
    if not actor.is_open:
        return []
    closing = _overdue(name, actor, now)
    if closing is not None:
        return [closing, Arm(name, now + CLOSE_AGAIN_S)]
    definition = actor.node.definition
    if actor.taken_at is None and (definition.timeout is not None or definition.queue_timeout is not None):
        return [AskTaken(name, actor.attempt)]
    if (
        actor.taken_at is not None
        and definition.heartbeat_timeout is not None
        and now >= actor.taken_at + definition.heartbeat_timeout
    ):
        return [AskHeartbeat(name, actor.attempt)]
    at = attempt_deadline(actor)
    return [] if at is None else [Arm(name, at)]


def _overdue(name: str, actor: TaskActor, now: float) -> CloseAttempt | None:
    definition = actor.node.definition
    assert actor.first_dispatched_at is not None
    if now >= actor.first_dispatched_at + definition.total_timeout:
        message = f"all attempts together took longer than total_timeout, {definition.total_timeout:g} s"
        return CloseAttempt(name, actor.attempt, TaskError(ErrorType.TIMED_OUT, message, retryable=False))
    if actor.taken_at is not None and definition.timeout is not None and now >= actor.taken_at + definition.timeout:
        return _attempt_timed_out(name, actor)
    return None


def _attempt_timed_out(name: str, actor: TaskActor) -> CloseAttempt:
    message = f"{ATTEMPT_TOOK} timeout, {actor.node.definition.timeout:g} s"
    return CloseAttempt(name, actor.attempt, TaskError(ErrorType.TIMED_OUT, message))


def expire_quiet(name: str, actor: TaskActor, now: float, is_queued: bool, seen_taken_at: float | None) -> list[Effect]:
    """What follows once the consumer said whether a quiet attempt is still queued.

    `seen_taken_at` is when this owner first saw it delivered; a quiet agent has its `timeout` from then.
    """
    if not actor.is_open or actor.taken_at is not None:
        return []
    definition = actor.node.definition
    assert actor.dispatched_at is not None
    assert actor.first_dispatched_at is not None
    total_at = actor.first_dispatched_at + definition.total_timeout
    if is_queued:
        queue_at = total_at
        if definition.queue_timeout is not None:
            queue_at = min(queue_at, actor.dispatched_at + definition.queue_timeout)
            if now >= actor.dispatched_at + definition.queue_timeout:
                message = f"no agent took it within queue_timeout, {definition.queue_timeout:g} s"
                return [
                    CloseAttempt(name, actor.attempt, TaskError(ErrorType.TIMED_OUT, message)),
                    Arm(name, now + CLOSE_AGAIN_S),
                ]
        return [Arm(name, min(now + _ask_after_s(actor, QUEUED_ASK_S), queue_at))]
    if definition.timeout is None:
        return [Arm(name, total_at)]
    run_at = (seen_taken_at if seen_taken_at is not None else now) + definition.timeout
    if now >= run_at:
        return [_attempt_timed_out(name, actor), Arm(name, now + CLOSE_AGAIN_S)]
    return [Arm(name, min(run_at, total_at))]


def expire_heartbeat(name: str, actor: TaskActor, now: float, seen_at: float | None) -> list[Effect]:
    """What follows once it is known when the attempt's agent last showed progress.

    `seen_at` is the stream's time of the last `progress` this owner saw, or since when it listens; None is never.
    """
    definition = actor.node.definition
    if not actor.is_open or actor.taken_at is None or definition.heartbeat_timeout is None:
        return []
    silent_at = max(actor.taken_at, seen_at or 0.0) + definition.heartbeat_timeout
    if now < silent_at:
        assert actor.first_dispatched_at is not None
        limits = [silent_at, actor.first_dispatched_at + definition.total_timeout]
        if definition.timeout is not None:
            limits.append(actor.taken_at + definition.timeout)
        return [Arm(name, min(limits))]
    message = f"the agent gave no sign of progress for heartbeat_timeout, {definition.heartbeat_timeout:g} s"
    return [CloseAttempt(name, actor.attempt, TaskError(ErrorType.TIMED_OUT, message)), Arm(name, now + CLOSE_AGAIN_S)]


def _ask_after_s(actor: TaskActor, least_s: float) -> float:
    definition = actor.node.definition
    limits_s = [limit_s for limit_s in (definition.timeout, definition.queue_timeout) if limit_s is not None]
    return max(least_s, ASK_SHARE * min(limits_s))
