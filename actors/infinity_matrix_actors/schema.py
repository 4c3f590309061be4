"""JSON Schemas of inputs, configs and results: checked when defined, and enforced where a value enters. Pure."""

from collections.abc import Iterator
from typing import Any

from infinity_matrix_actors.errors import InvalidDefinition

PROBLEM_TEXT_MAX = 500
_SCHEMA = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED_SCHEMAS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
#: A schema that refers to itself without a step into the value is beyond the depth for whatever it is given.
_PROBES: tuple[Any, ...] = ({}, [], "", 0, None, True)


def check_schema(schema: dict[str, Any], where: str) -> None:
    """Raises `InvalidDefinition` when `schema` is no JSON Schema (2020-12) that everybody can check a value by.

    Whoever folds the log must come to the same answer, with or without the rest of the world, and in time: so it refers
    to nothing outside itself, and its patterns are of the kind that is matched in linear time.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as problem:
        raise InvalidDefinition(f"it is no JSON Schema: {problem.message}", where=where) from problem
    parts = list(_parts(schema, where))
    has_patterns = any("patternProperties" in part for part in parts)
    for part in parts:
        if part is not schema and "$id" in part:
            raise InvalidDefinition("only its root may have an $id", where=where, hint="refer to '#/$defs/...'")
        if has_patterns and any(name in part for name in _UNEVALUATED):
            problem_text = "unevaluatedProperties and unevaluatedItems do not go with patternProperties"
            raise InvalidDefinition(problem_text, where=where, hint="use additionalProperties")
        _check_patterns(part, where)
    _check_ends(schema, where)


def problem_of(schema: dict[str, Any], value: Any) -> str | None:
    """What is wrong with `value`, in a sentence, or None when it is as the schema says."""
    # Here, because it takes time to import, and most workflows have no schema.
    from infinity_matrix_actors.schema_validator import Uncheckable, first_problem

    try:
        error = first_problem(schema, value)
    except Uncheckable as limit:
        return str(limit)
    if error is None:
        return None
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.path).lstrip(".")
    return (f"{path}: {error.message}" if path else error.message)[:PROBLEM_TEXT_MAX]


def _parts(schema: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it, also those that it only refers to; raises for what is not there."""
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = DRAFT202012.create_resource(schema)
    seen: set[int] = set()
    stack: list[Any] = [schema]
    while stack:
        part = stack.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if "$dynamicRef" in part:
            raise InvalidDefinition("there is no $dynamicRef here", where=where, hint="use $ref: '#/$defs/...'")
        reference = part.get("$ref")
        if reference is not None:
            if not reference.startswith("#"):
                raise InvalidDefinition(f"its $ref {reference!r} leads outside", where=where, hint="use '#/$defs/...'")
            try:
                stack.append(_resolved(resolver, reference))
            except Unresolvable:
                raise InvalidDefinition(f"its $ref {reference!r} leads nowhere", where=where) from None
        stack += [part[name] for name in (*_SCHEMA, *_UNEVALUATED) if name in part]
        stack += [one for name in _SCHEMAS for one in part.get(name, ())]
        stack += [one for name in _NAMED_SCHEMAS for one in part.get(name, {}).values()]


def _resolved(root: Any, reference: str) -> Any:
    from referencing import Registry

    return Registry().with_resource("", root).resolver().lookup(reference).contents


def _check_patterns(part: dict[str, Any], where: str) -> None:
    from infinity_matrix_actors.schema_validator import matcher

    for pattern in (*[part["pattern"] for _ in "." if "pattern" in part], *part.get("patternProperties", ())):
        try:
            matcher(pattern)
        except ValueError as problem:
            hint = "patterns are matched in linear time: no look-around and no references back"
            raise InvalidDefinition(str(problem), where=where, hint=hint) from None


def _check_ends(schema: dict[str, Any], where: str) -> None:
    from infinity_matrix_actors.schema_validator import Uncheckable, first_problem

    for probe in _PROBES:
        try:
            first_problem(schema, probe)
        except Uncheckable as limit:
            hint = "a $ref may lead back only by a step into the value"
            raise InvalidDefinition(f"no value can be checked by it: {limit}", where=where, hint=hint) from None
