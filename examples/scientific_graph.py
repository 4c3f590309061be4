"""Scientific graph: a workflow of the WfCommons collection that really ran, replayed with its times scaled down.

Without an argument it is a BLAST search of 43 tasks; `{"name", "source", "tasks": [{"id", "program", "parents",
"runtime_s"}]}` is the form of a file you may name instead.
Run: python examples/scientific_graph.py [FILE]
"""

import asyncio
import sys
from pathlib import Path

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.demo.graph import read_graph, shipped_graph
from infinity_matrix.workflow import Task, Workflow

SCALE = 0.05
scientist = Agent("agent-scientist", concurrency=200)
ended: list[str] = []


@scientist.handler
async def compute(work: Work) -> dict[str, str]:
    await asyncio.sleep(work.config["seconds"])
    ended.append(work.task)
    return {"program": work.config["program"]}


async def main() -> None:
    graph = read_graph(Path(sys.argv[1])) if sys.argv[1:] else shipped_graph()
    workflow = Workflow(name=graph.name, description=graph.source)
    for task in graph.tasks:
        config = {"program": task.program, "seconds": task.runtime_s * SCALE}
        workflow.add_task(Task(id=task.id, agent="agent-scientist", depends_on=list(task.parents), config=config))
    async with infinity_matrix.local(agents=[scientist]):
        result = await workflow.execute()
    at_least_s = graph.critical_path_s() * SCALE
    print(f"{graph.name}: {len(ended)} tasks in {result.duration:.2f} s (its longest path: {at_least_s:.2f} s)")
    assert result.status == "completed", result.error
    assert sorted(ended) == sorted(task.id for task in graph.tasks)
    assert all(ended.index(parent) < ended.index(task.id) for task in graph.tasks for parent in task.parents)


if __name__ == "__main__":
    asyncio.run(main())
