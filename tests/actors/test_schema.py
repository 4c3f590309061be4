"""Schemas: refused when they are none, compiled once, and what is wrong with a value is one sentence with its place."""

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
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        check_schema(schema, "input_schema")
    assert says in caught.value.problem


@pytest.mark.parametrize("schema", [True, 7, "object", [1], int, dict])
def test_a_schema_is_a_mapping_or_a_model(schema: Any) -> None:
    with pytest.raises(InvalidDefinition):
        parse_document(workflow(input_schema=schema))


def test_a_pydantic_model_stands_for_its_schema() -> None:
    definition = define(parse_document(workflow(input_schema=Order, result_schema=Line)))
    assert definition.input_schema == Order.model_json_schema()
    assert definition.tasks[0].result_schema == Line.model_json_schema()
    assert problem_of(definition.input_schema, {"id": "x", "lines": [{"count": 0}]}) is not None


def test_a_config_without_templates_is_checked_when_it_is_defined() -> None:
    schema = {"type": "object", "required": ["path"]}
    with pytest.raises(InvalidDefinition) as caught:
        define(parse_document(workflow(config={"other": 1}, config_schema=schema)))
    assert "'path' is a required property" in str(caught.value)
    define(parse_document(workflow(config={"path": "/x"}, config_schema=schema)))
    # One with templates is known when the task begins.
    define(parse_document(workflow(config={"path": "${{ input.path }}"}, config_schema=schema)))
