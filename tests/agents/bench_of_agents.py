"""A bench for one agent: a real server with an installation, and no workflow. Work is published by hand, and what the
agent says of it is read from the log."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_agents import Agent, AgentRunner
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import encode, parse_server_time, rfc3339
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import Installation
from infinity_matrix_bus.subjects import shard_of

OUTCOME_S = 15.0
POLL_S = 0.02


@dataclass
class Bench:
    """Gives work to agents and reads what they make of it."""

    url: str
    connection: Connection
    installation: Installation
    runners: list[AgentRunner] = field(default_factory=list)

    @property
    def shards(self) -> int:
        return self.installation.shards

    async def serve(self, agent: Agent) -> AgentRunner:
        runner = await AgentRunner(agent, self.connection).open()
        self.runners.append(runner)
        return runner

    async def publish(self, agent: str, config: Any = None, **fields: Any) -> dict[str, Any]:
        """Publishes one work message; answers its record."""
        execution, task, attempt = fields.get("execution", "e1"), fields.get("task", "t1"), fields.get("attempt", 1)
        subjects = self.installation.subjects()
        now = await self.server_time()
        record = {
            "v": 1,
            "execution": execution,
            "workflow": "w1",
            "task": task,
            "attempt": attempt,
            "agent": agent,
            "input": None,
            "config": config or {},
            "upstream": {},
            "reply_to": subjects.outcome(shard_of(execution, self.shards), execution, agent, task, attempt),
            "taken_to": subjects.taken(shard_of(execution, self.shards), execution, agent, task, attempt),
            "idempotency_key": f"{execution}/{task}",
            "timeout": None,
            "ready_at": rfc3339(now),
            "deadline": rfc3339(now + 3600),
            **fields,
        }
        session = self.connection.session
        ack = json.loads(await session.request(subjects.work(agent, execution, task, attempt), encode(record)))
        assert "error" not in ack, ack
        return record

    async def outcome(self, record: dict[str, Any], timeout_s: float = OUTCOME_S) -> dict[str, Any]:
        """The outcome of published work, once it is there."""
        stream = self.installation.subjects().facts_stream(shard_of(record["execution"], self.shards))
        async with asyncio.timeout(timeout_s):
            while True:
                stored = await JetStreamApi(self.connection.session).last_message(stream, record["reply_to"])
                if stored is not None:
                    outcome: dict[str, Any] = json.loads(stored.data)
                    return outcome
                await asyncio.sleep(POLL_S)

    async def done(self, agent: str, config: Any = None, **fields: Any) -> dict[str, Any]:
        """The outcome of one work."""
        return await self.outcome(await self.publish(agent, config, **fields))

    async def server_time(self) -> float:
        info = await JetStreamApi(self.connection.session).stream_info(self.installation.subjects().work_stream)
        assert info is not None
        return parse_server_time(info["ts"])
