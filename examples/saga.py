"""A saga: a trip is booked step by step, the payment fails, and what was booked is undone in reverse order."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.workflow import Task, Workflow

booking = Agent("agent-booking")
cancellation = Agent("agent-cancellation")
booked: dict[str, str] = {}


@booking.handler
async def book(work: Work) -> dict[str, str]:
    if work.task == "pay":
        raise Failure("card_declined", "the card was declined", retryable=False)
    booked[work.task] = work.idempotency_key
    return {"reference": f"{work.task}-{work.execution[:6]}"}


@cancellation.handler
async def cancel(work: Work) -> None:
    if work.compensates is not None:
        # The forward task's own key: undoing it twice, or before it was done, must be safe.
        assert work.compensates["idempotency_key"] == booked.pop(work.compensates["task"])
        assert work.compensates["result"]["reference"].startswith(work.compensates["task"])


workflow = Workflow(name="trip", version="1")
workflow.add_tasks(
    [
        Task(id="flight", agent=booking.name, compensation=Task(id="cancel-flight", agent=cancellation.name)),
        Task(id="hotel", agent=booking.name, depends_on=["flight"]),
        Task(id="pay", agent=booking.name, depends_on=["hotel"]),
    ]
)
workflow.on_failure = [
    Task(id="cancel-hotel", agent=cancellation.name, compensates="hotel"),
    Task(id="tell-customer", agent=cancellation.name),
]


async def main() -> None:
    async with infinity_matrix.local(agents=[booking, cancellation]):
        result = await workflow.execute()
        assert result.status == "failed"
        assert result.error is not None and result.error["type"] == "card_declined"
        assert result.compensated == ("hotel", "flight"), result.compensated
        assert result.compensation == "complete"
        assert booked == {}
        print(f"{result.status} because of {result.error['task']}; undone: {', '.join(result.compensated)}")


asyncio.run(main())
