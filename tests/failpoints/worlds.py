"""Worlds on one server, each under a prefix of its own: victims that die at failpoints, and who takes over."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from history import lines_of
from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.failpoint import PAUSING, VARIABLE, WATCH
from infinity_matrix_bus.installation import install, read_installation
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.verification import History, verify
from infinity_matrix_coordinator.verification.reading import read_history

from .workload import Workload, again

HERE = Path(__file__).parent
#: A world whose log stands still for so long is stuck, however slow the machine is: there is always a fact to come, or
#: a checkpoint, a mark, a sign of life that a victim dies at.
STILL_S = 60.0
POLL_S = 0.1
#: Work that is passed on for so long was delivered more than once.
PASSED_ON_S = 1.0
#: Looking at all executions costs something, and so does looking at the log.
LOOK_S = 1.0
HEAD_S = 0.5


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
    counts: Path

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

    async def passes(self) -> dict[str, int]:
        """How often it passed each place; it ends. Nothing of one that came to its failpoint all the same."""
        if self.is_alive:
            os.kill(self.pid, signal.SIGTERM)
        while self.is_alive:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(POLL_S)
        found: dict[str, int] = json.loads(self.counts.read_text()) if self.counts.exists() else {}
        return found


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
        child = Child(0, stem.with_suffix(".log"), stem.with_suffix(".ready"), stem.with_suffix(".counts"))
        order = {
            "role": role,
            "url": self.url,
            "prefix": self.prefix,
            "failpoint": failpoint,
            "log": str(child.log),
            "ready": str(child.ready),
            "counts": str(child.counts),
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


@dataclass(frozen=True, slots=True)
class Strike:
    """A failpoint, and whether its process came to it. `is_first`: its process was the first of its role."""

    role: str
    point: str
    is_struck: bool
    is_first: bool


@dataclass(frozen=True, slots=True)
class Fate:
    """What came of a world: who was struck, and what is wrong now. `passes`: by role, what its last process passed."""

    strikes: list[Strike]
    problems: list[str]
    passes: dict[str, dict[str, int]]


async def run(
    world: World,
    lines: Mapping[str, Sequence[str]],
    *,
    is_installed: bool = True,
    agent_first: bool = False,
) -> Fate:
    """Lets the processes of each role die one after another, at the points given, while everything runs.

    Each is followed by another, and the last lives on. With `agent_first` no coordinator begins before the first agent
    is struck. Answers how all of it ended.
    """
    # A machine that others use may be slow to answer: what this test itself asks for, it asks for again.
    connection = await again(lambda: Connection(Endpoint(world.url)).open())
    over = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []
    try:
        if is_installed:
            await again(lambda: install(connection.session, world.prefix, shards=1))
            operations, workload = await _prepared(world, connection)
        ofs = [_Line(world, role, lines.get(role, ())) for role in ("coordinator", "agent")]
        if agent_first:
            tasks.append(asyncio.create_task(ofs[1].run(over)))
            await _Head(operations).until(lambda: ofs[1].is_first_struck)
        tasks.append(asyncio.create_task(ofs[0].run(over)))
        if not is_installed:
            operations, workload = await _prepared(world, connection)
        if not agent_first:
            tasks.append(asyncio.create_task(ofs[1].run(over)))
        tasks.append(working := asyncio.create_task(_work(workload, world)))
        head = _Head(operations)
        problems: list[str] = []
        if not await head.until(working.done):
            problems.append("what was to be done was not done in time")
        await head.until(lambda: all(line.is_first_struck for line in ofs))
        problems += await _ended(operations, world, head)
        over.set()
        await asyncio.gather(*tasks)
        strikes = [strike for line in ofs for strike in line.strikes]
        passes = {line.role: await line.last.passes() for line in ofs}
        operations.close()
        return Fate(strikes, problems, passes)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await connection.close()


class _Line:
    """The processes of one role in a world, one after another."""

    def __init__(self, world: World, role: str, points: Sequence[str]) -> None:
        self._world = world
        self.role = role
        self._points = points
        self.strikes: list[Strike] = []
        self.last: Child

    async def run(self, over: asyncio.Event) -> None:
        """Puts another in the place of each that is struck, until the last, or until all is over."""
        for number, point in enumerate(self._points):
            self.last = victim = self._world.begin(self.role, point)
            is_kill = point.endswith("kill")
            while is_waited_for := victim.is_alive if is_kill else not victim.is_paused:
                if over.is_set():
                    break
                await asyncio.sleep(POLL_S)
            self.strikes.append(Strike(self.role, point, not is_waited_for, number == 0))
            if is_waited_for:
                return
        self.last = self._world.begin(self.role)

    @property
    def is_first_struck(self) -> bool:
        """Whether the first is, if it was to be."""
        return not self._points or bool(self.strikes)


class _Head:
    """The head of a world's log: what is waited for has time for as long as that moves."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._stream = operations.subjects.facts_stream(0)
        self._seen = 0
        self._moved_at = time.monotonic()

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition held before the log had stood still for too long."""
        while not condition():
            if not await self.moves():
                return False
            await asyncio.sleep(HEAD_S)
        return True

    @property
    def is_moving(self) -> bool:
        """Whether there was a new fact just now: then it is too early to look at all executions."""
        return time.monotonic() - self._moved_at < LOOK_S

    async def moves(self) -> bool:
        """Whether there was a new fact not too long ago."""
        try:
            head = await JetStreamApi(await self._operations.session()).last_sequence(self._stream)
        except InfinityMatrixError:
            # A server that does not answer in time is as slow as all else.
            return True
        if head != self._seen:
            self._seen, self._moved_at = head, time.monotonic()
        return time.monotonic() - self._moved_at < STILL_S


async def _work(workload: Workload, world: World) -> None:
    await workload.run()
    await asyncio.sleep(PASSED_ON_S)
    world.passed_on.touch()


async def _prepared(world: World, connection: Connection) -> tuple[Operations, Workload]:
    installation = await again(lambda: read_installation(connection.session, world.prefix, with_secret=True))
    operations = await Operations(connection, installation).open()
    workload = Workload(operations)
    await workload.prepare()
    return operations, workload


async def _ended(operations: Operations, world: World, head: _Head) -> list[str]:
    """Waits until every execution is there and has ended; answers what is wrong with how they did."""

    async def read() -> History:
        return await read_history(await operations.session(), operations.installation)

    while True:
        while head.is_moving:
            await head.moves()
            await asyncio.sleep(HEAD_S)
        executions = await again(operations.executions)
        # Two begin by themselves, some time after they were asked for.
        missing = {"schedule", "trigger"}.difference(*(one.cause for one in executions))
        if not missing and not any(one.is_open for one in executions):
            break
        await asyncio.sleep(LOOK_S)
        if not await head.moves():
            break
    history = await again(read)
    problems = [f"{execution} is still open: {history.facts[execution]}" for execution in history.open()]
    problems += [f"nothing was started by the {cause}" for cause in missing]
    history.journal = lines_of(world.journal)
    history.is_over = True
    return problems + [str(violation) for violation in verify(history)]
