"""Approvals: people decide with edited data, reject, or let a deadline pass."""

import asyncio
from typing import Any

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

releases = Agent("agent-releases")


@releases.handler
async def handle(work: Work) -> Any:
    if work.task == "build":
        return {"artifact": f"build-{work.input['build']}"}
    return {"channel": work.upstream["release"]["data"]["channel"], "by": work.upstream["release"]["by"]}


def release(name: str, **approval: Any) -> Workflow:
    return Workflow(
        name=name,
        tasks=[
            Task(id="build", agent=releases.name),
            Task(id="release", depends_on=["build"], approval={"assignees": ["ada", "grace"], **approval}),
            Task(id="publish", agent=releases.name, depends_on=["release"]),
        ],
    )


async def until_asked(workflow: Workflow, execution_id: str) -> None:
    """Returns once the decision is waited for."""
    async with asyncio.timeout(30):
        async for update in workflow.stream_status(execution_id):
            if (update.task_id, update.status) == ("release", "running"):
                return


async def main() -> None:
    async with infinity_matrix.local(agents=[releases]) as client:
        patient = release("release")
        approved, rejected = [await patient.start(input={"build": number}) for number in (1, 2)]
        await until_asked(patient, approved)
        await until_asked(patient, rejected)
        asked = {each.execution_id: each for each in await client.approvals()}
        assert asked[approved].assignees == ("ada", "grace")
        assert asked[approved].upstream == {"build": {"artifact": "build-1"}}

        await client.approve(approved, "release", by="ada", comment="looks good", data={"channel": "beta"})
        result = await patient.wait(approved, timeout=30)
        assert result.outputs["publish"] == {"channel": "beta", "by": "ada"}, result

        await client.reject(rejected, by="grace", comment="not on a Friday")
        result = await patient.wait(rejected, timeout=30)
        assert result.status == "failed" and result.error is not None
        assert result.error["type"] == "rejected", result.error

        hasty = release("hasty-release", deadline="200ms", on_deadline="reject")
        result = await hasty.execute(input={"build": 3}, timeout=30)
        assert result.status == "failed", result
        assert await client.approvals() == []
        print("build 1 was approved for beta, build 2 rejected, build 3 not decided in time")


asyncio.run(main())
