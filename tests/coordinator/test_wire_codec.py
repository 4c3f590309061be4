"""Values to bytes and back: JSON out, JSON or msgpack in, and nothing that could not go out again."""

import contextlib
import dataclasses
import datetime

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_actors.errors import PayloadNotEncodable, PayloadTooLarge
from infinity_matrix_bus.codec import (
    Undecodable,
    decode,
    decode_record,
    encode,
    parse_rfc3339,
    parse_server_time,
    rfc3339,
)
from pydantic import BaseModel

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_what_goes_out_comes_back(value: object) -> None:
    assert decode(encode(value)) == value


@given(VALUES)
def test_msgpack_is_taken_for_what_it_is_wherever_it_holds_a_record(value: object) -> None:
    record = {"result": value}
    assert decode(msgpack.packb(record)) == record
    assert decode_record(msgpack.packb(record)) == record


class Row(BaseModel):
    id: int
    at: datetime.datetime


@dataclasses.dataclass
class Point:
    x: float


def test_models_dataclasses_and_times_have_a_json_form() -> None:
    at = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    assert decode(encode({"row": Row(id=1, at=at), "point": Point(0.5)})) == {
        "row": {"id": 1, "at": "2024-01-02T00:00:00Z"},
        "point": {"x": 0.5},
    }


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), [1, {"a": float("-inf")}], object(), b"\xff", {"a": {1, 2, object()}}]
)
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(PayloadNotEncodable, match="the result of x"):
        encode(value, "the result of x")


def test_the_words_nan_and_infinity_may_stand_in_a_text() -> None:
    assert decode(encode({"NaN": "Infinity"})) == {"NaN": "Infinity"}


def test_what_is_above_the_limit_is_refused_with_its_size() -> None:
    assert encode("x" * 98, limit_bytes=100) == b'"' + b"x" * 98 + b'"'
    with pytest.raises(PayloadTooLarge) as raised:
        encode("x" * 99, "the input", limit_bytes=100)
    assert (raised.value.size_bytes, raised.value.limit_bytes) == (101, 100)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1} {"b":2}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"hello",
        b"\xef\xbb\xbf{}",
        b"\xc1",
        b"\x81",
        b"[" * 5000 + b"]" * 5000,
        b"\x91" * 5000 + b"\x01",
        b'"\\ud800"',
        b'"\xff"',
        msgpack.packb({1: 2}),
    ],
)
def test_garbage_is_undecodable_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(data)


@given(st.binary(max_size=40))
def test_no_bytes_raise_anything_but_undecodable(data: bytes) -> None:
    with contextlib.suppress(Undecodable):
        decode(data)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"a"', msgpack.packb([1])])
def test_what_is_no_object_is_no_record(data: bytes) -> None:
    with pytest.raises(Undecodable):
        decode_record(data)


@pytest.mark.parametrize("text", ["2024-01-02T03:04:05.123456Z", "1970-01-01T00:00:00.000000Z"])
def test_times_come_back_to_the_microsecond(text: str) -> None:
    at = parse_rfc3339(text)
    assert at is not None
    assert rfc3339(at) == text


@pytest.mark.parametrize("value", [None, 5, "", "yesterday", "2024-01-02", "2024-01-02T03:04:05"])
def test_what_is_no_time_with_a_zone_is_no_time(value: object) -> None:
    assert parse_rfc3339(value) is None


def test_a_time_in_another_zone_is_the_same_instant() -> None:
    assert parse_rfc3339("2024-01-02T03:04:05+02:00") == parse_rfc3339("2024-01-02T01:04:05Z")


@pytest.mark.parametrize("fraction", ["", ".1", ".123456789"])
def test_the_servers_times_have_up_to_nine_digits(fraction: str) -> None:
    whole = parse_rfc3339("2024-01-02T03:04:05Z")
    assert whole is not None
    assert parse_server_time(f"2024-01-02T03:04:05{fraction}Z") == pytest.approx(whole + float(fraction or 0), abs=1e-6)
