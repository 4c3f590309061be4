"""Schemas: what a workflow takes, what an agent is given and what it gives are held against pydantic models."""

import asyncio

import infinity_matrix
from infinity_matrix import InvalidInput
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow
from pydantic import BaseModel, Field


class Order(BaseModel):
    customer: str
    lines: list[str] = Field(min_length=1)


class Quote(BaseModel):
    total: float = Field(ge=0)


prices = Agent("agent-prices")


@prices.handler
async def quote(work: Work) -> dict[str, object]:
    known = {"tea": 4.5, "milk": 1.2}
    return {"total": sum(known.get(line, -100) for line in work.config["lines"])}


workflow = Workflow(
    name="quotes",
    input_schema=Order,
    tasks=[
        Task(
            id="quote",
            agent=prices.name,
            config={"lines": "${{ input.lines }}"},
            config_schema={"type": "object", "properties": {"lines": {"type": "array", "maxItems": 3}}},
            result_schema=Quote,
        )
    ],
)


async def main() -> None:
    async with infinity_matrix.local(agents=[prices]):
        result = await workflow.execute(input=Order(customer="ada", lines=["tea", "milk"]), timeout=60)
        assert result.outputs["quote"] == {"total": 5.7}, result

        try:
            await workflow.start(input={"customer": "ada", "lines": []})
        except InvalidInput as error:
            refused = str(error)
        else:
            raise AssertionError("an order without lines was taken")
        assert "lines" in refused

        too_many = await workflow.execute(input={"customer": "ada", "lines": ["tea"] * 4}, timeout=60)
        assert too_many.error is not None and too_many.error["type"] == "invalid_config", too_many.error
        negative = await workflow.execute(input={"customer": "ada", "lines": ["gold"]}, timeout=60)
        assert negative.error is not None and negative.error["type"] == "invalid_result", negative.error
        print(f"one quote given; {refused}; {too_many.error['message']}; {negative.error['message']}")


asyncio.run(main())
