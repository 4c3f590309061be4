"""The first workflow: two agents, two tasks, nothing prepared. The system it needs starts by itself and stays a while.

Run: python examples/first_workflow.py
"""

import asyncio

from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

counter = Agent("agent-counter")
greeter = Agent("agent-greeter")


@counter.handler
async def count(work: Work):
    return {"letters": len(work.input["name"])}


@greeter.handler
async def greet(work: Work):
    return f"Hello {work.input['name']}, {work.upstream['count']['letters']} letters!"


workflow = Workflow(name="first")
workflow.add_tasks(
    [Task(id="count", agent="agent-counter"), Task(id="greet", agent="agent-greeter", depends_on=["count"])]
)
result = asyncio.run(workflow.execute(input={"name": "Ada"}))
print(result.status, result.outputs["greet"])
assert result.outputs["greet"] == "Hello Ada, 3 letters!"
