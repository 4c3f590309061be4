"""JSON Schemas of inputs, configs and results: checked when defined, and enforced where a value enters. Pure."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from infinity_matrix_actors.errors import InvalidDefinition

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

#: Compiled schemas kept in memory.
SCHEMAS_MAX = 1024
PROBLEM_TEXT_MAX = 500


def check_schema(schema: dict[str, Any], where: str) -> None:
    """Raises `InvalidDefinition` when `schema` is no JSON Schema (2020-12), or refers to anything outside itself."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as problem:
        raise InvalidDefinition(f"it is no JSON Schema: {problem.message}", where=where) from problem
    for reference in _references(schema):
        if not reference.startswith("#"):
            # Whoever folds the log must come to the same answer, with or without the rest of the world.
            raise InvalidDefinition(f"its $ref {reference!r} leads outside", where=where, hint="use '#/$defs/...'")


def problem_of(schema: dict[str, Any], value: Any) -> str | None:
    """What is wrong with `value`, in a sentence, or None when it is as the schema says."""
    validator = _validator(_Frozen(schema))
    errors = sorted(validator.iter_errors(value), key=lambda error: ([str(part) for part in error.path], error.message))
    if not errors:
        return None
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in errors[0].path).lstrip(".")
    return (f"{path}: {errors[0].message}" if path else errors[0].message)[:PROBLEM_TEXT_MAX]


class _Frozen:
    """A schema as a key: definitions are never changed, so identity is enough."""

    __slots__ = ("schema",)

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.schema is other.schema

    def __hash__(self) -> int:
        return id(self.schema)


@lru_cache(maxsize=SCHEMAS_MAX)
def _validator(key: _Frozen) -> "Draft202012Validator":
    from jsonschema import Draft202012Validator

    return Draft202012Validator(key.schema)


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
        return own + [reference for value in schema.values() for reference in _references(value)]
    if isinstance(schema, list):
        return [reference for value in schema for reference in _references(value)]
    return []
