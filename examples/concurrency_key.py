"""A concurrency key: at most two imports of one customer run at a time, those of others beside them."""

import asyncio
from collections import Counter

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

importer = Agent("agent-importer", concurrency=32)
running: Counter[str] = Counter()
most: Counter[str] = Counter()


@importer.handler
async def import_file(work: Work) -> str:
    customer = work.input["customer"]
    running[customer] += 1
    most[customer] = max(most[customer], running[customer])
    await asyncio.sleep(0.05)
    running[customer] -= 1
    return customer


workflow = Workflow(name="import", max_running=2, key="input.customer", tasks=[Task(id="import", agent=importer.name)])


async def main() -> None:
    async with infinity_matrix.local(agents=[importer]):
        customers = ["acme"] * 8 + ["globex"] * 8
        results = await asyncio.gather(
            *(workflow.execute(input={"customer": customer}, timeout=60) for customer in customers)
        )
        assert all(result.status == "completed" for result in results)
        assert most == {"acme": 2, "globex": 2}, most
        print(f"{len(results)} imports, at most at once: {dict(most)}")


asyncio.run(main())
