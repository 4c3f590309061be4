"""From YAML: the definition stands in a file, the agents in code. The Python form of it is the same workflow.

Run: python examples/from_yaml.py
"""

import asyncio
from pathlib import Path

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

address_book = Agent("agent-address-book")
postman = Agent("agent-postman")


@address_book.handler
async def select(work: Work) -> dict[str, list[str]]:
    lists = {"weekly": ["ada@example.org", "alan@example.org"]}
    return {"addresses": lists[work.config["list"]]}


@postman.handler
async def send(work: Work) -> dict[str, int]:
    return {"sent": len(work.upstream["select"]["addresses"])}


in_python = Workflow(name="newsletter", version="1.2", description="Write to everyone who asked for it", timeout=300)
in_python.add_tasks(
    [
        Task(id="select", agent="agent-address-book", config={"list": "weekly"}),
        Task(
            id="send",
            agent="agent-postman",
            depends_on=["select"],
            condition="size(select.result.addresses) > 0",
            timeout=30,
            retry_config={"max_attempts": 3, "backoff": "fixed", "initial_delay": 1},
        ),
    ]
)


async def main() -> None:
    workflow = Workflow.from_file(Path(__file__).with_suffix(".yaml"))
    assert workflow.definition().digest() == in_python.definition().digest()
    async with infinity_matrix.local(agents=[address_book, postman]):
        result = await workflow.execute()
    print(f"{workflow.name} {workflow.version}: {result.status}, {result.outputs['send']}")
    assert result.outputs["send"] == {"sent": 2}


if __name__ == "__main__":
    asyncio.run(main())
