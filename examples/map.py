"""Maps: one instance of a task for each item of a list, so many at once, and some may fail; and a map in a map."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.workflow import Task, Workflow

AT_ONCE = 4
catalog = Agent("agent-catalog")
thumbnails = Agent("agent-thumbnails")
working = 0
most_working = 0


@catalog.handler
async def list_pictures(work: Work) -> dict[str, list[dict[str, object]]]:
    return {"pictures": [{"name": f"picture-{number}", "broken": number == 7} for number in range(20)]}


@thumbnails.handler
async def shrink(work: Work) -> str:
    global working, most_working
    working += 1
    most_working = max(most_working, working)
    try:
        await asyncio.sleep(0.01)
        if work.config["broken"]:
            raise Failure("unreadable", f"{work.config['name']} cannot be read", retryable=False)
        return f"{work.config['name']}-small"
    finally:
        working -= 1


workflow = Workflow(
    name="gallery",
    tasks=[
        Task(id="list", agent=catalog.name),
        Task(
            id="shrink",
            agent=thumbnails.name,
            depends_on=["list"],
            for_each="list.result.pictures",
            max_parallel=AT_ONCE,
            tolerate_failures="10%",
            config={"name": "${{ item.name }}", "broken": "${{ item.broken }}"},
        ),
    ],
)

albums = Workflow(
    name="albums",
    tasks=[
        Task(
            id="shrink",
            agent=thumbnails.name,
            for_each=["input.albums", "item.pictures"],
            config={"name": "${{ item }}", "broken": False},
        )
    ],
)


async def main() -> None:
    async with infinity_matrix.local(agents=[catalog, thumbnails]):
        result = await workflow.execute(timeout=60)
        assert result.status == "completed", result.error
        shrunk = result.outputs["shrink"]
        assert [shrunk[0], shrunk[19]] == ["picture-0-small", "picture-19-small"]
        assert shrunk[7]["error"]["type"] == "unreadable"
        assert 1 < most_working <= AT_ONCE
        status = await workflow.get_status(result.execution_id)
        instances = status.tasks["shrink"].instances
        assert instances == {"total": 20, "running": 0, "completed": 19, "failed": 1}
        print(f"{instances['completed']} of {instances['total']} pictures, at most {most_working} at once")

        nested = await albums.execute({"albums": [{"pictures": ["sea", "sky"]}, {"pictures": ["cat"]}]}, timeout=60)
        assert nested.outputs["shrink"] == [["sea-small", "sky-small"], ["cat-small"]], nested
        print(f"of two albums: {nested.outputs['shrink']}")


asyncio.run(main())
