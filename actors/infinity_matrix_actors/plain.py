"""Plain data: what JSON, YAML and Python all write alike, and what therefore may stand in a definition."""

import math
from typing import Any

from infinity_matrix_actors.errors import InvalidDefinition

DEPTH_MAX = 32
#: A value takes two bytes at least, so what is more than this is above the limit of a whole definition anyway.
VALUES_MAX = 1 << 19
#: What msgpack and most languages can hold.
INTEGER_MIN = -(1 << 63)
INTEGER_MAX = (1 << 64) - 1


def plain(value: object, where: str) -> Any:
    """Answers a copy of `value` made of dict, list, str, int, float, bool and None only; tuples become lists.

    Raises `InvalidDefinition` for anything else: other types and keys, numbers that are not finite or above 64 bits,
    text that is no Unicode, more than `DEPTH_MAX` levels.
    """
    return _Copier().copy(value, where, 0)


class _Copier:
    def __init__(self) -> None:
        self.values = 0

    def copy(self, value: object, where: str, depth: int) -> Any:
        self.values += 1
        if depth > DEPTH_MAX:
            raise InvalidDefinition(f"nested deeper than {DEPTH_MAX} levels", where=where)
        if self.values > VALUES_MAX:  # also ends a list that is in itself many times over
            raise InvalidDefinition(f"more than {VALUES_MAX} values", where=where, hint="pass a reference instead")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return plain_text(value, where)
        if isinstance(value, int):
            if not INTEGER_MIN <= value <= INTEGER_MAX:
                raise InvalidDefinition("an integer above 64 bits", where=where, hint="write it as text, in quotes")
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidDefinition(f"{value} has no JSON form", where=where, hint="write it as text, in quotes")
            return float(value)
        if isinstance(value, list | tuple):
            return [self.copy(one, f"{where}[{number}]", depth + 1) for number, one in enumerate(value)]
        if isinstance(value, dict):
            return {self.key(key, where): self.copy(one, f"{where}.{key}", depth + 1) for key, one in value.items()}
        raise InvalidDefinition(
            f"an object of type {type(value).__name__} has no JSON form",
            where=where,
            hint="use text, numbers, booleans, lists and maps",
        )

    def key(self, key: object, where: str) -> str:
        if not isinstance(key, str):
            raise InvalidDefinition(f"the key {key!r:.100} is not text", where=where, hint="put it in quotes")
        return plain_text(key, where)


def plain_text(text: str, where: str) -> str:
    """Answers `text` as a plain str; raises `InvalidDefinition` when it cannot be written as UTF-8."""
    try:
        return text.encode().decode()
    except UnicodeEncodeError as problem:
        raise InvalidDefinition(f"the text is no Unicode: {problem.reason}", where=where) from problem
