"""Pipeline: many executions move through the same three stages at once, each at its own pace.

The stages are agents of their own: give a slow one more concurrency, or more processes, and leave the others alone.
Run: python examples/pipeline.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

LINES = [f"  order {number} :  {number * 7} EUR " for number in range(1, 51)]
cleaner = Agent("agent-cleaner")
parser = Agent("agent-parser")
pricer = Agent("agent-pricer", concurrency=50)


@cleaner.handler
async def clean(work: Work) -> str:
    return " ".join(work.input["line"].split())


@parser.handler
async def parse(work: Work) -> dict[str, int]:
    _, order, _, amount, _ = work.upstream["clean"].split()
    return {"order": int(order), "amount": int(amount)}


@pricer.handler
async def price(work: Work) -> dict[str, float]:
    await asyncio.sleep(0.1)  # the slow stage: 50 of them wait at once
    order = work.upstream["parse"]
    return {**order, "with_tax": round(order["amount"] * 1.19, 2)}


workflow = Workflow(name="pipeline")
workflow.add_tasks(
    [
        Task(id="clean", agent="agent-cleaner"),
        Task(id="parse", agent="agent-parser", depends_on=["clean"]),
        Task(id="price", agent="agent-pricer", depends_on=["parse"]),
    ]
)


async def main() -> None:
    async with infinity_matrix.local(agents=[cleaner, parser, pricer]):
        results = await asyncio.gather(*(workflow.execute(input={"line": line}) for line in LINES))
    total = sum(result.outputs["price"]["with_tax"] for result in results)
    print(f"{len(results)} executions, together {total:.2f} EUR with tax")
    assert {result.status for result in results} == {"completed"}
    assert abs(total - sum(number * 7 * 1.19 for number in range(1, 51))) < 1


if __name__ == "__main__":
    asyncio.run(main())
