"""Versions: what runs keeps the definition it was started with, whatever is deployed meanwhile."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

teller = Agent("agent-teller")


@teller.handler
async def tell(work: Work) -> str:
    return f"{work.config['greeting']}, from version {work.version}"


def greeting(version: str, text: str) -> Workflow:
    return Workflow(
        name="greeting",
        version=version,
        tasks=[
            Task(id="hold", wait_for="go"),
            Task(id="greet", agent=teller.name, depends_on=["hold"], config={"greeting": text}),
        ],
    )


async def main() -> None:
    async with infinity_matrix.local(agents=[teller]) as client:
        await greeting("1", "hello").deploy()
        old = await client.start("greeting")
        await greeting("2", "good day").deploy()
        new = await client.start("greeting")

        open_on = {one.version: one.open for one in await client.versions("greeting")}
        assert open_on == {"1": 1, "2": 1}, open_on
        changes = {one.path: (one.before, one.after) for one in await client.diff("greeting", "1", "deployed")}
        assert changes == {"tasks.greet.config.greeting": ("hello", "good day"), "version": ("1", "2")}, changes

        for execution_id in (old, new):
            await client.signal(execution_id, "go")
        told = [(await client.wait(execution_id, 60)).outputs["greet"] for execution_id in (old, new)]
        assert told == ["hello, from version 1", "good day, from version 2"], told
        print("; ".join(told))


asyncio.run(main())
