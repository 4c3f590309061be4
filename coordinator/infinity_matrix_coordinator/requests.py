"""What a request to the API holds: its fields, each of the kind it must be."""

from collections.abc import Awaitable, Callable
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError

Verb = Callable[[dict[str, Any]], Awaitable[Any]]


class BadRequest(InfinityMatrixError):
    """Raised when a request lacks a field or has one of the wrong kind. Correct the request."""


def text(body: dict[str, Any], key: str) -> str:
    """The text of a field that must be there; raises BadRequest."""
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{key!r} is missing or no string")
    return value


def optional_text(body: dict[str, Any], key: str) -> str | None:
    """The text of a field, None when it is not there; raises BadRequest."""
    return None if body.get(key) is None else text(body, key)


def optional_texts(body: dict[str, Any], key: str) -> list[str] | None:
    """The texts of a field, None when it is not there; raises BadRequest."""
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise BadRequest(f"{key!r} must be a list of strings")
    return value


def optional_number(body: dict[str, Any], key: str) -> float | None:
    """The number of a field, None when it is not there; raises BadRequest."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{key!r} must be a number")
    return float(value)


def flag(body: dict[str, Any], key: str) -> bool:
    """Whether a field is true; raises BadRequest when it is neither."""
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{key!r} must be true or false")
    return value


def limit(body: dict[str, Any], default: int) -> int:
    """How many items are wanted; raises BadRequest."""
    value = body.get("limit", default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest("limit must be a number above 0")
    return value
