"""Control: hold an execution, let it go on, cancel one, and pause a whole workflow."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import WorkflowPaused

printer = Agent("agent-printer")
began: list[str] = []


@printer.handler
async def handle(work: Work) -> str:
    began.append(f"{work.execution} {work.task}")
    if work.task == "print":
        # An agent that looks at `cancelled` stops in its own time, within the grace.
        for _ in range(work.input["pages"]):
            if work.cancelled:
                break
            await asyncio.sleep(0.02)
    return work.task


workflow = Workflow(
    name="printing",
    tasks=[
        Task(id="prepare", agent=printer.name),
        Task(id="print", agent=printer.name, depends_on=["prepare"]),
        Task(id="bind", agent=printer.name, depends_on=["print"]),
    ],
)


async def until(execution_id: str, task: str, status: str) -> None:
    """Returns once a task has come to that."""
    async with asyncio.timeout(30):
        async for update in workflow.stream_status(execution_id):
            if (update.task_id, update.status) == (task, status):
                return
    raise AssertionError(f"{task} never was {status}")


async def main() -> None:
    async with infinity_matrix.local(agents=[printer]) as client:
        # Held while it prints: the page goes on, and nothing more is begun.
        held = await workflow.start(input={"pages": 20}, execution_id="held")
        await until(held, "print", "running")
        await workflow.pause(held, reason="no paper")
        await until(held, "print", "completed")
        status = await workflow.get_status(held)
        assert status.state == "paused", status
        assert "held bind" not in began
        await workflow.resume(held)
        result = await workflow.wait(held, timeout=30)
        assert result.status == "completed" and "held bind" in began

        # Cancelled while it prints.
        cancelled = await workflow.start(input={"pages": 5000}, execution_id="cancelled")
        await until(cancelled, "print", "running")
        await workflow.cancel(cancelled, reason="the customer left", grace="5s")
        result = await workflow.wait(cancelled, timeout=30)
        assert result.status == "cancelled"
        assert result.error is not None and result.error["message"] == "the customer left"

        # A workflow that is paused is started by nobody.
        await workflow.deploy()
        await client.pause_workflow("printing")
        try:
            await workflow.start(input={"pages": 1})
        except WorkflowPaused as error:
            print(error)
        else:
            raise AssertionError("a paused workflow was started")
        await client.resume_workflow("printing")

        # Many at a time, after a look at which.
        running = {await workflow.start(input={"pages": 5000}) for _ in range(3)}
        asked = await client.bulk("cancel", workflow="printing", dry_run=True)
        assert {each.execution_id for each in asked} == running
        await client.bulk("cancel", workflow="printing", grace=0)
        for execution_id in running:
            assert (await workflow.wait(execution_id, timeout=30)).status == "cancelled"
        print("held and completed one, cancelled one and then three")


asyncio.run(main())
