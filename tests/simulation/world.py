"""A simulated world: a server, and the production's coordinators, agents and clients as processes of one loop."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_agents.agent import Agent
from infinity_matrix_agents.runner import AgentRunner
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import read_installation
from infinity_matrix_bus.publisher import Ack, AckCallback, Fate, Outbox
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.checkpoints import CHECKPOINT_AFTER_S
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.process import Coordinator

from .jetstream import JetStream
from .loop import Process, SimulatedLoop
from .network import Network
from .server import Server

ENDPOINT = Endpoint("nats://simulated:4222")
#: What ends a production process, its supervisor starts again after this long.
RESTART_S = 0.5
#: Log events that say that something of ours broke, and not of the world's.
ALARMS = ("coordinator_failed", "shard_task_failed", "callback_failed", "execution_quarantined", "listener_failed")


@dataclass(frozen=True, slots=True)
class Line:
    """What an agent did, and when (simulated seconds)."""

    event: str
    execution: str
    task: str
    attempt: int
    at: float
    process: Process
    #: Whether the agent asks when in doubt.
    asks: bool = True
    #: Of an outcome that was acknowledged: its place in the log, and whether it is completed or failed.
    sequence: int = 0
    state: str = ""


class World:
    """One run's everything. Make it, and use it, inside `substitutes.entered`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(f"world/{seed}")
        self.loop = SimulatedLoop(Random(f"loop/{seed}"))
        self.server = Server()
        self.server_process = self.loop.process("server")
        self.network = Network(self.loop, Random(f"network/{seed}"), self.server, self.server_process)
        self.streams = JetStream(self.loop, self.server, self.server_process, Random(f"streams/{seed}"))
        self.streams.on_operation = self._trace
        self.faults = self.streams.faults
        self.journal: list[Line] = []
        self.alarms: list[str] = []
        self.operations = 0
        #: Called once this many operations on streams have happened.
        self.server_fuse = 0
        self.on_server_fuse: Callable[[], None] = lambda: None
        self.watchers: list[Callable[[str, str, object], None]] = []
        self._hash = hashlib.sha256()
        self.trace: list[str] | None = None

    @property
    def hash(self) -> str:
        """Over all that happened to the streams so far."""
        return self._hash.hexdigest()[:16]

    def _trace(self, operation: str, subject: str, result: object) -> None:
        line = f"{self.loop.now:.6f} {operation} {subject} {result}"
        self._hash.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)
        for watcher in self.watchers:
            watcher(operation, subject, result)
        self.operations += 1
        if self.server_fuse:
            self.server_fuse -= 1
            if not self.server_fuse:
                self.loop.post(self.server_process, self.loop.now, self.on_server_fuse)

    # Processes.

    def start(self, name: str, life: Callable[[], Coroutine[Any, Any, Any]], skew_s: float = 0.0) -> Process:
        """Starts a process that lives as `life` says, again and again when that ends with an error of ours."""
        process = self.loop.process(name)
        process.skew_s = skew_s
        self.loop.spawn(process, self._supervised(life))
        return process

    async def _supervised(self, life: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        while True:
            try:
                await life()
                return
            except InfinityMatrixError:
                await asyncio.sleep(RESTART_S)

    def coordinator(
        self, *, shards: int, owns_all: bool, sweep_interval_s: float, checkpoint_after_s: float = CHECKPOINT_AFTER_S
    ) -> Coroutine[Any, Any, Any]:
        """The life of a coordinator process."""

        async def life() -> None:
            coordinator = Coordinator(
                ENDPOINT,
                shards=shards,
                owns_all=owns_all,
                sweep_interval_s=sweep_interval_s,
                checkpoint_after_s=checkpoint_after_s,
            )
            await (await coordinator.start()).run()

        return life()

    def agent(self, agent: Agent) -> Coroutine[Any, Any, Any]:
        """The life of an agent process."""

        async def life() -> None:
            connection = await Connection(ENDPOINT).open()
            try:
                runner = AgentRunner(agent, connection)
                self._note_stored(runner._outbox)
                await runner.open()
                await asyncio.Event().wait()
            finally:
                await connection.close()

        return life()

    def _note_stored(self, outbox: Outbox) -> None:
        """Has the journal say which outcomes an agent saw confirmed, and where in the log."""
        post, process = outbox.post, self.loop.current

        def noted(subject: str, payload: bytes, on_done: AckCallback, tries: int | None = None) -> None:
            def done(ack: Ack) -> None:
                if ack.fate is Fate.STORED and ".outcome." in subject:
                    _, _, _, execution, _, _, task, attempt, _ = subject.split(".")
                    self.note_stored(execution, task, int(attempt), payload, ack.sequence, process)
                on_done(ack)

            post(subject, payload, done, tries)

        outbox.post = noted  # type: ignore[method-assign]

    def note_stored(
        self, execution: str, task: str, attempt: int, payload: bytes, sequence: int, process: Process
    ) -> None:
        """An agent saw the PubAck of its outcome, which was no "already there"."""
        state = "failed" if json.loads(payload).get("error") else "completed"
        line = Line("acknowledged", execution, task, attempt, self.loop.now, process, True, sequence, state)
        self.journal.append(line)

    async def client(self) -> Operations:
        """What a client does things with; call it in the client's process."""
        connection = await Connection(ENDPOINT).open()
        installation = await read_installation(connection.session)
        return await Operations(connection, installation).open()

    def run(self, until_s: float, condition: Callable[[], bool] = lambda: False) -> bool:
        """Lets the world go on until then, or until the condition holds; answers whether it does."""
        return self.loop.run_until(condition, until_s)

    # Faults of the server.

    def crash_server(self, down_s: float, random: Random | None = None) -> None:
        """Kill -9, and up again after a while; what is forgotten is drawn from `random`."""
        if not self.server.is_up:
            return
        self.server.is_up = False
        for link in list(self.network.links):
            link.close_from_server()
        for connection in list(self.server.connections):
            self.server.closed(connection)
        self.streams.crash(random or self.random)
        self.loop.post(self.server_process, self.loop.now + down_s, self._up)

    def _up(self) -> None:
        self.server.is_up = True
        self.streams.restart()


class AlarmHandler(logging.Handler):
    """Takes the production's error log for the world's alarms."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = self._world.loop.current
        event = str(getattr(record, "event", record.getMessage()))
        if process.is_alive and event in ALARMS:
            self._world.alarms.append(f"{process.name} at {self._world.loop.now:.3f}: {record.getMessage()}")
