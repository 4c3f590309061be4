"""Trigger: an event starts an execution of every workflow that is armed for it; the same event again starts nothing.

Run: python examples/trigger.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Trigger, Workflow

accountant = Agent("agent-accountant")
booked: asyncio.Queue[int] = asyncio.Queue()


@accountant.handler
async def book(work: Work) -> dict[str, int]:
    await booked.put(work.input["order"])
    return {"order": work.input["order"]}


workflow = Workflow(name="book-order", triggers=[Trigger("orders.created", filter="event.total > 100")])
workflow.add_task(Task(id="book", agent="agent-accountant"))


async def main() -> None:
    async with infinity_matrix.local(agents=[accountant]) as im, asyncio.timeout(30):
        await workflow.deploy()  # from now on the trigger is armed
        await im.trigger("orders.created", {"order": 1, "total": 250}, event_id="order-1")
        await im.trigger("orders.created", {"order": 1, "total": 250}, event_id="order-1")  # published once more
        await im.trigger("orders.created", {"order": 2, "total": 50}, event_id="order-2")  # too small
        await im.trigger("orders.created", {"order": 3, "total": 150}, event_id="order-3")
        orders = {await booked.get(), await booked.get()}
        executions = await im.list(workflow="book-order")
        results = [await im.wait(execution.execution_id) for execution in executions]
    print(f"orders {sorted(orders)} were booked by {len(results)} executions")
    assert orders == {1, 3}
    assert [result.status for result in results] == ["completed", "completed"]


if __name__ == "__main__":
    asyncio.run(main())
