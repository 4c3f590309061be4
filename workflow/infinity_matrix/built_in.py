"""The built-in agents, `im-bridge` and `im-notify`, in every process that runs a coordinator.

They cost nothing until they are needed: each is opened when work for it is published, or lies there from before, and
nothing of the agents is imported until then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infinity_matrix_actors.definition import BRIDGE_AGENT, NOTIFY_AGENT
from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session, Subscription
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.process import Coordinator

if TYPE_CHECKING:
    from infinity_matrix_agents import Agent, AgentRunner

RETRY_S = 1.0
DRAIN_S = 10.0
log = get_logger("infinity_matrix.built_in")


@asynccontextmanager
async def built_in_agents(coordinator: Coordinator) -> AsyncIterator["BuiltInAgents"]:
    """Serves the built-in agents beside a started coordinator during the block."""
    built_ins = BuiltInAgents(coordinator.connection, coordinator.prefix)
    await built_ins.open()
    try:
        yield built_ins
    finally:
        await built_ins.close()


class BuiltInAgents:
    """Watches over `connection` for work of the built-in agents; serves those that have some on a connection of its
    own, which a broken setup may end without harm to the coordinator."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._watched = connection
        self._subjects = Subjects(prefix)
        self._prefix = prefix
        self._own: Connection | None = None
        self._opening = asyncio.Lock()
        self._subscriptions: dict[str, Subscription] = {}
        self._wanted: set[str] = set()
        self._runners: list[AgentRunner] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Connections made for the built-in agents: none before there is work for one."""
        return 0 if self._own is None else 1

    @property
    def served(self) -> list[str]:
        """The agents that are served now."""
        return sorted(runner.agent.name for runner in self._runners)

    async def open(self) -> None:
        """Begins to watch."""
        await self._watched.add_listener(self._on_session)

    async def close(self) -> None:
        """Lets what runs finish for 10 s and hands the rest back."""
        self._watched.remove_listener(self._on_session)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._subscriptions):
            await self._unwatch(name)
        await asyncio.gather(*(runner.close(DRAIN_S) for runner in self._runners))
        self._runners.clear()
        if self._own is not None:
            await self._own.close()

    async def _on_session(self, session: Session) -> None:
        self._subscriptions.clear()
        for name in _MAKERS.keys() - self._wanted:
            # A plain subscription sees what is stored in the stream, too.
            self._subscriptions[name] = await session.subscribe(
                self._subjects.work_of_agent(name), lambda *message, name=name: self._want(name)
            )
            self._spawn(self._look_back(session, name))

    async def _look_back(self, session: Session, name: str) -> None:
        """Wants the agent if a definition has named it before: its work may lie there since."""
        while not session.is_lost and name not in self._wanted:
            try:
                if await JetStreamApi(session).consumer_info(self._subjects.work_stream, name) is not None:
                    self._want(name)
                return
            except InfinityMatrixError as error:
                log.debug("not_looked", agent=name, reason=str(error))
                await asyncio.sleep(RETRY_S)

    def _want(self, name: str) -> None:
        if name not in self._wanted:
            self._wanted.add(name)
            self._spawn(self._serve(name))

    async def _serve(self, name: str) -> None:
        from infinity_matrix_agents import AgentRunner

        while True:
            try:
                connection = await self._connection()
                agent = _MAKERS[name](connection, self._prefix)
                self._runners.append(await AgentRunner(agent, connection, self._prefix).open())
            except InfinityMatrixError as error:
                log.warning("built_in_not_served", agent=name, reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                await self._unwatch(name)
                return

    async def _connection(self) -> Connection:
        async with self._opening:
            if self._own is None:
                endpoint = self._watched.endpoint
                connection = Connection(replace(endpoint, name=f"{endpoint.name}-agents"))
                self._own = await connection.open()
        return self._own

    async def _unwatch(self, name: str) -> None:
        subscription = self._subscriptions.pop(name, None)
        if subscription is not None:
            await subscription.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _bridge(connection: Connection, prefix: str) -> "Agent":
    from infinity_matrix_agents.bridge import bridge_agent

    return bridge_agent(connection, prefix)


def _notify(connection: Connection, prefix: str) -> "Agent":
    from infinity_matrix_agents.notify import notify_agent

    return notify_agent(connection, prefix)


_MAKERS: dict[str, Callable[[Connection, str], "Agent"]] = {BRIDGE_AGENT: _bridge, NOTIFY_AGENT: _notify}
