"""Parallel: tasks that do not depend on each other run at the same time.

Each of the three waits until all of them have begun: one after the other, they would wait for ever.
Run: python examples/parallel.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

CITIES = ("Berlin", "Lagos", "Lima")
reader = Agent("agent-weather-reader", concurrency=3)
begun: set[str] = set()
all_begun = asyncio.Event()


@reader.handler
async def read(work: Work) -> dict[str, str]:
    begun.add(work.task)
    if len(begun) == len(CITIES):
        all_begun.set()
    await all_begun.wait()
    return {"city": work.config["city"]}


workflow = Workflow(name="parallel", timeout="20s")
workflow.add_tasks([Task(id=f"read-{city}", agent="agent-weather-reader", config={"city": city}) for city in CITIES])


async def main() -> None:
    async with infinity_matrix.local(agents=[reader]):
        result = await workflow.execute()
    print(f"{result.status}: {len(begun)} at once in {result.duration:.3f} s")
    assert result.status == "completed", result.error
    assert result.outputs == {f"read-{city}": {"city": city} for city in CITIES}


if __name__ == "__main__":
    asyncio.run(main())
