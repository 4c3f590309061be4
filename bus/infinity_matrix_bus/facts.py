"""Facts as messages: the payload of each kind, and back.

What cannot be read is no fact. The one exception: garbage on a genuine outcome subject has taken the attempt's only
slot, so the attempt has failed.
"""

import sys
from typing import Any

from infinity_matrix_actors.fact import (
    Command,
    CommandKind,
    Due,
    ErrorType,
    Fact,
    Finished,
    Outcome,
    Priority,
    Signal,
    Started,
    Taken,
    TaskError,
)

from infinity_matrix_bus.codec import Undecodable, decode, decode_record, encode, parse_rfc3339, rfc3339
from infinity_matrix_bus.subjects import FactSubject

WIRE_VERSION = 1
#: The version of facts that say none.
_DECIDE_FIRST = 1
_ERROR_TEXT_MAX = 4096
_ERROR_TYPE_MAX = 256
#: A year; a `retry_after` beyond it is none.
_DELAY_MAX_S = 365 * 86_400


def started_payload(fact: Started) -> bytes:
    record = {
        "v": WIRE_VERSION,
        "kind": "started",
        "workflow": fact.workflow,
        "definition": fact.definition,
        "input": fact.input,
        "cause": fact.cause,
        "decide": fact.decide,
    }
    if fact.priority is not Priority.NORMAL:
        record["priority"] = str(fact.priority)
    if fact.seed:
        record["seed"] = fact.seed
    if fact.skipped:
        record["skipped"] = True
    return encode(record, "the input")


def closed_payload(error: TaskError, instance: str) -> bytes:
    """The outcome a coordinator gives to an attempt it closes."""
    return failed_payload(error, None, instance, is_closed=True)


def failed_payload(
    error: TaskError, started_at: float | None = None, instance: str = "", *, is_closed: bool = False
) -> bytes:
    """The outcome of an attempt that failed. `is_closed`: nobody knows whether it was done all the same."""
    record: dict[str, Any] = {"error": error.record()}
    if is_closed:
        record["closed"] = True
    if started_at is not None:
        record["started_at"] = rfc3339(started_at)
    if instance:
        record["instance"] = instance
    return encode(record)


def command_payload(kind: CommandKind, reason: str = "", grace_s: float | None = None) -> bytes:
    record: dict[str, Any] = {"v": WIRE_VERSION, "kind": str(kind), "reason": reason}
    if grace_s is not None:
        record["grace"] = grace_s
    return encode(record)


def finished_payload(fact: Finished, timings: dict[str, Any]) -> bytes:
    record: dict[str, Any] = {"v": WIRE_VERSION, "kind": "finished", "state": fact.state, "error": fact.error}
    if fact.compensation is not None:
        record |= {"compensation": fact.compensation, "compensated": list(fact.compensated)}
    return encode({**record, **timings})


def decode_fact(subject: FactSubject, data: bytes, at: float) -> Fact | None:
    """The fact in a message of the log; None for garbage and for a wrong capability."""
    if not subject.is_genuine:
        return None
    try:
        return _DECODERS[subject.kind](subject, data, at)
    except (Undecodable, KeyError, TypeError, ValueError):
        return None


def _outcome(subject: FactSubject, data: bytes, at: float) -> Fact:
    error: TaskError | None = None
    result: Any = None
    record: dict[str, Any] = {}
    try:
        record = decode_record(data)
        if "error" in record and record["error"] is not None:
            error = _error(record["error"])
        elif "result" in record:
            result = record["result"]
        else:
            error = TaskError(ErrorType.GARBAGE, "the outcome has neither result nor error", retryable=False)
    except Undecodable as problem:
        error = TaskError(
            ErrorType.GARBAGE, f"the outcome cannot be read: {problem}"[:_ERROR_TEXT_MAX], retryable=False
        )
    return Outcome(
        subject.execution,
        at,
        subject.agent,
        subject.task,
        subject.attempt,
        result,
        error,
        parse_rfc3339(record.get("started_at")),
        record.get("closed") is True,
    )


def _error(value: Any) -> TaskError:
    if not isinstance(value, dict):
        return TaskError("error", str(value)[:_ERROR_TEXT_MAX])
    retry_after = value.get("retry_after")
    is_delay = (
        isinstance(retry_after, int | float) and not isinstance(retry_after, bool) and 0 <= retry_after <= _DELAY_MAX_S
    )
    return TaskError(
        str(value.get("type") or "error")[:_ERROR_TYPE_MAX],
        str(value.get("message") or "")[:_ERROR_TEXT_MAX],
        value.get("retryable") is not False,
        float(retry_after) if is_delay and retry_after is not None else None,
    )


def _started(subject: FactSubject, data: bytes, at: float) -> Fact | None:
    record = decode_record(data)
    if record.get("kind") != "started" or record.get("v") != WIRE_VERSION:
        return None
    cause, seed = record.get("cause"), record.get("seed")
    return Started(
        subject.execution,
        at,
        # One text for all executions of it.
        sys.intern(str(record["workflow"])),
        sys.intern(str(record["definition"])),
        record.get("input"),
        cause if isinstance(cause, dict) else {},
        int(record.get("decide", _DECIDE_FIRST)),
        Priority(record.get("priority", Priority.NORMAL)),
        seed if isinstance(seed, dict) else {},
        record.get("skipped") is True,
    )


def _taken(subject: FactSubject, data: bytes, at: float) -> Fact:
    try:
        instance = str(decode_record(data).get("instance", "")) if data else ""
    except Undecodable:
        instance = ""
    return Taken(subject.execution, at, subject.agent, subject.task, subject.attempt, instance)


def _due(subject: FactSubject, data: bytes, at: float) -> Fact:
    return Due(subject.execution, at, subject.task, subject.attempt)


def _signal(subject: FactSubject, data: bytes, at: float) -> Fact:
    return Signal(subject.execution, at, subject.name, subject.id, decode(data) if data else None)


def _command(subject: FactSubject, data: bytes, at: float) -> Fact | None:
    record = decode_record(data)
    if record.get("kind") != subject.name or record.get("v") != WIRE_VERSION:
        return None
    grace_s = record.get("grace")
    is_time = isinstance(grace_s, int | float) and not isinstance(grace_s, bool) and 0 <= grace_s <= _DELAY_MAX_S
    return Command(
        subject.execution,
        at,
        CommandKind(subject.name),
        subject.id,
        str(record.get("reason", "")),
        float(grace_s) if is_time and grace_s is not None else None,
    )


def _finished(subject: FactSubject, data: bytes, at: float) -> Fact:
    record = decode_record(data)
    compensated = record.get("compensated")
    return Finished(
        subject.execution,
        at,
        subject.n,
        str(record["state"]),
        record.get("error"),
        record.get("compensation"),
        tuple(map(str, compensated)) if isinstance(compensated, list) else (),
    )


_DECODERS = {
    "outcome": _outcome,
    "started": _started,
    "taken": _taken,
    "due": _due,
    "signal": _signal,
    "command": _command,
    "finished": _finished,
}
