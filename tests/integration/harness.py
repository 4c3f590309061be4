"""A small world to break: a real server, coordinators and agents in processes of their own, and a clock to wait by.

`history` checks afterwards what happened in it.
"""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import infinity_matrix
from infinity_matrix.client import Client
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_coordinator.backlog import QUEUED_MAX
from nats.aio.client import Client as Nats
from nats.js.errors import NotFoundError

HERE = Path(__file__).parent
#: Generous: a machine that others use takes its time to start a process, and a healthy one waits for nothing.
READY_S = 60.0
POLL_S = 0.02
#: Set to repeat a run: the seed that a failing test printed.
SEED_VARIABLE = "IM_TEST_SEED"


def say(text: str) -> None:
    """Shown by pytest when the test fails, or with `-s`."""
    sys.stdout.write(f"{text}\n")


def seeded() -> random.Random:
    """Randomness whose seed is printed, so that a failing run can be repeated with `IM_TEST_SEED`."""
    seed = int(os.environ.get(SEED_VARIABLE, random.randrange(1 << 32)))
    say(f"seed {seed}")
    return random.Random(seed)


async def until(
    condition: Callable[[], bool | Awaitable[bool]], timeout_s: float, what: str = "what was waited for"
) -> float:
    """Waits until the condition holds and answers how long that took, in seconds; fails after `timeout_s`."""
    began = time.monotonic()
    while True:
        held = condition()
        if isinstance(held, Awaitable):
            held = await held
        took_s = time.monotonic() - began
        if held:
            return took_s
        assert took_s < timeout_s, f"{what} did not happen within {timeout_s:g} s"
        await asyncio.sleep(POLL_S)


class Process:
    """A child process that says when it is ready; its output is in `log`."""

    def __init__(self, script: str, folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._ready = folder / f"{name}.ready"
        url, *others = arguments
        with self.log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, str(HERE / script), url, str(self._ready), *others],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        return self._child.poll() is not None

    async def ready(self) -> "Process":
        await until(lambda: self._ready.exists() or self.has_ended, READY_S, f"{self.name} becoming ready")
        assert not self.has_ended, f"{self.name} ended: {self.log.read_text()[-2000:]}"
        return self

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self._child.kill()
        self._child.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        self._child.terminate()

    async def ended(self, timeout_s: float) -> int:
        """Its exit code, once it has ended."""
        await until(lambda: self.has_ended, timeout_s, f"the end of {self.name}")
        assert self._child.returncode is not None
        return self._child.returncode


class World:
    """A server, and whatever processes a test puts beside it."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.journal = folder / "journal"
        self.processes: list[Process] = []
        self._numbers = itertools.count(1)

    async def coordinator(
        self, *, owns_all: bool = False, sweep_interval_s: float = 30.0, queued_max: int = QUEUED_MAX
    ) -> Process:
        """A coordinator that is live."""
        starting = self.start_coordinator(owns_all=owns_all, sweep_interval_s=sweep_interval_s, queued_max=queued_max)
        return await starting.ready()

    def start_coordinator(
        self, *, owns_all: bool = False, sweep_interval_s: float = 30.0, queued_max: int = QUEUED_MAX
    ) -> Process:
        """A coordinator on its way up."""
        options = [*(["--owns-all"] if owns_all else []), "--sweep-interval", str(sweep_interval_s)]
        options += ["--queued-max", str(queued_max)]
        return self._add("coordinator_process.py", "coordinator", *options)

    async def agent(self, *names: str, concurrency: int = 32) -> Process:
        """An agent process that serves these names and writes the world's journal."""
        options = [str(self.journal), *names, "--concurrency", str(concurrency)]
        return await self._add("agent_process.py", f"agent-{names[0]}", *options).ready()

    def process(self, script: str, name: str, *arguments: str) -> Process:
        """A process of any script here that takes the server's URL and the path of its ready file first."""
        return self._add(script, name, *arguments)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client; workflows used inside go here."""
        async with infinity_matrix.connect(self.server.connect_url) as client:
            yield client

    def _add(self, script: str, name: str, *arguments: str) -> Process:
        name = f"{name}-{next(self._numbers)}"
        process = Process(script, self.folder, name, self.server.connect_url, *arguments)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()

    def logs(self) -> str:
        """The end of what each process printed, for a failing test."""
        return "\n".join(f"--- {process.name}\n{process.log.read_text()[-1500:]}" for process in self.processes)


async def consumer_is_there(nats: Nats, agent: str) -> None:
    """Waits until the coordinators have made an agent's consumer."""

    async def is_there() -> bool:
        try:
            await nats.jetstream().consumer_info("IM_WORK", agent)
        except NotFoundError:
            return False
        return True

    await until(is_there, 5.0, f"the consumer of {agent}")


async def set_ack_wait(nats: Nats, agent: str, seconds: float) -> None:
    """Shortens an agent's lease, as an operator may."""
    await consumer_is_there(nats, agent)
    info = await nats.jetstream().consumer_info("IM_WORK", agent)
    await nats.jetstream().add_consumer("IM_WORK", replace(info.config, ack_wait=seconds))


async def started(client: Client, definition: str, workflow: str, count: int, gap_s: float = 0.0) -> list[str]:
    """Starts `count` executions of a stored definition; with a gap between batches of 50."""
    executions: list[str] = []
    for begin in range(0, count, 50):
        numbers = range(begin, min(count, begin + 50))
        executions += await asyncio.gather(
            *(client.operations.start(workflow, definition, {"number": number}) for number in numbers)
        )
        await asyncio.sleep(gap_s)
    return executions


async def all_finished(client: Client, executions: Iterable[str], timeout_s: float) -> dict[str, str]:
    """The final state of each execution, once all have one."""
    wanted = set(executions)
    deadline = time.monotonic() + timeout_s
    while True:
        states = {summary.execution_id: summary.state for summary in await client.list()}
        running = [execution for execution in wanted if states.get(execution, "running") == "running"]
        if not running:
            return {execution: states[execution] for execution in wanted}
        assert time.monotonic() < deadline, f"{len(running)} of {len(wanted)} run on, e.g. {running[0]}"
        await asyncio.sleep(0.25)
