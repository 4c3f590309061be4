"""Waiting: an order is held until somebody approves it, or for a moment; no agent and no message waits meanwhile."""

import asyncio
import datetime

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

orders = Agent("agent-orders")


@orders.handler
async def handle(work: Work) -> dict[str, object]:
    return {"order": work.input["order"], "approval": work.upstream.get("approval")}


def order_workflow(name: str, timeout: str) -> Workflow:
    return Workflow(
        name=name,
        tasks=[
            Task(id="prepare", agent=orders.name),
            Task(
                id="approval", depends_on=["prepare"], wait_for="approved", timeout=timeout, on_timeout={"by": "nobody"}
            ),
            Task(id="cool-down", depends_on=["approval"], sleep="100ms"),
            Task(
                id="ship",
                agent=orders.name,
                depends_on=["approval", "cool-down"],
                condition="approval.result.by != 'nobody'",
            ),
        ],
    )


def embargo_workflow(end: datetime.datetime) -> Workflow:
    return Workflow(
        name="order-embargo",
        tasks=[Task(id="embargo", until=end), Task(id="ship", agent=orders.name, depends_on=["embargo"])],
    )


async def main() -> None:
    async with infinity_matrix.local(agents=[orders]):
        patient = order_workflow("order-patient", "1h")
        execution_id = await patient.start(input={"order": 17})
        await patient.signal(execution_id, "approved", {"by": "ada"})
        result = await patient.wait(execution_id, timeout=30)
        assert result.outputs["ship"]["approval"] == {"by": "ada"}, result

        hasty = order_workflow("order-hasty", "200ms")
        result = await hasty.execute(input={"order": 18})
        assert result.status == "completed"
        assert result.outputs["approval"] == {"by": "nobody"}
        assert "ship" not in result.outputs
        print("order 17 shipped with approval, order 18 was not approved in time and not shipped")

        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(milliseconds=500)
        result = await embargo_workflow(end).execute(input={"order": 19}, timeout=30)
        assert result.outputs["ship"]["order"] == 19, result
        assert datetime.datetime.now(datetime.UTC) >= end
        print(f"order 19 was not shipped before {end:%H:%M:%S.%f}")


asyncio.run(main())
