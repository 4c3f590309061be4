"""The second half of the demo: a graph of a real workflow, every task as long as it was, only scaled down.

The agent keeps a journal, appended to with one write a line, that knows nothing of the log: whether a task ran twice or
before its parents is read from there.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from infinity_matrix.agents import Agent, Work
from infinity_matrix.demo.graph import Graph
from infinity_matrix.workflow import Task, Workflow

REPLAYER = "agent-replay"
CONCURRENCY = 200
SCALE = 0.05
#: A graph with a longer critical path is scaled down further.
CRITICAL_PATH_MAX_S = 8.0


def scale_of(graph: Graph) -> float:
    """What run times are multiplied with."""
    path_s = graph.critical_path_s()
    return min(SCALE, CRITICAL_PATH_MAX_S / path_s) if path_s > 0 else SCALE


def replay_workflow(graph: Graph) -> Workflow:
    """The graph as a workflow of one agent."""
    scale = scale_of(graph)
    return Workflow(
        name=f"demo-{graph.name}",
        description=graph.source,
        tasks=[
            Task(
                id=task.id,
                agent=REPLAYER,
                depends_on=list(task.parents),
                config={"program": task.program, "seconds": round(task.runtime_s * scale, 4)},
            )
            for task in graph.tasks
        ],
    )


class Journal:
    """A file of lines `begin <task>` and `end <task>`, in the order in which they happened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, verb: str, task_id: str) -> None:
        os.write(self._file, f"{verb} {task_id}\n".encode())

    def close(self) -> None:
        os.close(self._file)


def replay_agent(journal: Journal) -> Agent:
    """Sleeps as long as each task takes."""
    agent = Agent(REPLAYER, concurrency=CONCURRENCY)

    @agent.handler
    async def replay(work: Work) -> dict[str, Any]:
        journal.write("begin", work.task)
        await asyncio.sleep(work.config["seconds"])
        journal.write("end", work.task)
        return {"program": work.config["program"]}

    return agent


def read_faults(journal: Path, graph: Graph) -> list[str]:
    """What the journal says that must not be: a task run twice, not at all, or before a parent had ended."""
    parents = {task.id: task.parents for task in graph.tasks}
    begun: set[str] = set()
    ended: set[str] = set()
    faults: list[str] = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        verb, _, task_id = line.partition(" ")
        if verb == "end":
            ended.add(task_id)
            continue
        if task_id in begun:
            faults.append(f"{task_id} ran twice")
        begun.add(task_id)
        faults.extend(f"{task_id} ran before {parent} ended" for parent in parents[task_id] if parent not in ended)
    faults.extend(f"{task_id} did not run to its end" for task_id in parents if task_id not in ended)
    return faults
