"""The engine under the benchmark: server, coordinator and agent in processes of their own, and its public client.

This process is the client. The server's settings are the engine's own, the store is on the same disk as the limit's.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import infinity_matrix
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Subscription

from bench.driver import Running
from bench.server import STORES
from bench.stage import stage
from bench.workloads import AGENT, CONFIG, INPUT, TASK_TIMEOUT_S, WORKLOADS, Workload

BENCH = "engine"
COMPLETED_STATUS = "im.status.*.*._.completed"


class EngineClient:
    """Executes and starts deployed workflows by their name."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._open: set[str] = set()
        self._ended: set[str] = set()
        self._settled = asyncio.Event()
        self._subscription: Subscription | None = None

    async def deploy(self) -> None:
        """Deploy the workflow of every workload."""
        for workload in WORKLOADS:
            tasks = [
                Task(name, agent=AGENT, config=CONFIG, depends_on=list(upstream), timeout=TASK_TIMEOUT_S)
                for name, upstream in workload.graph.items()
            ]
            await self._client.deploy(Workflow(workload.name, tasks=tasks).definition())

    async def execute(self, workload: Workload) -> None:
        """Run one execution and return with its result read from the log; raises ExecutionFailed when it failed."""
        (await self._client.execute(workload.name, INPUT)).raise_for_failure()

    async def start(self, workload: Workload) -> None:
        """Start one execution and return when its start is durable."""
        if self._subscription is None:
            session = self._client.connection.session
            self._subscription = await session.subscribe(COMPLETED_STATUS, self._on_end)
        execution = await self._client.start(workload.name, INPUT)
        if execution in self._ended:  # it ended before its start was known here
            self._ended.discard(execution)
        else:
            self._open.add(execution)

    async def settle(self) -> None:
        """Return when no execution that was started is open."""
        self._settled.clear()
        if self._open:
            await self._settled.wait()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await subscription.close()

    def _on_end(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        execution = subject.split(".")[3]
        if execution in self._open:
            self._open.discard(execution)
            if not self._open:
                self._settled.set()
        else:
            self._ended.add(execution)


@contextlib.asynccontextmanager
async def engine(sync: str) -> AsyncIterator[Running]:
    """Run the engine at one sync setting while the context is open.

    Raises RuntimeError, within ExceptionGroups, when a process dies, and what the engine raises when it does not start.
    """
    STORES.mkdir(exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="engine-", dir=STORES, ignore_cleanup_errors=True)
        )
        # Without a token, as the limit: anyone on this machine may look at a benchmark.
        server = EmbeddedServer(Path(store), token="", sync="always" if sync == "always" else "lazy")
        await stack.enter_async_context(server)
        url = server.connect_url
        coordinator_pid = await stack.enter_async_context(stage("bench.engine_stage", "coordinator", url))
        agent_pid = await stack.enter_async_context(stage("bench.engine_stage", "agent", url))
        client = EngineClient(await stack.enter_async_context(infinity_matrix.connect(url)))
        await client.deploy()
        yield Running(BENCH, client, {"server": server.pid, "coordinator": coordinator_pid, "agent": agent_pid})
