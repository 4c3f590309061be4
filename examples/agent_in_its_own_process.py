"""An agent in its own process: it knows the URL of the system and the name of its work, and nothing else.

This file is both programs: with `agent` as argument it is the agent, otherwise it starts one and gives it work.
Run: python examples/agent_in_its_own_process.py
"""

import asyncio
import os
import sys

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

agent = Agent("agent-elsewhere", concurrency=8)


@agent.handler
async def work(work: Work) -> dict[str, int]:
    return {"square": work.input["number"] ** 2, "process": os.getpid()}


async def main() -> None:
    workflow = Workflow(name="elsewhere", tasks=[Task(id="square", agent="agent-elsewhere")])
    async with infinity_matrix.local() as im:
        # The same works across machines: `await agent.serve()` serves the system that IM_URL names.
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "agent", env={**os.environ, "IM_URL": im.url}
        )
        try:
            results = await asyncio.gather(
                *(workflow.execute(input={"number": number}, timeout=30) for number in range(10))
            )
        finally:
            process.terminate()  # it takes no more, finishes what it has, and ends
            code = await asyncio.wait_for(process.wait(), 15)
    squares = [result.outputs["square"]["square"] for result in results]
    print(f"{squares} from process {process.pid}, which ended with {code}")
    assert squares == [number**2 for number in range(10)]
    assert {result.outputs["square"]["process"] for result in results} == {process.pid}
    assert code == 0


if __name__ == "__main__":
    asyncio.run(agent.serve() if sys.argv[1:] == ["agent"] else main())
