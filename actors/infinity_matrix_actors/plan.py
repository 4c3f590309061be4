"""A definition made ready to run: who subscribes to whose completion, by task id.

Made once for each definition hash and shared by all its executions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.condition import Condition
from infinity_matrix_actors.definition import HANDLES_FAILURE, TaskDefinition, WorkflowDefinition


@dataclass(frozen=True, slots=True)
class Node:
    """A task with its place in the graph."""

    definition: TaskDefinition
    #: The tasks that subscribe to this one's completion.
    subscribers: tuple[str, ...]
    #: A failure of this task starts a subscriber instead of failing the execution.
    failure_is_handled: bool
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All nodes of a definition, in the order they were written."""

    definition: WorkflowDefinition
    digest: str
    nodes: Mapping[str, Node]
    agents: frozenset[str]
    roots: tuple[str, ...]
    #: The tasks of `on_failure`, and which of them undoes which task.
    undo_nodes: Mapping[str, Node]
    undo_of: Mapping[str, str]

    def node(self, task: str) -> Node:
        """The node of a task, forward or of `on_failure`; raises KeyError."""
        node = self.nodes.get(task)
        return node if node is not None else self.undo_nodes[task]

    @classmethod
    def of(cls, definition: WorkflowDefinition, digest: str | None = None) -> "Plan":
        """Compiles what `document.define` accepted; raises InvalidDefinition if a condition does not compile."""
        subscribers: dict[str, list[str]] = {task.id: [] for task in definition.tasks}
        handled: set[str] = set()
        for task in definition.tasks:
            for upstream in task.depends_on:
                subscribers[upstream].append(task.id)
                if task.run_when in HANDLES_FAILURE:
                    handled.add(upstream)
        ids = frozenset(subscribers)
        nodes: dict[str, Any] = {}
        for task in definition.tasks:
            condition = None
            if task.condition is not None:
                # Ancestry was checked when the definition was made; a stored one is only compiled again.
                condition = Condition.compile(task.condition, ids, ids, f"task {task.id!r}")
            nodes[task.id] = Node(task, tuple(subscribers[task.id]), task.id in handled, condition)
        return cls(
            definition,
            digest or definition.digest(),
            nodes,
            frozenset(task.agent for task in (*definition.tasks, *definition.on_failure) if task.agent),
            tuple(task.id for task in definition.tasks if not task.depends_on),
            {task.id: Node(task, (), True, None) for task in definition.on_failure},
            {task.compensates: task.id for task in definition.on_failure if task.compensates is not None},
        )
