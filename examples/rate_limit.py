"""A rate and a pause: an agent begins no more than 20 works a second, and none at all while its name is paused.

What is not begun stays in the queue, where other processes of the agent find it.
Run: python examples/rate_limit.py
"""

import asyncio
import time

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

RATE = 20
caller = Agent("agent-caller", rate=f"{RATE}/s", concurrency=8)
calls: list[float] = []


@caller.handler
async def call(work: Work) -> str:
    calls.append(time.monotonic())
    return work.task


workflow = Workflow(name="rate-limit", tasks=[Task(id=f"call-{number}", agent="agent-caller") for number in range(30)])


async def main() -> None:
    async with infinity_matrix.local(agents=[caller]) as client:
        result = await workflow.execute(timeout=30)
        took_s = calls[-1] - calls[0]
        print(f"{result.status}: {len(calls)} calls in {took_s:.1f} s, {len(calls) / took_s:.0f} a second")
        assert result.status == "completed"
        assert took_s > (len(calls) - 4) / RATE

        await client.pause_agent("agent-caller", "1s")  # or: imx agents pause agent-caller --for 1s
        paused_at = time.monotonic()
        await workflow.execute(timeout=30)
        waited_s = calls[30] - paused_at
        print(f"paused for 1 s: the next call came after {waited_s:.1f} s")
        assert waited_s > 0.9


if __name__ == "__main__":
    asyncio.run(main())
