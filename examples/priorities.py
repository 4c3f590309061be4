"""Priorities: urgent orders pass those that are in no hurry when more waits than the agent takes."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

EACH = 200
packer = Agent("agent-packer", concurrency=4)
packed: list[str] = []


@packer.handler
async def pack(work: Work) -> None:
    await asyncio.sleep(0.01)
    packed.append(work.input)


workflow = Workflow(name="packing", tasks=[Task(id="pack", agent=packer.name)])


async def main() -> None:
    async with infinity_matrix.local(agents=[packer]):
        priorities = ["high", "low"] * EACH
        executions = await asyncio.gather(
            *(workflow.start(input=priority, priority=priority) for priority in priorities)
        )
        for execution_id in executions:
            assert (await workflow.wait(execution_id, timeout=60)).status == "completed"
        mean = {
            priority: sum(place for place, each in enumerate(packed, 1) if each == priority) / EACH
            for priority in ("high", "low")
        }
        assert len(packed) == 2 * EACH
        assert mean["high"] < mean["low"] - EACH / 4, mean
        print(f"mean place in the order of packing: high {mean['high']:.0f}, low {mean['low']:.0f}")


asyncio.run(main())
