"""A loop: a text is improved again and again, each time from the draft before, until it is good enough."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

writer = Agent("agent-writer")


@writer.handler
async def improve(work: Work) -> dict[str, object]:
    before = work.config["draft"] or {"text": "a draft", "score": 0.2}
    return {"text": f"{before['text']}, better", "score": before["score"] + 0.25, "round": work.config["round"]}


def improving(name: str, most: int) -> Workflow:
    return Workflow(
        name=name,
        tasks=[
            Task(
                id="improve",
                agent=writer.name,
                config={"draft": "${{ previous }}", "round": "${{ iteration }}"},
                loop={"until": "result.score > 0.9", "max_iterations": most},
            )
        ],
    )


async def main() -> None:
    async with infinity_matrix.local(agents=[writer]):
        result = await improving("improve", 20).execute(timeout=60)
        last = result.outputs["improve"]
        assert last["round"] == 2, last
        assert last["text"] == "a draft, better, better, better"

        impatient = await improving("improve-in-a-hurry", 2).execute(timeout=60)
        assert impatient.status == "failed"
        assert impatient.error is not None and impatient.error["type"] == "max_iterations"
        print(f"good enough after {last['round'] + 1} rounds; two rounds were not enough")


asyncio.run(main())
