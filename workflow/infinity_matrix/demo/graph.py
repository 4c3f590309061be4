"""Graphs of workflows that really ran, with the time every task took: what the second half of the demo replays."""

import json
import os
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

LARGE = "montage-2mass-05d.json"
SHIPPED = "blast-small.json"
FOLDER_VARIABLE = "IM_DEMO_WORKFLOWS"


@dataclass(frozen=True, slots=True)
class GraphTask:
    """A task as it ran: `runtime_s` is what it took then."""

    id: str
    program: str
    parents: tuple[str, ...]
    runtime_s: float


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph in an order in which every task comes after its parents."""

    name: str
    source: str
    tasks: tuple[GraphTask, ...]

    def critical_path_s(self) -> float:
        """How long it takes at least, however many run at once."""
        ends_s: dict[str, float] = {}
        for task in self.tasks:
            ends_s[task.id] = task.runtime_s + max((ends_s[parent] for parent in task.parents), default=0.0)
        return max(ends_s.values(), default=0.0)


def find_graph() -> Graph:
    """The large graph where it is at hand, else the small one of this package."""
    folders = [Path.cwd() / "../shared/workflows", Path(__file__).parents[3] / "../shared/workflows"]
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        folders.insert(0, Path(named))
    for folder in folders:
        if (folder / LARGE).is_file():
            return read_graph(folder / LARGE)
    return shipped_graph()


def shipped_graph() -> Graph:
    """The graph that is part of the package."""
    return read_graph(resources.files("infinity_matrix.demo").joinpath(SHIPPED))


def read_graph(path: Traversable) -> Graph:
    """Reads a graph from a file; raises ValueError when its tasks make a circle or name unknown parents."""
    record = json.loads(path.read_text(encoding="utf-8"))
    tasks = [
        GraphTask(task["id"], task["program"], tuple(task["parents"]), task["runtime_s"]) for task in record["tasks"]
    ]
    return Graph(record["name"], record["source"], _in_order(tasks))


def _in_order(tasks: list[GraphTask]) -> tuple[GraphTask, ...]:
    ordered: dict[str, GraphTask] = {}
    left = tasks
    while left:
        ready = [task for task in left if all(parent in ordered for parent in task.parents)]
        if not ready:
            raise ValueError(f"the task {left[0].id!r} can never run: its parents are missing or wait for it")
        ordered.update((task.id, task) for task in ready)
        left = [task for task in left if task.id not in ordered]
    return tuple(ordered.values())
