"""Conditional: a condition is asked when a task is ready; a task whose condition is false is skipped.

The two branches join again: a join runs when none of its upstream tasks failed and at least one completed.
Run: python examples/conditional.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

checker = Agent("agent-order-checker")
clerk = Agent("agent-clerk")


@checker.handler
async def check(work: Work) -> dict[str, int]:
    return {"total": sum(work.input["prices"])}


@clerk.handler
async def handle(work: Work) -> str:
    return f"{work.task} after {', '.join(id for id, result in work.upstream.items() if result is not None)}"


workflow = Workflow(name="conditional")
workflow.add_tasks(
    [
        Task(id="check", agent="agent-order-checker"),
        Task(id="approve", agent="agent-clerk", depends_on=["check"], condition="check.result.total <= 100"),
        Task(id="review", agent="agent-clerk", depends_on=["check"], condition="check.result.total > 100"),
        Task(id="ship", agent="agent-clerk", depends_on=["approve", "review"]),
    ]
)


async def main() -> None:
    async with infinity_matrix.local(agents=[checker, clerk]):
        small = await workflow.execute(input={"prices": [20, 30]})
        large = await workflow.execute(input={"prices": [20, 300]})
        status = await workflow.get_status(large.execution_id)
    print(f"small: {small.outputs['ship']}; large: {large.outputs['ship']}")
    assert small.outputs["ship"] == "ship after approve"
    assert large.outputs["ship"] == "ship after review"
    assert status.tasks["approve"].state == "skipped"


if __name__ == "__main__":
    asyncio.run(main())
