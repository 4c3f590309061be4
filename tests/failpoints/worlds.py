"""Worlds on one server, each under a prefix of its own: a victim that dies at a failpoint, and who takes over."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.failpoint import PAUSING, VARIABLE, WATCH
from infinity_matrix_bus.installation import install, read_installation
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.verification import AgentLine, verify
from infinity_matrix_coordinator.verification.reading import read_history

from .workload import Workload

HERE = Path(__file__).parent
READY_S = 30.0
#: The victim has this long to come to its failpoint, and all executions to end afterwards.
STRUCK_S = 30.0
END_S = 60.0
POLL_S = 0.05
#: Work that is passed on for so long was delivered more than once.
PASSED_ON_S = 1.0
#: Looking at all executions costs something.
LOOK_S = 1.0


class Zygote:
    """The process that forks the others."""

    def __init__(self) -> None:
        environment = {**os.environ, VARIABLE: WATCH}
        command = [sys.executable, str(HERE / "zygote.py")]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def fork(self, order: dict[str, Any]) -> int:
        """The id of a new process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@dataclass(slots=True)
class Child:
    """A coordinator or an agent."""

    pid: int
    log: Path
    ready: Path

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def is_ready(self) -> bool:
        return self.ready.exists()

    @property
    def is_paused(self) -> bool:
        """Whether it has said that it stands still."""
        return self.log.exists() and PAUSING in self.log.read_text()

    def kill(self) -> None:
        if self.is_alive:
            os.kill(self.pid, signal.SIGKILL)


@dataclass(slots=True)
class World:
    """One prefix of the server, and the processes under it."""

    url: str
    folder: Path
    zygote: Zygote
    prefix: str
    children: list[Child] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def passed_on(self) -> Path:
        """There when work of another version was passed on for long enough."""
        return self.folder / "passed-on"

    def begin(self, role: str, failpoint: str = "") -> Child:
        """Starts a process."""
        stem = self.folder / f"{role}-{len(self.children)}"
        child = Child(0, stem.with_suffix(".log"), stem.with_suffix(".ready"))
        order = {
            "role": role,
            "url": self.url,
            "prefix": self.prefix,
            "failpoint": failpoint,
            "log": str(child.log),
            "ready": str(child.ready),
            "journal": str(self.journal),
            "passed_on": str(self.passed_on),
        }
        child.pid = self.zygote.fork(order)
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()

    def logs(self) -> str:
        """The end of what each process printed."""
        return "\n".join(f"--- {child.log.name}\n{child.log.read_text()[-1500:]}" for child in self.children)


async def until(condition: Any, timeout_s: float) -> bool:
    """Whether the condition held before `timeout_s` had passed."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


@dataclass(frozen=True, slots=True)
class Fate:
    """What came of a world: whether the victim came to its failpoint, and what is wrong now."""

    point: str
    role: str
    struck: bool
    problems: list[str]


async def run(world: World, role: str, failpoint: str, *, is_installed: bool = True) -> Fate:
    """Lets the victim die while everything runs, puts another in its place, and looks at how all of it ended."""
    connection = await Connection(Endpoint(world.url)).open()
    try:
        if is_installed:
            await install(connection.session, world.prefix, shards=1)
            operations, workload = await _prepared(world, connection)
        victim = world.begin(role, failpoint)
        if not is_installed:
            await until(lambda: victim.is_ready or not victim.is_alive, READY_S)
            if not victim.is_alive:
                world.begin(role)
            operations, workload = await _prepared(world, connection)
        world.begin("agent" if role == "coordinator" else "coordinator")
        working = asyncio.create_task(_work(workload, world))
        if failpoint.endswith("kill"):
            struck = await until(lambda: not victim.is_alive, STRUCK_S)
        else:
            struck = await until(lambda: victim.is_paused, STRUCK_S)
        world.begin(role)
        await asyncio.wait_for(working, END_S)
        problems = await _ended(operations, world)
        operations.close()
        return Fate(failpoint, role, struck, problems)
    finally:
        await connection.close()


async def _work(workload: Workload, world: World) -> None:
    await workload.run()
    await asyncio.sleep(PASSED_ON_S)
    world.passed_on.touch()


async def _prepared(world: World, connection: Connection) -> tuple[Operations, Workload]:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            installation = await read_installation(connection.session, world.prefix, with_secret=True)
            break
        except InfinityMatrixError:
            assert time.monotonic() < deadline, "nothing was installed"
            await asyncio.sleep(POLL_S)
    operations = await Operations(connection, installation).open()
    workload = Workload(operations)
    await workload.prepare()
    return operations, workload


async def _ended(operations: Operations, world: World) -> list[str]:
    """Waits until every execution has ended; answers what is wrong with how they did."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        if not any(one.is_open for one in await operations.executions()):
            break
        await asyncio.sleep(LOOK_S)
    history = await read_history(await operations.session(), operations.installation)
    problems = [f"{execution} is still open: {history.facts[execution]}" for execution in history.open()]
    history.journal = lines_of(world.journal)
    history.is_over = True
    return problems + [str(violation) for violation in verify(history)]


def lines_of(journal: Path) -> list[AgentLine]:
    """The journal of a world's agents."""
    if not journal.exists():
        return []
    return [AgentLine(**json.loads(line)) for line in journal.read_text().splitlines()]
