"""A validator of JSON Schemas (2020-12) that always comes to an end, and to the same one everywhere. Pure.

A coordinator checks values of anybody against schemas of anybody, in the middle of its work. So patterns are matched
in linear time, nothing is fetched, steps and depth are counted; what is beyond is a problem of the value like others.
"""

import datetime
import ipaddress
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from pydantic_core import SchemaError, SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable

#: Looks at one value by one keyword, an item of a list counting as one more. A million take some 3 s.
STEPS_MAX = 1_000_000
#: Keywords inside of one another; three a level of a value that nests.
DEPTH_MAX = 100
PATTERNS_MAX = 4096
#: Keywords that look at each item or property.
_LOOPS = frozenset({"items", "prefixItems", "contains", "uniqueItems", "patternProperties", "additionalProperties"})
Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class Uncheckable(Exception):
    """The check was given up; its text says why."""


class _Count:
    __slots__ = ("depth", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self.depth = 0


_counting: ContextVar[_Count] = ContextVar("counting")


def first_problem(schema: dict[str, Any], value: Any) -> ValidationError | None:
    """The first of what is wrong with a value, by its place; raises Uncheckable."""
    token = _counting.set(_Count())
    try:
        # Not the first that is found: that may be another where the keys of the schema stand in another order.
        return min(_validator(_Frozen(schema)).iter_errors(value), key=_place, default=None)
    except RecursionError:
        raise Uncheckable(f"it is nested deeper than {DEPTH_MAX} keywords") from None
    except (Unresolvable, ValueError) as problem:
        # Refused where it was defined; but a definition may be older than that.
        raise Uncheckable(f"its schema cannot be used: {problem}") from problem
    finally:
        _counting.reset(token)


@lru_cache(maxsize=PATTERNS_MAX)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Says whether the pattern is found in a text, in linear time; raises ValueError for one that cannot be so."""
    try:
        text = core_schema.str_schema(pattern=pattern, strict=True, regex_engine="rust-regex")
        return SchemaValidator(text).isinstance_python
    except SchemaError as problem:
        reason = str(problem).strip().splitlines()[-1].removeprefix("error: ")
        raise ValueError(f"the pattern {pattern!r:.100}: {reason}") from None


class _Frozen:
    """A schema as a key: definitions are never changed, so identity is enough."""

    __slots__ = ("schema",)

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.schema is other.schema

    def __hash__(self) -> int:
        return id(self.schema)


@lru_cache(maxsize=1024)
def _validator(key: _Frozen) -> Validator:
    # A registry of its own has nothing that could be fetched.
    validator: Validator = _BOUNDED(key.schema, registry=Registry())
    return validator


def _place(error: ValidationError) -> tuple[list[str], str]:
    return [str(part) for part in error.path], error.message


def _bounded(name: str, keyword: Keyword) -> Keyword:
    is_loop = name in _LOOPS

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        count = _counting.get()
        count.steps += 1 + (len(instance) if is_loop and isinstance(instance, list | dict) else 0)
        if count.steps > STEPS_MAX:
            raise Uncheckable(f"to check it takes more than {STEPS_MAX:,} steps")
        if count.depth == DEPTH_MAX:
            raise Uncheckable(f"it is nested deeper than {DEPTH_MAX} keywords")
        count.depth += 1
        try:
            yield from keyword(validator, value, instance, schema) or ()
        finally:
            count.depth -= 1

    return counted


# Keywords that the library does in more than linear time.


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not matcher(pattern)(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            matches = matcher(pattern)
            for key, value in instance.items():
                if matches(key):
                    yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known = schema.get("properties", {})
    matchers = [matcher(pattern) for pattern in schema.get("patternProperties", {})]
    extras = [key for key in instance if key not in known and not any(matches(key) for matches in matchers)]
    if isinstance(allowed, dict):
        for key in extras:
            yield from validator.descend(instance[key], allowed, path=key)
    elif not allowed and extras:
        named = ", ".join(repr(key) for key in sorted(extras))
        verb = "was" if len(extras) == 1 else "were"
        yield ValidationError(f"Additional properties are not allowed ({named} {verb} unexpected)")


def _unique_items(validator: Any, is_wanted: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if is_wanted and isinstance(instance, list) and len({_identity(item) for item in instance}) < len(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")


def _identity(value: Any) -> Hashable:
    """The same for values that JSON holds for equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, dict):
        return "map", frozenset((key, _identity(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", tuple(_identity(item) for item in value)
    return isinstance(value, bool), value


# Formats.


def _format(validator: Any, name: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    check = _FORMATS.get(name)
    if check is None or not isinstance(instance, str):
        return
    try:
        is_so = check(instance)
    except ValueError:
        is_so = False
    if not is_so:
        yield ValidationError(f"{instance!r} is not a {name!r}")


def _date(text: str) -> bool:
    return bool(matcher(r"^\d{4}-\d{2}-\d{2}$")(text) and datetime.date.fromisoformat(text))


def _time(text: str) -> bool:
    return matcher(r"^([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)?$")(text)


def _date_time(text: str) -> bool:
    # pydantic takes a date-time without a zone, and so must its schema.
    return len(text) > 10 and text[10] in "Tt " and _date(text[:10]) and _time(text[11:])


#: Those that pydantic's schemas name, and others as JSON Schema has it: what is not here says something to people.
_FORMATS: dict[str, Callable[[str], bool]] = {
    "date": _date,
    "time": _time,
    "date-time": _date_time,
    "duration": matcher(r"^[+-]?P(\d+(\.\d+)?[YMWD])*(T(\d+(\.\d+)?[HMS])+)?$"),
    "uuid": matcher(r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"),
    "ipv4": lambda text: bool(ipaddress.IPv4Address(text)) or True,
    "ipv6": lambda text: bool(ipaddress.IPv6Address(text)) or True,
    "email": matcher(r"^[^@\s]+@[^@\s]+$"),
    "uri": matcher(r"^[A-Za-z][A-Za-z0-9+.-]*:[^\s]+$"),
}
_OWN: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
    "format": _format,
}
_KEYWORDS: Mapping[str, Any] = {**Draft202012Validator.VALIDATORS, **_OWN}
_BOUNDED = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {name: _bounded(name, keyword) for name, keyword in _KEYWORDS.items()}
)
