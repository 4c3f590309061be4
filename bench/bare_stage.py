"""The relay and the agent of the bare limit, each a process of its own.

    python -m bench.bare_stage relay|agent URL

Both end when their stdin does, so that they never outlive the process that started them.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic_core import from_json, to_json

from bench import bare_wire as wire
from bench.bare_bus import LongPull, PubAcks, Session
from bench.stage import end_of_stdin, run_stage, say_ready
from bench.workloads import AGENT, AGENT_CONCURRENCY, RESULT, SHARDS, WORKLOADS

LOG_BATCH = 1_000
INSTANCE = "bench-1"


class Plan:
    """A graph turned round once, so that an outcome finds what follows it by one lookup."""

    def __init__(self, graph: dict[str, tuple[str, ...]]) -> None:
        self.upstream = graph
        self.missing = {task: len(upstream) for task, upstream in graph.items() if upstream}
        self.first = [task for task, upstream in graph.items() if not upstream]
        self.next: dict[str, list[str]] = {task: [] for task in graph}
        for task, upstream in graph.items():
            for one in upstream:
                self.next[one].append(task)
        self.last = [task for task, following in self.next.items() if not following]
        self.size = len(graph)


@dataclass(slots=True)
class Run:
    """One open execution: what came in and what is still missing."""

    workflow: str
    plan: Plan
    input: Any
    started_at: datetime
    missing: dict[str, int]
    results: dict[str, Any] = field(default_factory=dict)


class Relay:
    """Reads the logs, publishes the work that follows each fact, and the end: a coordinator that cannot fail, retry,
    skip, time out or recover anything.
    """

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._acks = PubAcks(connection, self._on_finished)
        self._plans = {workload.name: Plan(workload.graph) for workload in WORKLOADS}
        self._runs: dict[str, Run] = {}

    async def open(self) -> None:
        """Start to read every log."""
        await self._acks.open()
        for shard in range(SHARDS):
            consumer = await wire.create_log_reader(self._connection, shard)
            await self._open_log(shard, consumer)

    async def _open_log(self, shard: int, consumer: str) -> None:
        async def on_fact(message: Msg) -> None:
            tokens = message.subject.split(".")
            kind = tokens[4]
            if kind == "outcome":
                await self._on_outcome(shard, tokens[3], tokens[6], message.data)
            elif kind == "started":
                await self._on_started(shard, tokens[3], message.data)
            await log.done()

        log = LongPull(self._connection, f"IM_FACTS_{shard}", consumer, LOG_BATCH, on_fact)
        await log.open()

    async def _on_started(self, shard: int, execution: str, data: bytes) -> None:
        fact = from_json(data)
        workflow = fact["workflow"]
        plan = self._plans[workflow]
        now = datetime.now(UTC)
        run = self._runs[execution] = Run(workflow, plan, fact["input"], now, plan.missing.copy())
        for task in plan.first:
            await self._dispatch(shard, execution, run, task, now)
        await self._status(execution, run, None, "running", now)

    async def _on_outcome(self, shard: int, execution: str, task: str, data: bytes) -> None:
        run = self._runs[execution]
        plan = run.plan
        run.results[task] = from_json(data)["result"]
        now = datetime.now(UTC)
        # What the next hop waits for goes out first, its status after it.
        for following in plan.next[task]:
            run.missing[following] -= 1
            if run.missing[following] == 0:
                await self._dispatch(shard, execution, run, following, now)
        if len(run.results) == plan.size:
            subject = wire.capped(wire.fact(shard, execution, "finished.1"))
            outputs = {last: run.results[last] for last in plan.last}
            await self._acks.publish(subject, wire.finished(outputs, run.started_at, now), execution)
        await self._status(execution, run, task, "completed", now)

    async def _on_finished(self, execution: str) -> None:
        # After its PubAck, not beside it: the end is an end only once it is durable, and the client waits for this.
        await self._status(execution, self._runs.pop(execution), None, "completed", datetime.now(UTC))

    async def _dispatch(self, shard: int, execution: str, run: Run, task: str, now: datetime) -> None:
        upstream = {one: run.results[one] for one in run.plan.upstream[task]}
        work = wire.work(shard, execution, run.workflow, task, run.input, upstream, now)
        headers = {"Nats-Msg-Id": f"{execution}.{task}.1"}
        await self._acks.publish(f"im.work.{AGENT}.{execution}.{task}.1", work, headers=headers)
        await self._status(execution, run, task, "queued", now)

    async def _status(self, execution: str, run: Run, task: str | None, state: str, now: datetime) -> None:
        subject = f"im.status.{run.workflow}.{execution}.{task or '_'}.{state}{'.1' if task else ''}"
        progress = 100 * len(run.results) / run.plan.size
        payload = wire.status(execution, run.workflow, task, state, progress, now)
        await self._connection.publish(subject, payload)


class Agent:
    """Takes work, gives the outcome at once, and acks the work when the outcome is durable."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._acks = PubAcks(connection, self._on_settled)
        self._work = LongPull(connection, "IM_WORK", AGENT, AGENT_CONCURRENCY, self._on_work)

    async def open(self) -> None:
        """Start to take work."""
        await self._acks.open()
        await self._work.open()

    async def _on_work(self, message: Msg) -> None:
        work = from_json(message.data)
        outcome = {"result": RESULT, "started_at": datetime.now(UTC), "instance": INSTANCE}
        await self._acks.publish(work["reply_to"], to_json(outcome), message.reply)

    async def _on_settled(self, ack_subject: str) -> None:
        await self._connection.publish(ack_subject, b"+ACK")
        await self._work.done()


async def serve(role: str, url: str) -> int:
    """Be the relay or the agent until stdin ends; answer the exit code, 1 after an error of connection or callback."""
    session = Session()
    connection = await session.open(url)
    try:
        await (Relay(connection) if role == "relay" else Agent(connection)).open()
        await connection.flush()
        say_ready()
        ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(end_of_stdin()), session.failed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return 1 if session.failed.done() else 0
    finally:
        await session.close()


if __name__ == "__main__":
    sys.exit(run_stage(serve))
