"""Sequential: each task begins when the one before it has completed, and is given its result.

Run: python examples/sequential.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

calculator = Agent("agent-calculator")


@calculator.handler
async def calculate(work: Work) -> int:
    before = next(iter(work.upstream.values()), work.input["start"])
    return before * work.config["times"] + work.config["plus"]


workflow = Workflow(name="sequential")
workflow.add_tasks(
    [
        Task(id="first", agent="agent-calculator", config={"times": 2, "plus": 1}),
        Task(id="second", agent="agent-calculator", config={"times": 3, "plus": 0}, depends_on=["first"]),
        Task(id="third", agent="agent-calculator", config={"times": 1, "plus": -1}, depends_on=["second"]),
    ]
)


async def main() -> None:
    async with infinity_matrix.local(agents=[calculator]):
        result = await workflow.execute(input={"start": 10})
    print(f"{result.status}: {result.outputs}")
    assert result.outputs == {"first": 21, "second": 63, "third": 62}


if __name__ == "__main__":
    asyncio.run(main())
