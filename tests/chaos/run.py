"""One run: start everything, break it, let it end, and check what is in the log and in the journals."""

import asyncio
import json
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import infinity_matrix
from effects import unaccounted
from history import history_of
from infinity_matrix.client import Client
from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.fact import Finished, Started
from infinity_matrix_bus.subjects import shard_of
from infinity_matrix_coordinator.operations import new_execution_id
from infinity_matrix_coordinator.verification import ClientLine, History, Violation, verify

from tests.golden.record import dump, say_all, write

from .disk import Disk
from .faults import Faults, Strike
from .fleet import Fleet
from .servers import OneServer, Servers, ThreeServers
from .workloads import CANARY, SHARDS, workflows

#: Executions that all clients together start in a second.
PER_SECOND = 22.0
#: Everything ends within this time after the last fault: leases of dead agents, one after the other, among it.
SETTLE_S = 150.0
CANARY_S = 90.0
#: A process that is frozen between looking and writing its journal seems to begin late by as much as it slept.
JOURNAL_SKEW_S = 1.0
#: What a run takes before its first fault and after its last, about; half of it at most.
REST_S = 60.0
CLIENTS = 2
#: A disk is filled to the brim, and it is memory: no larger than what a run writes.
DISK_MB, DISK_MB_A_MINUTE = 512, 40


@dataclass(slots=True)
class Report:
    """What happened, and what was wrong."""

    seed: int
    replicas: int
    folder: Path
    strikes: list[Strike] = field(default_factory=list)
    #: Seconds from a strike (or from its end, where the server was away) until new executions went through everywhere.
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    executions: int = 0
    struck_open: int = 0
    states: dict[str, int] = field(default_factory=dict)
    facts: int = 0
    repeated: int = 0
    starts_unknown: int = 0
    open: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)
    settled_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not (self.open or self.violations or self.failures)


