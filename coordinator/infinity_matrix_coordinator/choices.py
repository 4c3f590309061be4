"""Words that choose one of a few: read where they enter, with the others named when it is none of them."""

from enum import StrEnum
from typing import TypeVar

from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.suggestion import did_you_mean

Choice = TypeVar("Choice", bound=StrEnum)


def chosen(kind: type[Choice], value: str, where: str) -> Choice:
    """The member of `kind` that `value` names; raises InvalidDefinition."""
    try:
        return kind(value)
    except ValueError:
        names = [str(member) for member in kind]
        hint = f"one of {', '.join(names)}"
        near = did_you_mean(value, names) if isinstance(value, str) else ""
        raise InvalidDefinition(f"{value!r} is none", where=where, hint=f"{near} {hint}".strip()) from None
