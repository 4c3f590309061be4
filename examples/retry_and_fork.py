"""After a failure: retry what did not complete, or fork from the middle with something changed; and start policies."""

import asyncio
from collections import Counter
from typing import Any

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.workflow import Task, Workflow

etl = Agent("agent-etl")
done: Counter[str] = Counter()
warehouse = {"is_open": False}


@etl.handler
async def handle(work: Work) -> Any:
    done[work.task] += 1
    match work.task:
        case "extract":
            return {"rows": work.input["rows"]}
        case "transform":
            return {"rows": [row * 2 for row in work.upstream["extract"]["rows"]]}
        case _:
            if not warehouse["is_open"]:
                raise Failure("closed", "the warehouse is closed", retryable=False)
            return sum(work.upstream["transform"]["rows"]) * work.config["factor"]


workflow = Workflow(
    name="etl",
    tasks=[
        Task(id="extract", agent=etl.name),
        Task(id="transform", agent=etl.name, depends_on=["extract"]),
        Task(id="load", agent=etl.name, depends_on=["transform"], config={"factor": 1}),
    ],
)


async def main() -> None:
    async with infinity_matrix.local(agents=[etl]) as client:
        result = await workflow.execute(input={"rows": [1, 2, 3]}, execution_id="monday")
        assert result.status == "failed"

        # The same execution goes on where it failed: only `load` runs again.
        warehouse["is_open"] = True
        await workflow.retry("monday", reason="the warehouse is open")
        result = await workflow.wait("monday", timeout=30)
        assert result.status == "completed" and result.outputs["load"] == 12
        assert done == {"extract": 1, "transform": 1, "load": 2}, done

        # A new execution from `load` on, with another factor and another result before it.
        changes = {"config": {"load": {"factor": 10}}, "results": {"transform": {"rows": [5]}}}
        forked = await workflow.fork("monday", from_task="load", changes=changes)
        result = await workflow.wait(forked, timeout=30)
        assert (forked, result.outputs["load"]) == ("monday-f1", 50)
        assert done == {"extract": 1, "transform": 1, "load": 3}, done
        lineage = await client.lineage("monday-f1")
        assert (lineage.fork_of, lineage.from_task) == ("monday", "load")
        assert (await client.lineage("monday")).forks == ["monday-f1"]

        # An id is never started twice; what a start does when it is there is yours to say.
        warehouse["is_open"] = False
        await workflow.execute(input={"rows": [7]}, execution_id="tuesday")
        warehouse["is_open"] = True
        result = await workflow.execute(input={"rows": [7]}, execution_id="tuesday", if_exists="rerun_failed")
        assert (result.execution_id, result.status) == ("tuesday-r2", "completed")
        assert (await workflow.wait("tuesday")).execution_id == "tuesday-r2"
        assert await workflow.start(input={"rows": []}, execution_id="tuesday", if_exists="return") == "tuesday-r2"
        print("monday was retried and forked, tuesday was run again")


asyncio.run(main())