class Run:
    def __init__(
        self,
        seed: int,
        replicas: int,
        minutes: float,
        folder: Path,
        *,
        per_second: float = PER_SECOND,
        golden: int = 0,
        only: str = "",
    ) -> None:
        self._seed = seed
        self._minutes = minutes
        self._per_second = per_second
        self._golden = golden
        self._only = only
        self.folder = folder
        megabytes = DISK_MB + int(DISK_MB_A_MINUTE * minutes)
        self._disks = [Disk(folder / f"disk-{number}", megabytes) for number in range(replicas)]
        stores = [disk.path / "store" for disk in self._disks]
        self._servers: Servers = OneServer(stores[0]) if replicas == 1 else ThreeServers(stores)
        self._fleet = Fleet(folder)
        self.report = Report(seed, replicas, folder)
        self._canaries: set[asyncio.Task[None]] = set()
        self._client: Client | None = None
        self._connections = AsyncExitStack()

    async def run(self) -> Report:
        try:
            await self._servers.open()
            await self._begin()
            await self._break()
            await self._settle()
            await self._check()
        finally:
            await self._connections.aclose()
            await self._fleet.close()
            await self._servers.close()
            for disk in self._disks:
                disk.close()
        return self.report

    async def _begin(self) -> None:
        for role, count in (("coordinator", 2), ("agent", 2), ("plain_agent", 2), ("client", CLIENTS)):
            for number in range(count):
                options: tuple[str, ...] = ()
                if role == "client":
                    # Each run of a client has a seed of its own, else it would start the same ids again.
                    rate = str(self._per_second / CLIENTS)
                    options = ("--seed", f"{self._seed}{number}{{run}}", "--per-second", rate)
                await self._fleet.add(role, self._servers.targets, self._servers.token, *options)
        for member in self._fleet.of("coordinator"):
            member.start()
        self._client = await self._connected()
        for name, workflow in workflows().items():
            if name == "parent":
                await self._client.deploy(workflows()["child"].definition())
            await self._client.deploy(workflow.definition())
        self._fleet.start()
        await self._sing()

    async def _connected(self) -> Client:
        """A client without a proxy, once there is an installation."""
        deadline = time.monotonic() + 30.0
        while True:
            try:
                return await self._connections.enter_async_context(infinity_matrix.connect(self._servers.url))
            except InfinityMatrixError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    async def _break(self) -> None:
        faults = Faults(self._fleet, self._servers, self._disks, random.Random(self._seed), self._only, self._on_over)
        whole_s = self._minutes * 60
        until = time.monotonic() + max(whole_s / 2, whole_s - REST_S)
        try:
            await faults.run(until)
        finally:
            self._fleet.is_stopping = True
            (self.folder / "stop").touch()
        self.report.strikes = faults.strikes
        self.report.failures += faults.failures
        self._began = faults.began

    def _on_over(self, strike: Strike) -> None:
        with (self.folder / "strikes").open("a") as file:
            file.write(f"{strike.at:.2f} {strike.over_at:.2f} {strike.kind}: {strike.victim}\n")
        task = asyncio.create_task(self._canary(strike))
        self._canaries.add(task)
        task.add_done_callback(self._canaries.discard)

    async def _canary(self, strike: Strike) -> None:
        """How long it takes from the strike until new executions go through on every log."""
        try:
            async with asyncio.timeout(CANARY_S):
                await self._sing()
        except TimeoutError:
            self.report.failures.append(f"{CANARY_S:g} s after {strike.kind} not every log goes on")
            return
        self.report.recoveries.append((strike.kind, time.time() - strike.over_at))

    async def _sing(self) -> None:
        """One execution on each log, to its end."""
        ids: dict[int, str] = {}
        while len(ids) < SHARDS:
            id = new_execution_id()
            ids.setdefault(shard_of(id, SHARDS), id)
        await asyncio.gather(*(self._one(id) for id in ids.values()))

    async def _one(self, id: str) -> None:
        assert self._client is not None
        while True:
            try:
                await self._client.start(CANARY, None, id)
                result = await self._client.wait(id)
            except (InfinityMatrixError, OSError):
                await asyncio.sleep(0.1)
            else:
                if result.status != "completed":
                    self.report.failures.append(f"the canary {id} is {result.status}: {result.error}")
                return

    async def _settle(self) -> None:
        """Waits until all has ended, now that nothing strikes any more."""
        began = time.monotonic()
        if self._canaries:
            await asyncio.wait(self._canaries)
        assert self._client is not None
        while True:
            summaries = await self._client.list()
            is_open = [one.execution_id for one in summaries if one.finished_at is None]
            clients = [member for member in self._fleet.of("client") if member.runs]
            if not is_open and not clients:
                break
            if time.monotonic() - began > SETTLE_S:
                self.report.open = is_open
                break
            await asyncio.sleep(1.0)
        self.report.settled_s = time.monotonic() - began
        self.report.restarts = {
            member.name: member.ended_by_itself for member in self._fleet.members if member.ended_by_itself
        }

    async def _check(self) -> None:
        history = await history_of(self._servers.url, self.folder / "journal")
        history.journal_skew_s = JOURNAL_SKEW_S
        history.clients = _client_lines(self.folder / "clients")
        violations: list[Violation] = await asyncio.to_thread(verify, history)
        if self._golden and not violations:
            say_all(write("chaos", await dump(self._servers.url, "im"), self._golden))
        report = self.report
        report.violations = [str(violation) for violation in violations] + unaccounted(history)
        if history.garbage:
            report.violations.append(f"{history.garbage} messages of the log are no facts")
        self._count(history)
        for execution in {violation.execution for violation in violations} | set(report.open):
            write_story(self.folder, history, execution)

    def _count(self, history: History) -> None:
        report = self.report
        report.facts = sum(map(len, history.facts.values()))
        report.repeated = history.repeated()
        for facts in history.facts.values():
            started = next((fact for _, fact in facts if isinstance(fact, Started)), None)
            if started is None or started.workflow == CANARY:
                continue
            report.executions += 1
            ends = [fact for _, fact in facts if isinstance(fact, Finished)]
            state = ends[-1].state if ends else "open"
            report.states[state] = report.states.get(state, 0) + 1
            ended_at = ends[-1].at if ends else time.time()
            report.struck_open += any(started.at <= at <= ended_at for at in self._began)
        ok = {line.execution for line in history.clients if line.event == "start" and line.fate == "ok"}
        report.starts_unknown = len({line.execution for line in history.clients if line.event == "start"} - ok)


def _client_lines(path: Path) -> list[ClientLine]:
    lines = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["event"] != "trouble":
            lines.append(ClientLine(**record))
    return lines


def write_story(folder: Path, history: History, execution: str) -> None:
    """All that is known of an execution, for who looks for what went wrong."""
    with (folder / f"{execution}.story").open("w") as file:
        for sequence, fact in history.facts.get(execution, ()):
            file.write(f"{sequence} {fact}\n")
        for line in history.journal or ():
            if line.execution == execution:
                file.write(f"{line}\n")
        for one in history.clients:
            if one.execution == execution:
                file.write(f"{one}\n")
