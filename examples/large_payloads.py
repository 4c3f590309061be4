"""Large results: 5 MB go through three tasks, and twenty of 200 KB meet in one; no task sees that they were stored.

Run: python examples/large_payloads.py
"""

import asyncio
from hashlib import sha256

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

PARTS = 20
reader = Agent("agent-large-reader")
copier = Agent("agent-large-copier")
slicer = Agent("agent-large-slicer")
joiner = Agent("agent-large-joiner")


@reader.handler
async def read(work: Work) -> dict[str, list[int]]:
    return {"rows": [(number * 2_654_435_761) % 1_000_000_007 for number in range(work.input["rows"])]}


@copier.handler
async def copy(work: Work) -> dict[str, list[int]]:
    (rows,) = work.upstream.values()
    return rows


@slicer.handler
async def take(work: Work) -> str:
    rows = work.upstream["copy"]["rows"]
    part = work.config["part"]
    return ",".join(map(str, rows[part::PARTS]))


@joiner.handler
async def join(work: Work) -> dict[str, int]:
    return {part: len(text) for part, text in work.upstream.items()}


slices = [f"slice-{part}" for part in range(PARTS)]
workflow = Workflow(name="large-payloads")
workflow.add_task(Task(id="read", agent="agent-large-reader"))
workflow.add_task(Task(id="copy", agent="agent-large-copier", depends_on=["read"]))
workflow.add_tasks(
    Task(id=id, agent="agent-large-slicer", depends_on=["copy"], config={"part": part})
    for part, id in enumerate(slices)
)
workflow.add_task(Task(id="join", agent="agent-large-joiner", depends_on=slices))


def digest(rows: list[int]) -> str:
    return sha256(",".join(map(str, rows)).encode()).hexdigest()


async def main() -> None:
    async with infinity_matrix.local(agents=[reader, copier, slicer, joiner]):
        result = await workflow.execute(input={"rows": 500_000}, timeout=60)
    result.raise_for_failure()
    rows = result.outputs["copy"]["rows"]
    size_mb = len(str(rows)) / 1e6
    texts = {id: ",".join(map(str, rows[part::PARTS])) for part, id in enumerate(slices)}
    print(f"{size_mb:.1f} MB through three tasks, {sum(map(len, texts.values())) / 1e6:.1f} MB into one join")
    assert size_mb > 5
    assert digest(rows) == digest([(number * 2_654_435_761) % 1_000_000_007 for number in range(500_000)])
    assert {id: result.outputs[id] for id in slices} == texts
    assert result.outputs["join"] == {id: len(text) for id, text in texts.items()}


if __name__ == "__main__":
    asyncio.run(main())
