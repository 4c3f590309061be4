"""Values too large for a message, an agent that gives them and one that notes what it is given."""

import os
from typing import Any

from infinity_matrix.agents import Agent, Work


def text(size_bytes: int) -> str:
    return os.urandom(size_bytes // 2).hex()


def giver(name: str, results: dict[str, Any]) -> Agent:
    """An agent that gives each task its result."""
    agent = Agent(name)

    @agent.handler
    async def give(work: Work) -> Any:
        return results[work.task]

    return agent


def taker(name: str) -> tuple[Agent, list[Work]]:
    """An agent that notes the works it was given."""
    agent, works = Agent(name), []

    @agent.handler
    async def take(work: Work) -> str:
        works.append(work)
        return "taken"

    return agent, works
