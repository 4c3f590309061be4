"""Open executions with real work under way, all coordinators killed: how soon a new one has all of them, and the end.

Half of them are in the middle of a task, in an agent's hands or in its queue; others have not begun, sleep, or undo
what they did. While nobody coordinates, part of the work is lost as well: whoever takes over must publish it again.
"""

import asyncio
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work, serve_agents
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.installation import SHARDS_DEFAULT
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_coordinator.standing import ShardStanding

from .figures import Figure
from .processes import CoordinatorProcess, are_live, held, until

COLD_START_MAX_S = 30.0
SET_UP_S, END_S = 120.0, 120.0
STARTS_AT_ONCE = 500
POLL_S = 0.05
IN_HAND = 0.25
NAP_S, FOREVER_S = 40.0, 3600.0


@dataclass(frozen=True, slots=True)
class Kind:
    """How many of ten executions are of it, the agent whose work each waits for at first, and its end."""

    share: int
    agent: str | None
    end: str
    workflow: Workflow


def _chain(name: str, *steps: str | float, undo: str | None = None) -> Workflow:
    """A task after the other: of an agent, or a sleep of so many seconds. `undo` is the agent that undoes the first."""
    tasks: list[Task] = []
    for number, step in enumerate(steps):
        after = [tasks[-1].id] if tasks else []
        if isinstance(step, float):
            tasks.append(Task(f"task-{number}", sleep=step, depends_on=after))
        else:
            undoing = Task(f"undo-{number}", undo) if undo is not None and not number else None
            tasks.append(Task(f"task-{number}", step, depends_on=after, compensation=undoing))
    return Workflow(name, tasks=tasks)


def _kinds(nap_s: float) -> tuple[Kind, ...]:
    return (
        Kind(5, "held", "completed", _chain("middle", "prompt", "held", "prompt")),
        Kind(2, "late", "completed", _chain("beginning", "late", "prompt", "prompt")),
        Kind(2, None, "completed", _chain("sleeping", "prompt", nap_s, "prompt")),
        Kind(1, "late", "failed", _chain("undoing", "prompt", "failing", "prompt", undo="late")),
    )


async def run(count: int, *, is_quick: bool = False) -> list[Figure]:
    """Starts `count` executions, kills all coordinators, and measures what the next one does.

    The quick way leaves out what only takes time: that the dead are members for 5 s yet, and the end of the sleepers.
    """
    with tempfile.TemporaryDirectory(prefix="im-capacity-") as folder:
        async with EmbeddedServer(Path(folder) / "store", sync="lazy") as server:
            run = _Run(server.connect_url, Path(folder), count, is_quick)
            try:
                return await run.run()
            finally:
                await run.close()


