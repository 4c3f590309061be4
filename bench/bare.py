"""The bare limit of the benchmark: the engine's messages, streams and processes, by stock nats-py and nothing else.

This process is the client; nats-server, relay and agent are its children.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.aio.msg import Msg
from uuid_utils import uuid7

from bench import bare_wire as wire
from bench.bare_bus import PubAcks, Session
from bench.driver import Running
from bench.server import nats_server
from bench.stage import stage
from bench.workloads import INPUT, Workload

BENCH = "bare"


class BareClient:
    """Starts executions by their `started` fact and learns of their end from the terminal status."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._acks = PubAcks(connection, self._on_started)
        self._starting: dict[str, asyncio.Future[None]] = {}
        self._running: dict[str, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Subscribe to PubAcks and to ends of executions."""
        await self._acks.open()
        await self._connection.subscribe(wire.TERMINAL_STATUS, cb=self._on_end)
        await self._connection.flush()

    async def execute(self, workload: Workload) -> None:
        """Run one execution and return at its end."""
        execution = uuid7().hex
        ended = self._running[execution] = self._loop.create_future()
        await self._publish(execution, workload, "")
        await ended

    async def start(self, workload: Workload) -> None:
        """Start one execution and return at the PubAck of its `started`."""
        execution = uuid7().hex
        self._running[execution] = self._loop.create_future()
        confirmed = self._starting[execution] = self._loop.create_future()
        await self._publish(execution, workload, execution)
        await confirmed

    async def settle(self) -> None:
        """Return when no execution is open."""
        await asyncio.gather(*self._running.values())

    async def _publish(self, execution: str, workload: Workload, note: str) -> None:
        subject = wire.fact(wire.shard_of(execution), execution, "started")
        await self._acks.publish(subject, wire.started(workload.name, INPUT), note)

    async def _on_started(self, execution: str) -> None:
        confirmed = self._starting.pop(execution)
        if not confirmed.cancelled():
            confirmed.set_result(None)

    async def _on_end(self, message: Msg) -> None:
        ended = self._running.pop(message.subject.split(".")[3])
        if not ended.cancelled():  # as it is while a stopped run ends
            ended.set_result(None)


@contextlib.asynccontextmanager
async def bare(sync: str) -> AsyncIterator[Running]:
    """Run the bare system at one sync setting while the context is open.

    Raises RuntimeError, within ExceptionGroups, when a process dies or a message is refused.
    """
    async with contextlib.AsyncExitStack() as stack:
        url, server_pid = await stack.enter_async_context(nats_server(sync))
        session = await stack.enter_async_context(session_to(url))
        await wire.create_streams(session.connection)
        relay_pid = await stack.enter_async_context(stage("bench.bare_stage", "relay", url))
        agent_pid = await stack.enter_async_context(stage("bench.bare_stage", "agent", url))
        client = BareClient(session.connection)
        await client.open()
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch_session(session))
            yield Running(BENCH, client, {"server": server_pid, "coordinator": relay_pid, "agent": agent_pid})
            watch.cancel()


@contextlib.asynccontextmanager
async def session_to(url: str) -> AsyncIterator[Session]:
    """Keep a session open while the context is."""
    session = Session()
    await session.open(url)
    try:
        yield session
    finally:
        await session.close()


async def _watch_session(session: Session) -> None:
    raise RuntimeError("the client failed") from await asyncio.shield(session.failed)
