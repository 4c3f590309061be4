"""A definition as a Mermaid flowchart.

Nodes have names of our own and ids stand in quoted labels: a task may be called `end` or `subgraph`, which Mermaid
takes for its own words.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infinity_matrix_actors.definition import TaskDefinition, WorkflowDefinition

#: What ends a label, or begins an entity, a tag or a Markdown string in one.
_ENTITIES = {"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "\\": "#92;"}


def flowchart(definition: "WorkflowDefinition") -> str:
    """The flowchart: triggers, tasks and agents, dependencies with conditions; dotted where `run_when` is set."""
    nodes = {task.id: f"t{number}" for number, task in enumerate(definition.tasks)}
    lines = ["flowchart TD"]
    for task in definition.tasks:
        lines.append(f"    {nodes[task.id]}[{_label(*_texts(task))}]")
    for task in definition.tasks:
        lines.extend(f"    {edge}" for edge in _edges(task, nodes))
    roots = [nodes[task.id] for task in definition.tasks if not task.depends_on]
    for number, trigger in enumerate(definition.triggers):
        lines.append(f"    e{number}([{_label(trigger.event)}])")
        arrow = f"-->|{_label(trigger.filter)}|" if trigger.filter else "-->"
        lines.extend(f"    e{number} {arrow} {root}" for root in roots)
    return "\n".join(lines)


def _texts(task: "TaskDefinition") -> list[str]:
    texts = [task.id, task.agent or _awaited(task)]
    if task.condition and not task.depends_on:
        texts.append(f"if {task.condition}")
    if task.retry.max_attempts > 1:
        texts.append(f"up to {task.retry.max_attempts} attempts")
    return texts


def _awaited(task: "TaskDefinition") -> str:
    """What a task waits for that no agent does."""
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
