"""Conditions of tasks and filters of triggers: CEL, checked when defined, evaluated by the core.

The engine is behind these two classes only. Its answers must be the same in every process, because coordinators
derive decisions from them: loops over maps go in the order of the keys, and an error's reason names no map's content.
"""

import re
from collections.abc import Container, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.errors import ConditionError, InvalidDefinition
from infinity_matrix_actors.expression import IN_ORDER, Expression, translate
from infinity_matrix_actors.graph import ancestors

if TYPE_CHECKING:
    import cel

__all__ = ["Condition", "ConditionError", "Filter", "compile_conditions", "compile_filter"]

#: Compiled programs kept in memory; one is some kilobytes and takes 10 microseconds to make again.
PROGRAMS_MAX = 4096
_INPUT = frozenset({"input"})
_EVENT = frozenset({"event"})
_NO_TASKS: frozenset[str] = frozenset()
_UNDEFINED = re.compile(r"Undefined variable or function: '(\w+)'")


@dataclass(frozen=True, slots=True)
class Condition:
    """A task's condition, ready to be evaluated. `references` are the ids of the tasks it asks for."""

    source: str
    references: frozenset[str]
    expression: Expression

    @classmethod
    def compile(cls, source: str, known_ids: Set[str], allowed_ids: Container[str], where: str) -> "Condition":
        """Answers the condition written in `source`.

        `known_ids` are the ids of the workflow, `allowed_ids` those upstream of the task. Raises `InvalidDefinition`
        when it does not compile or names anything else than those and `input`.
        """
        expression = translate(source, known_ids=known_ids, allowed_ids=allowed_ids, variables=_INPUT, where=where)
        _check_program(expression, source, where)
        return cls(source, expression.references, expression)

    def evaluate(self, tasks: Mapping[str, Mapping[str, Any]], input: Any) -> bool:
        """Answers whether the condition holds.

        `tasks` has, at least for every id in `references`, what a condition sees of a task: `{"result": .., "state":
        .., "error": ..}`, the result being None unless it completed. Raises `ConditionError` when there is no answer.
        """
        context: dict[str, Any] = {"tasks": {task: dict(tasks[task]) for task in self.references}}
        if "input" in self.expression.variables:
            context["input"] = input
        try:
            return _evaluate(self.expression.cel, context)
        except ConditionError as problem:
            without = sorted(task for task in self.references if tasks[task].get("result") is None)
            if not without:
                raise
            states = ", ".join(f"{task!r} is {tasks[task].get('state')} and its result is null" for task in without)
            raise ConditionError(f"{problem.reason}; {states}") from problem.__cause__


@dataclass(frozen=True, slots=True)
class Filter:
    """A trigger's filter over `event`, ready to be evaluated."""

    source: str
    expression: Expression

    def evaluate(self, event: Any) -> bool:
        """Answers whether the event passes; raises `ConditionError` when there is no answer."""
        return _evaluate(self.expression.cel, {"event": event})


def compile_filter(source: str, where: str) -> Filter:
    """Answers the filter written in `source`; raises `InvalidDefinition` if it is not CEL over `event`."""
    expression = translate(source, known_ids=_NO_TASKS, allowed_ids=_NO_TASKS, variables=_EVENT, where=where)
    _check_program(expression, source, where)
    return Filter(source, expression)


def compile_conditions(definition: WorkflowDefinition) -> dict[str, Condition]:
    """Answers the condition of every task that has one, by task id.

    Raises `InvalidDefinition` as `Condition.compile` does. The graph must have no cycle.
    """
    conditions = {task.id: task.condition for task in definition.tasks if task.condition is not None}
    if not conditions:
        return {}
    upstream = {task.id: task.depends_on for task in definition.tasks}
    allowed = ancestors(upstream, conditions)
    return {
        task: Condition.compile(source, upstream.keys(), allowed[task], where=f"task {task!r}, condition")
        for task, source in conditions.items()
    }


@lru_cache(maxsize=PROGRAMS_MAX)
def _program(source: str) -> "cel.Program":
    import cel  # here, because it takes 200 ms and most workflows have no condition

    return cel.compile(source)


def _check_program(expression: Expression, source: str, where: str) -> None:
    try:
        _program(expression.cel)
    except ValueError as problem:
        # The engine's message quotes what it was given, which is not what the user wrote.
        told = re.search(r"<input>:\d+:\d+: (?:Syntax error: )?(.*?)(?: expecting .*)?$", str(problem), re.MULTILINE)
        reason = told[1] if told else "syntax error"
        raise InvalidDefinition(f"{source!r:.120} is not CEL: {reason}", where=where) from problem


def _evaluate(source: str, variables: dict[str, Any]) -> bool:
    import cel

    try:
        answer = _program(source).execute(cel.Context(variables, {IN_ORDER: _in_order}))
    except Exception as problem:
        raise ConditionError(_reason(problem)) from problem
    if not isinstance(answer, bool):
        raise ConditionError(f"the answer is {_kind(answer)}, not true or false")
    return answer


def _in_order(value: Any) -> Any:
    """What a loop goes through: a list as it is, a map's keys sorted (the engine's own order is random)."""
    return sorted(value, key=lambda key: (str(type(key)), key)) if isinstance(value, dict) else value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "a map"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _reason(problem: Exception) -> str:
    """The engine's error in one sentence; its second ones explain CEL's types at length."""
    if isinstance(problem, KeyError):
        return f"there is no field {problem}"
    text = str(problem)
    if undefined := _UNDEFINED.match(text):
        # Names were checked when it was defined: the engine means that no such function takes these types.
        return f"{undefined[1]!r} does not take values of these types"
    return re.split(r"\. |\n", text, maxsplit=1)[0].rstrip(".")
