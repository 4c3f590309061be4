"""What a request to the API holds: its fields, each of the kind it must be."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.suggestion import did_you_mean

NUMBER_MAX = 2.5e11
#: Of a reason in characters; the rest of a longer one is left out, for it is for people to read.
REASON_LENGTH_MAX = 1000
Verb = Callable[[dict[str, Any]], Awaitable[Any]]


class BadRequest(InfinityMatrixError):
    """Raised when a request lacks a field or has one of the wrong kind. Correct the request."""


def taking(verb: Verb, *fields: str) -> Verb:
    """The verb, refusing a request with other fields: a filter with a slip in its name would be none at all."""

    async def checked(body: dict[str, Any]) -> Any:
        for key in body:
            if key not in fields:
                known = f"the fields are {', '.join(fields)}" if fields else "it takes none"
                raise BadRequest(f"there is no field {key!r:.100} ({did_you_mean(str(key), fields) or known})")
        return await verb(body)

    return checked


def reason(body: dict[str, Any]) -> str:
    """Why somebody asks for something, empty when that is not said; raises BadRequest."""
    value = body.get("reason")
    if value is not None and not isinstance(value, str):
        raise BadRequest("'reason' must be a string")
    return (value or "")[:REASON_LENGTH_MAX]


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
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # As a time it must be one that a clock has: the year 9999 is below.
    if not abs(number) < NUMBER_MAX:
        raise BadRequest(f"{key!r} is too large")
    return number


def flag(body: dict[str, Any], key: str, default: bool = False) -> bool:
    """Whether a field is true; raises BadRequest when it is neither."""
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{key!r} must be true or false")
    return value


def limit(body: dict[str, Any], default: int) -> int:
    """How many items are wanted; raises BadRequest."""
    value = body.get("limit", default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest("limit must be a number above 0")
    return value
