"""Formulas and templates: CEL whose answer is any plain value, alone or as `${{ ... }}` in plain data.

A formula picks the items of a map, the key of a slot, the input of a child; a template fills a task's config. What
they may name is checked when the workflow is defined; what they find is plain data, or the task fails saying what is
missing.
"""

import re
from collections.abc import Container, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.engine import answer, check_program, kind_of
from infinity_matrix_actors.errors import ConditionError, InvalidDefinition
from infinity_matrix_actors.expression import Expression, translate
from infinity_matrix_actors.plain import plain

OPEN = "${{"
#: Beyond it a float has no place for the one.
WHOLE_MAX = 2.0**53
_HOLE = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
#: A path as it stands in a program: names after dots, or in brackets.
_STEP = re.compile(r"""\.?([A-Za-z_]\w*)|\[['"]([^'"\]]*)['"]\]""")
_PATH = re.compile(r"""[A-Za-z_]\w*(\.[A-Za-z_]\w*|\[(['"])[^'"\]]*\2\])*""")


@dataclass(frozen=True, slots=True)
class Formula:
    """One expression, ready to be evaluated. `references` are the ids of the tasks it asks for."""

    source: str
    references: frozenset[str]
    expression: Expression

    @classmethod
    def compile(
        cls, source: str, known_ids: Set[str], allowed_ids: Container[str], variables: frozenset[str], where: str
    ) -> "Formula":
        """Answers the formula in `source`; raises `InvalidDefinition` when it names what it cannot know."""
        expression = translate(
            source.strip(), known_ids=known_ids, allowed_ids=allowed_ids, variables=variables, where=where
        )
        check_program(expression, source, where)
        return cls(source, expression.references, expression)

    def evaluate(self, tasks: Mapping[str, Mapping[str, Any]], variables: Mapping[str, Any]) -> Any:
        """The plain value it comes to; raises `ConditionError` when there is none.

        `tasks` has what a condition sees of a task, at least for every id in `references`.
        """
        context: dict[str, Any] = {"tasks": {task: dict(tasks[task]) for task in self.references}}
        for name in self.expression.variables:
            context[name] = variables.get(name)
        try:
            return in_key_order(plain(answer(self.expression.cel, context), "the answer"))
        except ConditionError as problem:
            reason = _missing(self.expression.cel, context) or problem.reason
            raise ConditionError(f"{self.source.strip()!r:.120}: {reason}") from problem.__cause__
        except InvalidDefinition as problem:
            raise ConditionError(f"{self.source.strip()!r:.120}: {problem.problem}") from problem


@dataclass(frozen=True, slots=True)
class Template:
    """Plain data with formulas in its texts. A text that is one formula becomes its value, of any kind."""

    data: Any
    formulas: Mapping[str, Formula]
    references: frozenset[str]

    @classmethod
    def compile(
        cls, data: Any, known_ids: Set[str], allowed_ids: Container[str], variables: frozenset[str], where: str
    ) -> "Template | None":
        """Answers the template that `data` is, None when nothing in it is to be filled; raises `InvalidDefinition`."""
        if any(OPEN in _HOLE.sub("", text) for text in _texts(data)):
            raise InvalidDefinition(f"a {OPEN} has no end", where=where, hint="write ${{ input.path }}")
        formulas = {
            source: Formula.compile(source, known_ids, allowed_ids, variables, where) for source in _sources(data)
        }
        if not formulas:
            return None
        references = frozenset().union(*(formula.references for formula in formulas.values()))
        return cls(data, formulas, references)

    def fill(self, tasks: Mapping[str, Mapping[str, Any]], variables: Mapping[str, Any]) -> Any:
        """The data with every formula's value in its place; raises `ConditionError`."""
        values = {source: formula.evaluate(tasks, variables) for source, formula in self.formulas.items()}
        return _filled(self.data, values)


def in_key_order(value: Any) -> Any:
    """The value with the keys of its maps in order: the engine's own order is another in every process."""
    if isinstance(value, dict):
        return {key: in_key_order(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [in_key_order(item) for item in value]
    return value


def text_of_key(value: Any) -> str:
    """A value as the text by which it is told apart from every other; a text stands for itself."""
    if isinstance(value, str):
        return value
    import json

    return "json:" + json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _sources(data: Any) -> list[str]:
    return [source for text in _texts(data) for source in _HOLE.findall(text)]


def _texts(data: Any) -> Iterator[str]:
    """The texts in plain data that may have formulas in them; it is never deeper than `plain` admits."""
    if isinstance(data, str):
        if OPEN in data:
            yield data
    elif isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _texts(value)


def _missing(source: str, context: Mapping[str, Any]) -> str | None:
    """Of a program that is one path: where it comes to an end. The engine only says that something does not fit."""
    if _PATH.fullmatch(source) is None:
        return None
    steps = [field or key for field, key in _STEP.findall(source)]
    value: Any = context
    for number, step in enumerate(steps):
        if not isinstance(value, Mapping):
            return f"{'.'.join(steps[:number]).removeprefix('tasks.')} is {kind_of(value)}, it has no {step!r}"
        if step not in value:
            return f"there is no field {step!r}" if number else None
        value = value[step]
    return None


def _filled(data: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(data, str):
        if OPEN not in data:
            return data
        whole = _HOLE.fullmatch(data.strip())
        if whole is not None and whole[1] in values:
            return values[whole[1]]
        return _HOLE.sub(lambda hole: _text(values[hole[1]]), data)
    if isinstance(data, dict):
        return {key: _filled(value, values) for key, value in data.items()}
    if isinstance(data, list):
        return [_filled(value, values) for value in data]
    return data


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        # A whole number stays one: 2.0 is 2, and 1234567.0 is no 1.23457e+06.
        return (
            str(int(value))
            if isinstance(value, float) and abs(value) < WHOLE_MAX and value.is_integer()
            else str(value)
        )
    import json

    return json.dumps(value, ensure_ascii=False, sort_keys=True)
