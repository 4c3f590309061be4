"""Facts as messages: every kind out and back, and what garbage, forgery and other people's mistakes become."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_actors.fact import (
    Command,
    CommandKind,
    Due,
    ErrorType,
    Fact,
    Finished,
    Outcome,
    Signal,
    Started,
    Taken,
    TaskError,
)
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.facts import (
    closed_payload,
    command_payload,
    decode_fact,
    failed_payload,
    finished_payload,
    started_payload,
)
from infinity_matrix_bus.subjects import Subjects

SUBJECTS = Subjects("im", b"the secret")
AT = 1000.5
STARTED = SUBJECTS.started(0, "e1")
OUTCOME = SUBJECTS.outcome(0, "e1", "agent-x", "a", 1)
TAKEN = SUBJECTS.taken(0, "e1", "agent-x", "a", 1)
DUE = SUBJECTS.due(0, "e1", "a", 2)
CANCEL = SUBJECTS.command(0, "e1", "cancel", "c1")
SIGNAL = SUBJECTS.signal(0, "e1", "approval", "s1")
FINISHED = SUBJECTS.finished(0, "e1", 1)
GENUINE = (STARTED, OUTCOME, TAKEN, DUE, CANCEL, SIGNAL, FINISHED)
BOOM = TaskError("boom", "it broke", False, 5.0)


def read(subject: str, data: bytes) -> Fact | None:
    parsed = SUBJECTS.parse_fact(subject)
    assert parsed is not None
    return decode_fact(parsed, data, AT)


def outcome(data: bytes) -> Outcome:
    fact = read(OUTCOME, data)
    assert isinstance(fact, Outcome)
    return fact


ROUND_TRIPS: list[tuple[str, bytes, Fact]] = [
    (
        STARTED,
        started_payload(Started("e1", 0.0, "w", "d" * 64, {"x": [1]}, {"trigger": "orders"}, 1)),
        Started("e1", AT, "w", "d" * 64, {"x": [1]}, {"trigger": "orders"}, 1),
    ),
    (OUTCOME, b'{"result":{"rows":3}}', Outcome("e1", AT, "agent-x", "a", 1, {"rows": 3})),
    (OUTCOME, b'{"result":null}', Outcome("e1", AT, "agent-x", "a", 1)),
    (OUTCOME, failed_payload(BOOM), Outcome("e1", AT, "agent-x", "a", 1, error=BOOM)),
    (
        OUTCOME,
        failed_payload(BOOM, 1704067200.0, "host-1"),
        Outcome("e1", AT, "agent-x", "a", 1, error=BOOM, started_at=1704067200.0),
    ),
    (OUTCOME, closed_payload(BOOM, "host-1"), Outcome("e1", AT, "agent-x", "a", 1, error=BOOM, closed=True)),
    (TAKEN, encode({"instance": "host-1"}), Taken("e1", AT, "agent-x", "a", 1, "host-1")),
    (TAKEN, b"", Taken("e1", AT, "agent-x", "a", 1)),
    (TAKEN, b"not JSON", Taken("e1", AT, "agent-x", "a", 1)),
    (DUE, b"{}", Due("e1", AT, "a", 2)),
    (CANCEL, command_payload(CommandKind.CANCEL, "enough"), Command("e1", AT, CommandKind.CANCEL, "c1", "enough")),
    (
        SUBJECTS.command(0, "e1", "deadline", "timeout"),
        command_payload(CommandKind.DEADLINE),
        Command("e1", AT, CommandKind.DEADLINE, "timeout"),
    ),
    (SIGNAL, b'{"by":"ann"}', Signal("e1", AT, "approval", "s1", {"by": "ann"})),
    (SIGNAL, b"", Signal("e1", AT, "approval", "s1")),
    (
        FINISHED,
        finished_payload(Finished("e1", 0.0, 1, "failed", {"type": "boom"}), {"decided_at": "2024-01-01T00:00:00Z"}),
        Finished("e1", AT, 1, "failed", {"type": "boom"}),
    ),
]


@pytest.mark.parametrize(("subject", "data", "fact"), ROUND_TRIPS)
def test_every_kind_of_fact_comes_back_with_the_time_of_the_stream(subject: str, data: bytes, fact: Fact) -> None:
    assert read(subject, data) == fact


def test_every_kind_is_among_them() -> None:
    assert {type(fact) for _, _, fact in ROUND_TRIPS} == set(Fact.__args__)


@pytest.mark.parametrize("data", [encode({"result": {"n": 1}}), msgpack.packb({"result": {"n": 1}})])
def test_an_agent_may_answer_in_msgpack(data: bytes) -> None:
    assert outcome(data).result == {"n": 1}


# Garbage on an outcome's subject has taken the attempt's only slot: the attempt has failed.


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"[]", b"17", b"null", b"{}", b'{"rows":3}', b'{"error":null}', b"\xc1\xff", b'{"result":NaN}'],
)
def test_garbage_on_an_outcomes_subject_is_a_failed_outcome_that_is_not_tried_again(data: bytes) -> None:
    fact = outcome(data)
    assert fact.result is None
    assert fact.error is not None
    assert (fact.error.type, fact.error.retryable) == (ErrorType.GARBAGE, False)


@given(st.binary(max_size=64))
def test_any_bytes_at_all_are_an_outcome(data: bytes) -> None:
    fact = outcome(data)
    assert (fact.task, fact.attempt, fact.agent) == ("a", 1, "agent-x")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "boom", "message": "m"}, TaskError("boom", "m")),
        ({}, TaskError("error", "")),
        ({"type": 7, "message": None}, TaskError("7", "")),
        ("it broke", TaskError("error", "it broke")),
        (["it", "broke"], TaskError("error", "['it', 'broke']")),
        ({"type": "b", "message": "m", "retryable": False}, TaskError("b", "m", retryable=False)),
        ({"type": "b", "message": "m", "retryable": "no"}, TaskError("b", "m")),
        ({"type": "b", "message": "m", "retry_after": 5}, TaskError("b", "m", retry_after=5.0)),
        ({"type": "b", "message": "m", "retry_after": "5"}, TaskError("b", "m")),
        ({"type": "b", "message": "m", "retry_after": True}, TaskError("b", "m")),
    ],
)
def test_an_error_is_read_as_far_as_it_can_be(error: object, expected: TaskError) -> None:
    assert outcome(encode({"error": error})).error == expected


def test_a_retry_after_that_no_float_can_hold_breaks_nothing() -> None:
    data = b'{"error":{"type":"b","message":"m","retry_after":1' + b"0" * 400 + b"}}"
    assert outcome(data).error is not None


@pytest.mark.parametrize(
    "data",
    [
        b'{"result":1e999}',
        msgpack.packb({"result": float("nan")}),
        msgpack.packb({"result": b"\xff"}),
        msgpack.packb({"result": msgpack.Timestamp(1)}),
    ],
)
def test_a_result_that_has_no_json_form_is_garbage(data: bytes) -> None:
    assert outcome(data).error is not None


def test_an_error_goes_before_a_result() -> None:
    fact = outcome(b'{"result":1,"error":{"type":"boom","message":""}}')
    assert fact.error is not None
    assert fact.result is None


@pytest.mark.parametrize("value", ["", "yesterday", 12, None, "2024-01-01"])
def test_a_time_that_cannot_be_read_is_no_time(value: object) -> None:
    assert outcome(encode({"result": 1, "started_at": value})).started_at is None


@pytest.mark.parametrize("value", [1, "true", None, {}])
def test_only_true_closes(value: object) -> None:
    assert outcome(encode({"error": "x", "closed": value})).closed is False


# Everything else that cannot be read is no fact.


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        (STARTED, b""),
        (STARTED, b"hello"),
        (STARTED, b"{}"),
        (STARTED, encode({"v": 1, "kind": "started"})),
        (STARTED, encode({"v": 2, "kind": "started", "workflow": "w", "definition": "d"})),
        (STARTED, encode({"v": 1, "kind": "other", "workflow": "w", "definition": "d"})),
        (STARTED, encode({"workflow": "w", "definition": "d"})),
        (STARTED, encode({"v": 1, "kind": "started", "workflow": "w", "definition": "d", "decide": "x"})),
        (CANCEL, b""),
        (CANCEL, b"{}"),
        (CANCEL, encode({"kind": "cancel"})),
        (CANCEL, command_payload(CommandKind.DEADLINE)),
        (SUBJECTS.command(0, "e1", "explode", "1"), encode({"v": 1, "kind": "explode"})),
        (SIGNAL, b"hello"),
        (FINISHED, b"hello"),
        (FINISHED, b"{}"),
    ],
)
def test_what_cannot_be_read_is_no_fact(subject: str, data: bytes) -> None:
    assert read(subject, data) is None


@given(st.sampled_from(GENUINE), st.binary(max_size=64))
def test_no_bytes_break_the_reader(subject: str, data: bytes) -> None:
    read(subject, data)


@pytest.mark.parametrize("subject", [OUTCOME, TAKEN, DUE, FINISHED])
def test_a_wrong_capability_makes_no_fact_whatever_it_says(subject: str) -> None:
    forged = f"{subject.rpartition('.')[0]}.{'0' * 16}"
    for data in (b'{"result":1}', b'{"state":"completed"}', b"{}", b"garbage"):
        assert read(forged, data) is None
