"""Callbacks: functions of this script decide what is done about failures, and people are told."""

import asyncio
import os

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow

loader = Agent("agent-loader")


@loader.handler
async def load(work: Work) -> dict[str, int]:
    if work.attempt <= work.config["outages"]:
        raise Failure("SourceDown", "the source does not answer")
    return {"rows": 7}


def nightly(name: str, outages: int) -> Workflow:
    workflow = Workflow(name=name, version="1")
    workflow.add_task(Task(id="load", agent=loader.name, config={"outages": outages}))
    workflow.on_task_failure = lambda task, error: {"action": "retry", "max_attempts": 3, "delay": 0.1}
    workflow.on_error = lambda error: {"action": "notify", "recipients": ["ops-team@example.com"]}
    return workflow


async def not_told(client: Client, execution_id: str) -> str:
    """Whom the notification did not reach, and why: this script names no mail server."""
    async with asyncio.timeout(10):
        while True:
            for line in await client.get_logs(execution_id):
                if line.event == "not_configured":
                    return f"{line.fields['recipient']}: {line.fields['reason']}"
            await asyncio.sleep(0.1)


async def main() -> None:
    os.environ.pop("IM_SMTP_URL", None)
    async with infinity_matrix.local(agents=[loader]) as client:
        short = await nightly("short-outage", outages=2).execute()
        assert short.outputs == {"load": {"rows": 7}}, short
        print("a short outage: completed at the third attempt, which a function allowed")

        long = await nightly("long-outage", outages=100).execute()
        assert long.status == "failed"
        assert long.error["type"] == "SourceDown"
        reason = await not_told(client, long.execution_id)
        assert "IM_SMTP_URL" in reason
        print(f"a long outage: failed, and somebody would have been told ({reason})")

        # The same without code: data needs no process that answers.
        patient = Workflow("data", tasks=[Task("load", loader.name, config={"outages": 1})])
        patient.on_task_failure = {"action": "retry", "max_attempts": 2, "delay": "100ms"}
        assert (await patient.execute()).status == "completed"


asyncio.run(main())