class _Run:
    def __init__(self, url: str, folder: Path, count: int, is_quick: bool) -> None:
        self._url = url
        self._folder = folder
        self._count = count
        self._is_quick = is_quick
        self._kinds = _kinds(FOREVER_S if is_quick else NAP_S)
        self._coordinators: list[CoordinatorProcess] = []
        self._serving: list[asyncio.Task[None]] = []
        self._is_released = asyncio.Event()

    async def run(self) -> list[Figure]:
        self._coordinators = [CoordinatorProcess(self._url, self._folder) for _ in range(1 if self._is_quick else 2)]
        for coordinator in self._coordinators:
            await coordinator.ready()
        self._serve(self._prompt(), self._failing(), self._held())
        async with infinity_matrix.connect(self._url) as client:
            await self._start(client)
            expected = {agent: self._waiting_for(agent) for agent in ("held", "late")}
            await self._works(client, expected, SET_UP_S)
            for coordinator in self._coordinators:
                coordinator.kill()
            api = JetStreamApi(client.connection.session)
            await api.purge("IM_WORK", "im.work.late.>")
            if self._is_quick:
                await api.purge("KV_IM_MEMBERS", "$KV.IM_MEMBERS.*")
            figures = await self._taken_over(client, expected)
            self._serve(self._late())
            self._is_released.set()
            began = time.monotonic()
            ends = await self._ends(client)
            figures.append(Figure("until all had ended", time.monotonic() - began, "s", END_S))
            missing = self._expected_ends() - ends
            figures.append(Figure("that did not end as they should", missing.total(), "", 0))
            return figures

    async def _taken_over(self, client: Client, expected: dict[str, int]) -> list[Figure]:
        third = CoordinatorProcess(self._url, self._folder)
        self._coordinators.append(third)

        def has_all(shards: tuple[ShardStanding, ...]) -> bool:
            return are_live(shards, SHARDS_DEFAULT) and sum(held(shards)) == self._count

        await until(client, has_all, SET_UP_S, "a coordinator that has all of them")
        figures = [Figure("until it has all of them", time.monotonic() - third.began, "s", COLD_START_MAX_S)]
        await self._works(client, expected, SET_UP_S)
        figures.append(Figure("until all work is there again", time.monotonic() - third.began, "s", COLD_START_MAX_S))
        figures.append(Figure("memory of the coordinator then", third.resident_mb, "MB"))
        return figures

    async def close(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for coordinator in self._coordinators:
            coordinator.kill()

    # Executions.

    async def _start(self, client: Client) -> None:
        for kind in self._kinds:
            count, name = self._number(kind), kind.workflow.name
            digest = await client.operations.store(kind.workflow.definition())
            for begin in range(0, count, STARTS_AT_ONCE):
                numbers = range(begin, min(count, begin + STARTS_AT_ONCE))
                await asyncio.gather(*(client.operations.start(name, digest, {"number": n}) for n in numbers))

    def _number(self, kind: Kind) -> int:
        return self._count * kind.share // 10

    def _waiting_for(self, agent: str) -> int:
        return sum(self._number(kind) for kind in self._kinds if kind.agent == agent)

    def _expected_ends(self) -> Counter[tuple[str, str]]:
        return Counter(
            {
                (kind.workflow.name, kind.end): self._number(kind)
                for kind in self._kinds
                if kind.agent is not None or not self._is_quick
            }
        )

    async def _ends(self, client: Client) -> Counter[tuple[str, str]]:
        """How many executions of each workflow ended how, once all have."""
        deadline = time.monotonic() + END_S
        while True:
            found = Counter((one.workflow, one.state) for one in await client.list() if not one.is_open)
            if found.total() >= self._expected_ends().total() or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.25)

    async def _works(self, client: Client, expected: dict[str, int], timeout_s: float) -> None:
        """Returns once as many works as expected are queued or in hand, of each agent; raises RuntimeError."""
        api = JetStreamApi(client.connection.session)
        deadline = time.monotonic() + timeout_s
        while True:
            there = {agent: await self._work_of(api, agent) for agent in expected}
            if there == expected:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the works that are there are {there}, not {expected}")
            await asyncio.sleep(POLL_S)

    async def _work_of(self, api: JetStreamApi, agent: str) -> int:
        info = await api.consumer_info("IM_WORK", agent) or {}
        return int(info.get("num_pending", 0)) + int(info.get("num_ack_pending", 0))

    # Agents.

    def _serve(self, *agents: Agent) -> None:
        self._serving.append(asyncio.create_task(serve_agents(list(agents), self._url)))

    def _prompt(self) -> Agent:
        agent = Agent("prompt", concurrency=256)

        @agent.handler
        async def handle(work: Work) -> dict[str, str]:
            return {"task": work.task}

        return agent

    def _failing(self) -> Agent:
        agent = Agent("failing", concurrency=256)

        @agent.handler
        async def handle(work: Work) -> None:
            raise Failure("wanted", "it has to be undone", retryable=False)

        return agent

    def _held(self) -> Agent:
        agent = Agent("held", concurrency=max(1, int(self._count * IN_HAND)))

        @agent.handler
        async def handle(work: Work) -> dict[str, str]:
            await self._is_released.wait()
            return {"task": work.task}

        return agent

    def _late(self) -> Agent:
        agent = Agent("late", concurrency=256)

        @agent.handler
        async def handle(work: Work) -> dict[str, str]:
            return {"task": work.task}

        return agent
