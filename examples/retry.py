"""Retry: a task that fails is tried again, after a delay; a failure that cannot pass is not.

`work.idempotency_key` is the same in all attempts: give it to whatever must not be done twice.
Run: python examples/retry.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.workflow import Task, Workflow

payer = Agent("agent-payer")
keys: list[str] = []


@payer.handler
async def pay(work: Work) -> dict[str, int]:
    if work.input["amount"] <= 0:
        raise Failure("InvalidAmount", "the amount must be above 0", retryable=False)
    keys.append(work.idempotency_key)
    if work.attempt < 3:
        raise ConnectionError("the bank does not answer")  # any exception is tried again
    return {"paid": work.input["amount"], "attempt": work.attempt}


workflow = Workflow(name="retry")
workflow.add_task(
    Task(
        id="pay",
        agent="agent-payer",
        retry_config={"max_attempts": 5, "backoff": "exponential", "initial_delay": 0.1, "max_delay": 2},
    )
)


async def main() -> None:
    async with infinity_matrix.local(agents=[payer]):
        result = await workflow.execute(input={"amount": 12})
        refused = await workflow.execute(input={"amount": -1})
        metrics = await workflow.get_metrics(refused.execution_id)
    print(f"{result.status}: {result.outputs['pay']}; {refused.status}: {refused.error}")
    assert result.outputs["pay"] == {"paid": 12, "attempt": 3}
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert refused.status == "failed"
    assert refused.error is not None
    assert refused.error["type"] == "InvalidAmount"
    assert metrics.tasks["pay"].attempts == 1


if __name__ == "__main__":
    asyncio.run(main())
