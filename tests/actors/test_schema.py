"""Schemas: refused when they are none, compiled once, and what is wrong with a value is one sentence with its place."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from infinity_matrix_actors.document import define, parse_document
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.schema import PROBLEM_TEXT_MAX, check_schema, problem_of
from pydantic import BaseModel, Field

ORDER: dict[str, Any] = {
    "type": "object",
    "required": ["id", "lines"],
    "properties": {
        "id": {"type": "string"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1},
    },
    "$defs": {"line": {"type": "object", "properties": {"count": {"type": "integer", "minimum": 1}}}},
}


class Line(BaseModel):
    count: int = Field(ge=1)


class Order(BaseModel):
    id: str
    lines: list[Line]


def workflow(**fields: Any) -> dict[str, Any]:
    own = {name: fields.pop(name) for name in ("input_schema",) if name in fields}
    return {"name": "w", "tasks": [{"id": "t", "agent": "a", **fields}], **own}


def test_what_is_as_it_should_be_has_no_problem() -> None:
    assert problem_of(ORDER, {"id": "x", "lines": [{"count": 1}]}) is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"lines": [{}]}, "'id' is a required property"),
        ({"id": 7, "lines": [{}]}, "id: 7 is not of type 'string'"),
        ({"id": "x", "lines": []}, "lines: "),
        ({"id": "x", "lines": [{"count": 1}, {"count": 0}]}, "lines[1].count: 0 is less than the minimum of 1"),
        (None, "None is not of type 'object'"),
        ([], "[] is not of type 'object'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(value: Any, says: str) -> None:
    problem = problem_of(ORDER, value)
    assert problem is not None
    assert problem.startswith(says)


def test_everyone_finds_the_same_problem_first() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}, "required": ["z"]}
    value = {"b": "x", "a": "y"}
    assert problem_of(schema, value) == problem_of(dict(schema), dict(reversed(value.items())))


def test_a_problem_is_never_longer_than_its_limit() -> None:
    problem = problem_of({"type": "integer"}, "x" * 10_000)
    assert problem is not None
    assert len(problem) == PROBLEM_TEXT_MAX


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "strin"}, "no JSON Schema"),
        ({"minimum": "low"}, "no JSON Schema"),
        ({"$ref": "https://example.com/schema.json"}, "leads outside"),
        ({"properties": {"x": {"anyOf": [{"$ref": "other.json#/x"}]}}}, "leads outside"),
        ({"$ref": "#/$defs/Ordr", "$defs": {"Order": {}}}, "leads nowhere"),
        ({"items": {"$ref": "#anchor"}}, "leads nowhere"),
        ({"$ref": "#"}, "no value can be checked"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {"$ref": "#"}}}}, "no value can be checked"),
        ({"$dynamicRef": "http://127.0.0.1/secret"}, "no $dynamicRef"),
        ({"properties": {"x": {"$id": "https://example.com/x"}}}, "only its root"),
        ({"pattern": "(?=a)b"}, "look-around"),
        ({"patternProperties": {r"(a)\1": {}}}, "backreferences"),
        ({"patternProperties": {"a": {}}, "unevaluatedProperties": False}, "do not go with patternProperties"),
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        check_schema(schema, "input_schema")
    assert says in caught.value.problem


def test_names_of_keywords_may_be_names_of_fields_and_values() -> None:
    names = ("$ref", "pattern", "$dynamicRef", "$id", "patternProperties")
    schema = {"properties": {name: {"type": "string"} for name in names}, "enum": [{"pattern": "(?=a)", "$ref": "x"}]}
    check_schema(schema, "input_schema")


def test_a_pattern_is_matched_in_linear_time() -> None:
    began = time.monotonic()
    assert "does not match" in str(problem_of({"pattern": "^(a+)+$"}, "a" * 40 + "b"))
    assert (
        "additional"
        in str(
            problem_of({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {"a" * 40 + "b": 1})
        ).lower()
    )
    assert "does not match" in str(problem_of({"propertyNames": {"pattern": "^(a+)+$"}}, {"a" * 40 + "b": 1}))
    assert time.monotonic() - began < 5.0


def test_a_value_that_takes_too_long_to_check_has_that_for_a_problem() -> None:
    both = {"anyOf": [{"properties": {"x": {"$ref": "#"}}, "required": ["y"]}] * 3}
    check_schema(both, "input_schema")
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"x": deep}
    assert problem_of(both, deep) == "to check it takes more than 1,000,000 steps"


def test_a_value_that_nests_too_deep_has_that_for_a_problem_and_one_a_little_less_deep_has_none() -> None:
    tree = {"properties": {"x": {"$ref": "#"}}}
    value: dict[str, Any] = {}
    for _ in range(40):
        value = {"x": value}
    assert problem_of(tree, value) is None
    for _ in range(20):
        value = {"x": value}
    assert problem_of(tree, value) == "it is nested deeper than 100 keywords"


def test_items_are_the_same_as_json_has_it() -> None:
    unique = {"uniqueItems": True}
    assert problem_of(unique, [1, True, "1", None, [1], {"a": 1}, {"a": True}]) is None
    assert "non-unique" in str(problem_of(unique, [1, 1.0]))
    assert "non-unique" in str(problem_of(unique, [{"a": [1], "b": 2}, {"b": 2.0, "a": [1.0]}]))
    began = time.monotonic()
    assert problem_of(unique, [{"number": number} for number in range(20_000)]) is None
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", "2026-02-28", "2026-02-30"),
        ("time", "23:59:59Z", "24:00:00"),
        ("date-time", "2026-02-28T12:00:00.5+01:00", "not a date"),
        ("duration", "P3DT4H", "3 days"),
        ("uuid", "01a22d0f-f222-70de-ae0a-68e40b31d89a", "not a uuid"),
        ("ipv4", "10.1.2.3", "999.1.1.1"),
        ("ipv6", "::1", "1:2"),
        ("email", "ann@example.com", "ann"),
        ("uri", "https://example.com", "::"),
    ],
)
def test_formats_hold_for_texts(name: str, right: str, wrong: str) -> None:
    schema = {"format": name}
    assert problem_of(schema, right) is None
    assert problem_of(schema, wrong) == f"{wrong!r} is not a {name!r}"
    assert problem_of(schema, 7) is None


def test_a_schema_from_before_it_was_checked_is_a_problem_and_no_exception() -> None:
    for old in ({"pattern": "(?=a)"}, {"$ref": "#/$defs/gone"}, {"$ref": "#"}, {"$ref": "http://127.0.0.1:1/x"}):
        assert problem_of(old, "x") is not None


@pytest.mark.parametrize("schema", [True, 7, "object", [1], int, dict])
def test_a_schema_is_a_mapping_or_a_model(schema: Any) -> None:
    with pytest.raises(InvalidDefinition):
        parse_document(workflow(input_schema=schema))


def test_a_pydantic_model_stands_for_its_schema() -> None:
    definition = define(parse_document(workflow(input_schema=Order, result_schema=Line)))
    assert definition.input_schema == Order.model_json_schema()
    assert definition.tasks[0].result_schema == Line.model_json_schema()
    assert problem_of(definition.input_schema, {"id": "x", "lines": [{"count": 0}]}) is not None


def test_a_model_without_a_schema_is_refused() -> None:
    class Odd(BaseModel):
        call: Callable[[], int]

    with pytest.raises(InvalidDefinition, match="no JSON Schema"):
        parse_document(workflow(input_schema=Odd))


def test_a_config_without_templates_is_checked_when_it_is_defined() -> None:
    schema = {"type": "object", "required": ["path"]}
    with pytest.raises(InvalidDefinition) as caught:
        define(parse_document(workflow(config={"other": 1}, config_schema=schema)))
    assert "'path' is a required property" in str(caught.value)
    define(parse_document(workflow(config={"path": "/x"}, config_schema=schema)))
    # One with templates is known when the task begins.
    define(parse_document(workflow(config={"path": "${{ input.path }}"}, config_schema=schema)))
