"""A definition made ready to run: who subscribes to whose completion, by task id, with its expressions compiled.

Made once for each definition hash and shared by all its executions.
"""

from collections.abc import Container, Mapping, Set
from dataclasses import dataclass, replace

from infinity_matrix_actors.condition import Condition
from infinity_matrix_actors.definition import (
    CHILD_AGENT,
    HANDLES_FAILURE,
    NOTIFY_AGENT,
    TaskDefinition,
    WorkflowDefinition,
    host_agent,
)
from infinity_matrix_actors.formula import Formula, Template
from infinity_matrix_actors.graph import ancestors

_INPUT = frozenset({"input"})
#: What an instance may name besides: its item and place, or its iteration and what the one before came to.
_ITEM = frozenset({"item", "index"})
_ITERATION = frozenset({"iteration", "previous"})
_LAST = frozenset({"input", "result", "iteration", "item", "index"})
_NO_TASKS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Node:
    """A task with its place in the graph."""

    definition: TaskDefinition
    #: The tasks that subscribe to this one's completion.
    subscribers: tuple[str, ...] = ()
    #: A failure of this task starts a subscriber instead of failing the execution.
    failure_is_handled: bool = True
    condition: Condition | None = None
    #: Fills in the config, the child's input.
    config: Template | None = None
    input: Template | None = None
    #: The list of a map, the end of a loop.
    items: Formula | None = None
    until: Formula | None = None
    #: What each instance of a map or a loop is.
    instance: "Node | None" = None
    #: It begins by anything else than giving its config to an agent as it is.
    is_special: bool = False

    @property
    def is_group(self) -> bool:
        """It has instances, and no attempt of its own."""
        return self.instance is not None


@dataclass(frozen=True, slots=True)
class Plan:
    """All nodes of a definition, in the order they were written."""

    definition: WorkflowDefinition
    digest: str
    nodes: Mapping[str, Node]
    #: The agents that take work; a child takes none.
    agents: frozenset[str]
    roots: tuple[str, ...]
    #: The tasks of `on_failure`, and which of them undoes which task.
    undo_nodes: Mapping[str, Node]
    undo_of: Mapping[str, str]
    #: Tasks whose results are looked into, by a condition or a formula.
    examined: frozenset[str]
    #: Whether an expression or a schema looks into the input, or into any result.
    examines_input: bool = False
    examines_results: bool = False
    #: Neither: whatever travels is only handed on.
    examines_nothing: bool = True
    #: The key whose slots limit how many run, over `input`.
    key: Formula | None = None

    def examines(self, task: str) -> bool:
        """Whether something is decided by the result of a task, or of an instance `task~n`."""
        if not self.examines_results:
            return False
        base = task.split("~", 1)[0]
        node = self.nodes.get(base)
        if node is None:
            return False
        # An instance's result goes to the end of its loop; the list of a map is never a reference itself.
        is_asked = node.definition.result_schema is not None or node.definition.loop is not None
        return is_asked or base in self.examined

    def node(self, task: str) -> Node:
        """The node of a task, forward or of `on_failure`, or of an instance `task~n`; raises KeyError."""
        node = self.nodes.get(task)
        if node is not None:
            return node
        base, *numbers = task.split("~")
        node = self.nodes[base] if base in self.nodes else self.undo_nodes[base]
        if base in self.undo_nodes:
            return node
        for _ in numbers:
            if node.instance is None:
                raise KeyError(task)
            node = node.instance
        return node

    @classmethod
    def of(cls, definition: WorkflowDefinition, digest: str | None = None) -> "Plan":
        """Compiles what `document.define` accepted; raises InvalidDefinition if an expression does not compile."""
        subscribers: dict[str, list[str]] = {task.id: [] for task in definition.tasks}
        handled: set[str] = set()
        for task in definition.tasks:
            for upstream in task.depends_on:
                subscribers[upstream].append(task.id)
                if task.run_when in HANDLES_FAILURE:
                    handled.add(upstream)
        ids = frozenset(subscribers)
        nodes: dict[str, Node] = {}
        examined: set[str] = set()
        for task in definition.tasks:
            condition = None
            if task.condition is not None:
                # Ancestry was checked when the definition was made; a stored one is only compiled again.
                condition = Condition.compile(task.condition, ids, ids, f"task {task.id!r}")
            node = _compiled(task, ids, ids)
            nodes[task.id] = replace(
                node,
                subscribers=tuple(subscribers[task.id]),
                failure_is_handled=task.id in handled,
                condition=condition,
            )
            examined |= _examined(nodes[task.id])
        undo_nodes = {task.id: _compiled(task, ids, ids) for task in definition.on_failure}
        digest = digest or definition.digest()
        key = _key(definition)
        asks_input = definition.input_schema is not None or key is not None or any(map(_asks_input, nodes.values()))
        asks_results = bool(examined) or any(
            task.result_schema is not None or task.loop is not None for task in definition.tasks
        )
        agents = {task.agent for task in (*definition.tasks, *definition.on_failure)} - {"", CHILD_AGENT}
        if definition.asks_host:
            agents.add(host_agent(digest))
        if definition.on_error is not None or definition.on_task_failure is not None:
            agents.add(NOTIFY_AGENT)
        return cls(
            definition,
            digest,
            nodes,
            frozenset(agents),
            tuple(task.id for task in definition.tasks if not task.depends_on),
            undo_nodes,
            {task.compensates: task.id for task in definition.on_failure if task.compensates is not None},
            frozenset(examined),
            asks_input,
            asks_results,
            not asks_input and not asks_results,
            key,
        )


