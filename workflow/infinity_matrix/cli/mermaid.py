"""A definition as a Mermaid flowchart.

Nodes have names of our own and ids stand in quoted labels: a task may be called `end` or `subgraph`, which Mermaid
takes for its own words.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infinity_matrix_actors.definition import TaskDefinition, WorkflowDefinition

#: What ends a label, or begins an entity, a tag or a Markdown string in one.
_ENTITIES = {"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "\\": "#92;"}


def flowchart(definition: "WorkflowDefinition") -> str:
    """The flowchart: triggers, tasks and who does them, dependencies with conditions; dotted where `run_when` is set.

    A loop leads back to itself, a workflow has a double border, what waits is a hexagon; what runs on failure stands
    in a box of its own, with a dotted edge from the task it undoes.
    """
    nodes = {task.id: f"t{number}" for number, task in enumerate(definition.tasks)}
    lines = ["flowchart TD"]
    for task in definition.tasks:
        lines.append(f"    {nodes[task.id]}{_shape(task)}")
    for task in definition.tasks:
        lines.extend(f"    {edge}" for edge in _edges(task, nodes))
        if task.loop is not None:
            again = _label(f"until {task.loop.until}", f"at most {task.loop.max_iterations} times")
            lines.append(f"    {nodes[task.id]} -->|{again}| {nodes[task.id]}")
    lines.extend(_on_failure(definition, nodes))
    roots = [nodes[task.id] for task in definition.tasks if not task.depends_on]
    for number, trigger in enumerate(definition.triggers):
        lines.append(f"    e{number}([{_label(trigger.event)}])")
        arrow = f"-->|{_label(trigger.filter)}|" if trigger.filter else "-->"
        lines.extend(f"    e{number} {arrow} {root}" for root in roots)
    return "\n".join(lines)


def _on_failure(definition: "WorkflowDefinition", nodes: dict[str, str]) -> Iterator[str]:
    """The tasks that undo, each with an edge from what it undoes, and the others one after another."""
    if not definition.on_failure:
        return
    undoing = {task.id: f"u{number}" for number, task in enumerate(definition.on_failure)}
    yield f"    subgraph on_failure [{_label('on failure')}]"
    for task in definition.on_failure:
        yield f"        {undoing[task.id]}{_shape(task)}"
    yield "    end"
    for task in definition.on_failure:
        if task.compensates is not None:
            yield f"    {nodes[task.compensates]} -.->|{_label('undone by')}| {undoing[task.id]}"
    plain = [undoing[task.id] for task in definition.on_failure if task.compensates is None]
    for before, after in pairwise(plain):
        yield f"    {before} --> {after}"


def _shape(task: "TaskDefinition") -> str:
    label = _label(*_texts(task))
    if task.child is not None:
        return f"[[{label}]]"
    return f"{{{{{label}}}}}" if task.is_waiting else f"[{label}]"


def _doer(task: "TaskDefinition") -> str:
    if task.child is not None:
        return f"workflow {task.child.workflow}"
    return f"service {task.service}" if task.service is not None else task.agent or _awaited(task)


def _texts(task: "TaskDefinition") -> list[str]:
    texts = [task.id, _doer(task)]
    if task.map is not None:
        texts += [f"for each of {items}" for items in task.map.items]
        texts.append(f"{task.map.max_parallel} at once")
    if task.condition and not task.depends_on:
        texts.append(f"if {task.condition}")
    if task.retry.max_attempts > 1:
        texts.append(f"up to {task.retry.max_attempts} attempts")
    return texts


def _awaited(task: "TaskDefinition") -> str:
    """What a task waits for that no agent does."""
    if task.approval is not None:
        return f"approval by {', '.join(task.approval.assignees) or 'anyone'}"
    if task.wait_for is not None:
        return f"waits for {task.wait_for}"
    return f"sleeps {task.sleep:g} s" if task.sleep is not None else "waits for its time"


def _edges(task: "TaskDefinition", nodes: dict[str, str]) -> Iterator[str]:
    """An edge for each dependency; the condition stands on those it asks, or on all when it asks none of them."""
    asked = {name for name in task.depends_on if task.condition and _mentions(task.condition, name)}
    for upstream in task.depends_on:
        texts = []
        if task.run_when != "default":
            texts.append(str(task.run_when))
        if task.condition and (upstream in asked or not asked):
            texts.append(task.condition)
        arrow = "-.->" if task.run_when != "default" else "-->"
        label = f"|{_label(*texts)}|" if texts else ""
        yield f"{nodes[upstream]} {arrow}{label} {nodes[task.id]}"


def _mentions(condition: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", condition) is not None


def _label(*texts: str) -> str:
    return '"' + "<br>".join(_escaped(text) for text in texts) + '"'


def _escaped(text: str) -> str:
    return "".join(_ENTITIES.get(character, character) for character in " ".join(text.split()))
