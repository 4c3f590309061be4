"""Fan-out and fan-in: one task splits the work, many do a part each, one puts the results together.

Run: python examples/fan_out_fan_in.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

PARTS = 20
splitter = Agent("agent-splitter")
searcher = Agent("agent-prime-searcher")
adder = Agent("agent-adder")


@splitter.handler
async def split(work: Work) -> dict[str, int]:
    return {"size": work.input["below"] // PARTS}


@searcher.handler
def search(work: Work) -> int:  # a plain function runs in a thread
    size = work.upstream["split"]["size"]
    numbers = range(work.config["part"] * size, (work.config["part"] + 1) * size)
    return sum(number > 1 and all(number % i for i in range(2, int(number**0.5) + 1)) for number in numbers)


@adder.handler
async def add(work: Work) -> int:
    return sum(work.upstream.values())


parts = [f"search-{part}" for part in range(PARTS)]
workflow = Workflow(name="fan-out-fan-in")
workflow.add_task(Task(id="split", agent="agent-splitter"))
workflow.add_tasks(
    Task(id=id, agent="agent-prime-searcher", depends_on=["split"], config={"part": part})
    for part, id in enumerate(parts)
)
workflow.add_task(Task(id="add", agent="agent-adder", depends_on=parts))


async def main() -> None:
    async with infinity_matrix.local(agents=[splitter, searcher, adder]):
        result = await workflow.execute(input={"below": 10_000})
    print(f"{result.outputs['add']} primes below 10,000, found by {PARTS} tasks in {result.duration:.3f} s")
    assert result.outputs["add"] == 1229


if __name__ == "__main__":
    asyncio.run(main())
