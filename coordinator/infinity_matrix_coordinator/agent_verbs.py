"""The verbs of the API on agents: the JSON of a request in, the JSON of its answer out."""

from typing import Any

from infinity_matrix_actors.duration import parse_duration
from infinity_matrix_bus.codec import rfc3339

from infinity_matrix_coordinator.agent_pauses import pause_agent, resume_agent
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.requests import Verb, taking, text


class AgentVerbs:
    """The verbs by name, on one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def verbs(self) -> dict[str, Verb]:
        return {
            "agent.pause": taking(self._pause, "agent", "for"),
            "agent.resume": taking(self._resume, "agent"),
        }

    async def _pause(self, body: dict[str, Any]) -> Any:
        """`for` is a duration, such as 30 or "1h"; without it the agent is paused until it is resumed."""
        agent = text(body, "agent")
        for_s = None if body.get("for") is None else parse_duration(body["for"], "for")
        until = await pause_agent(await self._operations.session(), self._operations.subjects, agent, for_s)
        return {"agent": agent, "paused": True, "paused_until": None if until is None else rfc3339(until)}

    async def _resume(self, body: dict[str, Any]) -> Any:
        agent = text(body, "agent")
        await resume_agent(await self._operations.session(), self._operations.subjects, agent)
        return {"agent": agent, "paused": False}
