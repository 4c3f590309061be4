"""Templates: the config of a task is filled in from the input and from the results before it."""

import asyncio

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

extractor = Agent("agent-extractor")
loader = Agent("agent-loader")


@extractor.handler
async def extract(work: Work) -> dict[str, object]:
    return {"rows": [{"id": 1}, {"id": 2}], "source": "orders"}


@loader.handler
async def load(work: Work) -> dict[str, object]:
    return work.config


def loading(name: str, rows: str) -> Workflow:
    return Workflow(
        name=name,
        tasks=[
            Task(id="extract", agent=extractor.name),
            Task(
                id="load",
                agent=loader.name,
                depends_on=["extract"],
                config={
                    "rows": rows,
                    "table": "${{ extract.result.source }}_${{ input.year }}",
                    "options": [{"first": "${{ extract.result.rows[0].id }}"}, "as it is"],
                },
            ),
        ],
    )


async def main() -> None:
    async with infinity_matrix.local(agents=[extractor, loader]):
        result = await loading("load", "${{ extract.result.rows }}").execute(input={"year": 2026}, timeout=60)
        assert result.outputs["load"] == {
            "rows": [{"id": 1}, {"id": 2}],
            "table": "orders_2026",
            "options": [{"first": 1}, "as it is"],
        }, result

        result = await loading("load-wrong", "${{ extract.result.rowz }}").execute(input={"year": 2026}, timeout=60)
        assert result.status == "failed"
        assert result.error is not None and result.error["type"] == "expression_error"
        assert "extract.result.rowz" in result.error["message"]
        print(f"filled in once; the other time: {result.error['message']}")


asyncio.run(main())
