"""A workflow as a task of another: an order is billed by a workflow of its own; when that fails the order is undone."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.workflow import Task, Workflow

warehouse = Agent("agent-warehouse")
bank = Agent("agent-bank")
reserved: set[int] = set()


@warehouse.handler
async def handle(work: Work) -> dict[str, int]:
    order = work.input["order"]
    if work.compensates is None:
        reserved.add(order)
    else:
        reserved.discard(order)
    return {"order": order, "total": 40}


@bank.handler
async def charge(work: Work) -> dict[str, object]:
    if work.input["total"] > work.input["limit"]:
        raise Failure("declined", "above the limit", retryable=False)
    return {"charged": work.input["total"]}


billing = Workflow(name="billing", tasks=[Task(id="charge", agent=bank.name)])
ordering = Workflow(
    name="ordering",
    tasks=[
        Task(id="reserve", agent=warehouse.name, compensation=Task(id="release", agent=warehouse.name)),
        Task(
            id="bill",
            workflow="billing",
            depends_on=["reserve"],
            input={"total": "${{ reserve.result.total }}", "limit": "${{ input.limit }}"},
        ),
    ],
)


async def main() -> None:
    async with infinity_matrix.local(agents=[warehouse, bank]):
        await billing.deploy()
        result = await ordering.execute(input={"order": 1, "limit": 100}, timeout=60)
        assert result.outputs["bill"] == {"charge": {"charged": 40}}, result
        status = await ordering.get_status(result.execution_id)
        child = status.tasks["bill"].child
        assert child is not None
        assert (await billing.get_status(child)).state == "completed"

        result = await ordering.execute(input={"order": 2, "limit": 10}, timeout=60)
        assert result.status == "failed"
        assert result.error is not None and result.error["type"] == "child_failed"
        assert result.compensated == ("reserve",)
        assert reserved == {1}
        print(f"order 1 was billed by execution {child}; order 2 could not be billed and was released")


asyncio.run(main())