def compile_formulas(definition: WorkflowDefinition) -> None:
    """Checks every formula and template of a definition against the tasks it may name; raises `InvalidDefinition`."""
    upstream = {task.id: task.depends_on for task in definition.tasks}
    special = [task for task in definition.tasks if _may_be_special(task)]
    allowed = ancestors(upstream, [task.id for task in special])
    for task in special:
        _compiled(task, upstream.keys(), allowed[task.id])
    for task in definition.on_failure:
        _compiled(task, upstream.keys(), upstream.keys())
    _key(definition)


def _may_be_special(task: TaskDefinition) -> bool:
    return bool(task.config) or task.map is not None or task.loop is not None or task.child is not None


def _compiled(task: TaskDefinition, known: Set[str], allowed: Container[str]) -> Node:
    """The node of a task and, below it, those of its instances; its place in the graph is not in it yet."""
    if not _may_be_special(task):
        return Node(task, is_special=task.is_waiting or task.config_schema is not None)
    inner = _INPUT
    if task.map is not None:
        inner |= _ITEM
    if task.loop is not None:
        inner |= _ITERATION
    where = f"task {task.id!r}"
    plain = replace(task, map=None, loop=None)
    config = Template.compile(task.config, known, allowed, inner, f"{where}, config") if task.config else None
    child = task.child
    child_input = Template.compile(child.input, known, allowed, inner, f"{where}, input") if child is not None else None
    is_special = plain.is_waiting or config is not None or child is not None or plain.config_schema is not None
    node = Node(plain, config=config, input=child_input, is_special=is_special)
    if task.loop is not None:
        until = Formula.compile(task.loop.until, _NO_TASKS, _NO_TASKS, _LAST, f"{where}, loop.until")
        node = Node(replace(task, map=None), until=until, instance=node, is_special=True)
    if task.map is not None:
        for number in range(len(task.map.items) - 1, -1, -1):
            variables = _INPUT if number == 0 else _INPUT | _ITEM
            place = f"{where}, for_each"
            items = Formula.compile(task.map.items[number], known, allowed, variables, place)
            rest = replace(task.map, items=task.map.items[number:])
            node = Node(replace(task, map=rest), items=items, instance=node, is_special=True)
    return node


def _examined(node: Node) -> frozenset[str]:
    found: frozenset[str] = node.condition.references if node.condition is not None else _NO_TASKS
    inner: Node | None = node
    while inner is not None:
        for expression in (inner.config, inner.input, inner.items):
            if expression is not None:
                found |= expression.references
        inner = inner.instance
    return found


def _asks_input(node: Node) -> bool:
    inner: Node | None = node
    while inner is not None:
        if inner.condition is not None and "input" in inner.condition.expression.variables:
            return True
        for template in (inner.config, inner.input):
            if template is not None and any("input" in f.expression.variables for f in template.formulas.values()):
                return True
        for formula in (inner.items, inner.until):
            if formula is not None and "input" in formula.expression.variables:
                return True
        inner = inner.instance
    return False


def _key(definition: WorkflowDefinition) -> Formula | None:
    if definition.slots is None or definition.slots.key is None:
        return None
    return Formula.compile(definition.slots.key, _NO_TASKS, _NO_TASKS, _INPUT, "key")
