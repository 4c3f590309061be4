"""Status, metrics and logs: every transition of an execution as it happens, then what it took and what was logged.

All of it is read from the log: another process can do the same, while the execution runs or long after.
Run: python examples/status_stream.py
"""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

baker = Agent("agent-baker")


@baker.handler
async def bake(work: Work) -> str:
    work.log.info("baking", cakes=work.input["cakes"])
    await work.progress(50, "half of it")
    await asyncio.sleep(0.2)
    return f"{work.task} done"


workflow = Workflow(name="bakery")
workflow.add_tasks([Task(id="dough", agent="agent-baker"), Task(id="cake", agent="agent-baker", depends_on=["dough"])])


async def main() -> None:
    async with infinity_matrix.local(agents=[baker]):
        execution_id = await workflow.start(input={"cakes": 2})
        seen = []
        async for update in workflow.stream_status(execution_id):
            print(f"{update.task_id or 'execution':9} {update.status}")
            seen.append((update.task_id, update.status))
        result = await workflow.wait(execution_id)
        metrics = await workflow.get_metrics(execution_id)
        logs = await workflow.get_logs(execution_id)
    for task_id, task in metrics.tasks.items():
        print(f"{task_id}: queued {task.queue_time:.3f} s, ran {task.run_time:.3f} s, attempts {task.attempts}")
    for line in logs:
        print(f"{line.task_id} logged {line.event} {line.fields}")
    assert result.status == "completed"
    assert seen.index(("dough", "completed")) < seen.index(("cake", "queued"))
    assert seen[-1] == (None, "completed")
    assert 0.1 < metrics.tasks["cake"].run_time < 5
    assert [(line.task_id, line.fields) for line in logs] == [("dough", {"cakes": 2}), ("cake", {"cakes": 2})]


if __name__ == "__main__":
    asyncio.run(main())
