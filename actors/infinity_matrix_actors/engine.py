"""The CEL engine, behind two functions: whether a program compiles, and what it answers.

Its answers must be the same in every process, because coordinators derive decisions from them: loops over maps go in
the order of the keys, and an error's reason names no map's content.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from infinity_matrix_actors.errors import ConditionError, InvalidDefinition
from infinity_matrix_actors.expression import IN_ORDER, Expression
from infinity_matrix_actors.narrowing import narrowed

if TYPE_CHECKING:
    import cel

#: Compiled programs kept in memory; one is some kilobytes and takes 10 microseconds to make again.
PROGRAMS_MAX = 4096
_UNDEFINED = re.compile(r"Undefined variable or function: '(\w+)'")


def check_program(expression: Expression, source: str, where: str) -> None:
    """Raises `InvalidDefinition` when the engine does not take it."""
    try:
        _program(expression.cel)
    except ValueError as problem:
        # The engine's message quotes what it was given, which is not what the user wrote.
        told = re.search(r"<input>:\d+:\d+: (?:Syntax error: )?(.*?)(?: expecting .*)?$", str(problem), re.MULTILINE)
        reason = told[1] if told else "syntax error"
        raise InvalidDefinition(f"{source!r:.120} is not CEL: {reason}", where=where) from problem


def answer(source: str, variables: dict[str, Any]) -> Any:
    """What the program answers; raises `ConditionError` when there is no answer."""
    import cel

    try:
        return _program(source).execute(cel.Context(narrowed(source, variables), {IN_ORDER: _in_order}))
    except Exception as problem:
        raise ConditionError(_reason(problem)) from problem


def is_true(source: str, variables: dict[str, Any]) -> bool:
    """What the program answers, which must be true or false; raises `ConditionError` otherwise."""
    found = answer(source, variables)
    if not isinstance(found, bool):
        raise ConditionError(f"the answer is {kind_of(found)}, not true or false")
    return found


def kind_of(value: object) -> str:
    """What a value is, in a word for people."""
    if value is None:
        return "null"
    kinds = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "a map", bool: "true or false"}
    return kinds.get(type(value), f"a {type(value).__name__}")


@lru_cache(maxsize=PROGRAMS_MAX)
def _program(source: str) -> "cel.Program":
    import cel  # here, because it takes 200 ms and most workflows have no condition

    return cel.compile(source)


def _in_order(value: Any) -> Any:
    """What a loop goes through: a list as it is, a map's keys sorted (the engine's own order is random)."""
    return sorted(value, key=lambda key: (str(type(key)), key)) if isinstance(value, dict) else value


def _reason(problem: Exception) -> str:
    """The engine's error in one sentence; its second ones explain CEL's types at length."""
    if isinstance(problem, KeyError):
        return f"there is no field {problem}"
    text = str(problem)
    if undefined := _UNDEFINED.match(text):
        # Names were checked when it was defined: the engine means that no such function takes these types.
        return f"{undefined[1]!r} does not take values of these types"
    return re.split(r"\. |\n", text, maxsplit=1)[0].rstrip(".")
