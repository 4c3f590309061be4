"""Conditions of tasks and filters of triggers: CEL, checked when defined, evaluated by the core.

Both must come to true or false; `formula` is for expressions whose answer is any value.
"""

from collections.abc import Container, Mapping, Set
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.engine import check_program, is_true
from infinity_matrix_actors.errors import ConditionError
from infinity_matrix_actors.expression import Expression, translate
from infinity_matrix_actors.graph import ancestors

__all__ = ["Condition", "ConditionError", "Filter", "compile_conditions", "compile_filter"]

_INPUT = frozenset({"input"})
_EVENT = frozenset({"event"})
_NO_TASKS: frozenset[str] = frozenset()


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
        check_program(expression, source, where)
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
            return is_true(self.expression.cel, context)
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
        return is_true(self.expression.cel, {"event": event})


def compile_filter(source: str, where: str) -> Filter:
    """Answers the filter written in `source`; raises `InvalidDefinition` if it is not CEL over `event`."""
    expression = translate(source, known_ids=_NO_TASKS, allowed_ids=_NO_TASKS, variables=_EVENT, where=where)
    check_program(expression, source, where)
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
