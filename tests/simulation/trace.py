"""A trace: a world in which a test says what happens, step by step, in place of a seed."""

import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from infinity_matrix_actors.definition import TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.fact import Fact, Finished, Outcome, Started
from infinity_matrix_coordinator.checkpoints import CHECKPOINT_AFTER_S
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.verification import History

from .census import Census
from .check import Knowledge, facts_of, history_of, violations
from .jetstream import EPOCH_S
from .loop import Process
from .plain import PlainAgent
from .stream import Stream
from .substitutes import entered
from .workload import PLAIN, Behaviour
from .world import AlarmHandler, World

AGENT = "agent-a"
SHARDS = 1
SETTLE_S = 2.0
#: Within so many simulated seconds what a trace waits for has happened.
PATIENCE_S = 400.0
Script = dict[tuple[str, int], list[tuple[str, float]]]


class Scripted(Behaviour):
    """Goes as a script says: for (task, attempt) what each run comes to and how long it takes; else well, at once."""

    def __init__(self, world: World, script: Script) -> None:
        super().__init__(world)
        self._script = script
        self._count: dict[tuple[str, str, int], int] = {}

    def draw(self, execution: str, task: str, attempt: int) -> tuple[str, float]:
        run = self._count[execution, task, attempt] = self._count.get((execution, task, attempt), 0) + 1
        runs = self._script.get((task, attempt), [])
        return runs[min(run, len(runs)) - 1] if runs else ("ok", 0.01)


class Trace:
    """Everything a test needs to tell a trace."""

    def __init__(self, world: World, script: Script, shards: int = SHARDS) -> None:
        self.world = world
        self.shards = shards
        self.behaviour = Scripted(world, script)
        self.census = Census(world)
        self.knowledge = Knowledge(world)
        self.definitions: dict[str, WorkflowDefinition] = {}
        self.started: set[str] = set()
        self.processes: list[Process] = []
        self._operations: Operations | None = None
        self._client: Process | None = None

    # Processes.

    def coordinator(
        self,
        *,
        skew_s: float = 0.0,
        owns_all: bool = False,
        sweep_interval_s: float = 30.0,
        checkpoint_after_s: float = CHECKPOINT_AFTER_S,
        decide: int = 1,
    ) -> Process:
        """A coordinator that has settled."""
        process = self._start(
            "coordinator",
            lambda: self.world.coordinator(
                shards=self.shards,
                owns_all=owns_all,
                sweep_interval_s=sweep_interval_s,
                checkpoint_after_s=checkpoint_after_s,
            ),
            skew_s,
        )
        process.decide = decide
        self.run(SETTLE_S)
        return process

    def agent(self, *, skew_s: float = 0.0) -> Process:
        """An agent of the SDK that has settled."""
        process = self._start("agent", lambda: self.world.agent(self.behaviour.agent(AGENT)), skew_s)
        self.run(0.5)
        return process

    def plain_agent(self) -> Process:
        process = self._start("plain", lambda: PlainAgent(self.world, self.behaviour).life(), 0.0)
        self.run(0.5)
        return process

    def _start(self, name: str, life: Callable[[], Coroutine[Any, Any, Any]], skew_s: float) -> Process:
        process = self.world.start(name, life, skew_s)
        self.processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        self.world.loop.kill(process)

    def stop(self, process: Process, for_s: float) -> None:
        self.world.loop.stop_process(process, for_s)

    # Time.

    def run(self, for_s: float) -> None:
        self.world.run(self.world.loop.now + for_s)

    def until(self, condition: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
        """Lets the world go on until the condition holds."""
        assert self.world.run(self.world.loop.now + within_s, lambda: bool(condition())), (
            f"not within {within_s:g} s: {what}"
        )

    def readers(self) -> list[str]:
        """The consumers by which owners read the log, oldest first."""
        return [name for stream, name in self.world.streams.consumers if stream == "IM_FACTS_0"]

    def hold(self, reader: str, for_s: float) -> None:
        """Lets a reader of the log, or with a stream's name all of its readers, fall behind."""
        streams = self.world.streams
        streams.faults.held_until_ns[reader] = streams.now_ns() + round(for_s * 1e9)

    # The client.

    def call(self, what: Callable[[Operations], Coroutine[Any, Any, Any]]) -> Any:
        """What a client's call answers; raises what it raises."""
        answers: list[Any] = []

        async def life() -> None:
            try:
                if self._operations is None:
                    self._operations = await self.world.client()
                answers.append((await what(self._operations), None))
            except Exception as error:  # noqa: BLE001
                answers.append((None, error))

        if self._client is None:
            self._client = self.world.loop.process("client")
            self.processes.append(self._client)
        self.world.loop.spawn(self._client, life())
        self.until(lambda: answers, "the answer to a client")
        answer, error = answers[0]
        if error is not None:
            raise error
        return answer

    def deploy(self, *tasks: TaskDefinition, name: str = "w", **more: Any) -> WorkflowDefinition:
        definition = WorkflowDefinition(name, tasks, **more)
        self.definitions[self.call(lambda operations: operations.deploy(definition))] = definition
        # Its agents have their consumers before the first start.
        self.run(1.0)
        return definition

    def start(self, definition: WorkflowDefinition, execution: str = "e1") -> str:
        digest = definition.digest()
        self.call(lambda operations: operations.start(definition.name, digest, None, execution))
        self.started.add(execution)
        return execution

    # What is there.

    def stream(self, name: str) -> Stream:
        return self.world.streams.streams[name]

    @property
    def log(self) -> Stream:
        return self.stream("IM_FACTS_0")

    def work(self) -> list[str]:
        """Subjects of the work that is queued or held, without tombstones."""
        return [subject for subject in self.stream("IM_WORK").by_subject if ".im-closed." not in subject]

    def facts(self, execution: str = "e1") -> list[Fact]:
        found, _ = facts_of(self.world, self.shards, self._secret())
        return [fact for _, fact in found.get(execution, [])]

    def children(self, parent: str = "e1") -> list[str]:
        """The executions that are children of one, in no order that matters."""
        found, _ = facts_of(self.world, self.shards, self._secret())
        starts = [fact for facts in found.values() for _, fact in facts if isinstance(fact, Started)]
        return [one.execution for one in starts if (one.cause.get("parent") or {}).get("execution") == parent]

    def records(self) -> list[str]:
        """The executions that have a checkpoint."""
        subjects = self.stream("KV_IM_CHECKPOINTS").by_subject
        return [subject.rpartition(".")[2] for subject in subjects if ".state." in subject]

    def ends(self, execution: str = "e1") -> list[Finished]:
        return [fact for fact in self.facts(execution) if isinstance(fact, Finished)]

    def end(self, execution: str = "e1") -> Finished | None:
        return next(iter(self.ends(execution)), None)

    def ended(self, execution: str = "e1", within_s: float = PATIENCE_S) -> Finished:
        """The end of an execution, waited for."""
        seen = [-1]

        def has_ended() -> bool:
            if seen[0] == self.world.operations:
                return False
            seen[0] = self.world.operations
            return self.end(execution) is not None

        self.until(has_ended, f"{execution} ends", within_s)
        end = self.end(execution)
        assert end is not None
        return end

    def outcome(self, task: str, attempt: int = 1, execution: str = "e1") -> Outcome | None:
        return next(
            (
                fact
                for fact in self.facts(execution)
                if isinstance(fact, Outcome) and (fact.task, fact.attempt) == (task, attempt)
            ),
            None,
        )

    def began_s(self, task: str, attempt: int = 0) -> list[float]:
        """When runs of a task began, in simulated seconds since the epoch."""
        return [
            EPOCH_S + line.at
            for line in self.world.journal
            if line.event == "began" and line.task == task and attempt in (0, line.attempt)
        ]

    def began(self) -> list[tuple[str, int]]:
        """All runs, in order, as (task, attempt)."""
        return [(line.task, line.attempt) for line in self.world.journal if line.event == "began"]

    def history(self) -> History:
        """All that has happened."""
        return history_of(self.world, self.knowledge, self.shards, self._secret(), self.started, self.definitions)

    def check(self) -> None:
        """Nothing that was not allowed has happened."""
        found = violations(self.world, self.history())
        assert not found, found

    def _secret(self) -> bytes:
        stored = self.stream("KV_IM_INSTALLATION").last("$KV.IM_INSTALLATION.secret")
        assert stored is not None
        return bytes.fromhex(stored.data.decode())

    def on(self, operation: str, ending: str, fault: Callable[[], None]) -> None:
        """Lets a fault strike once, at the first operation on a subject that has this in it, before its answer."""
        struck: list[bool] = []

        def watch(kind: str, subject: str, result: object) -> None:
            if not struck and kind == operation and ending in subject:
                struck.append(True)
                loop = self.world.loop
                loop.post(self.world.server_process, loop.now, fault)

        self.world.watchers.append(watch)


class FactsByProcess:
    """The module of facts as a process sees it that decides by rules of its own version."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def DECIDE_VERSION(self) -> int:
        return self._world.loop.current.decide


@contextmanager
def traced(script: Script | None = None, seed: int = 0, shards: int = SHARDS) -> Iterator[Trace]:
    """A world of a test's own; ends with the check."""
    world = World(seed)
    handler = AlarmHandler(world)
    logger = logging.getLogger("infinity_matrix")
    logger.addHandler(handler)
    with entered(world.loop, Random(seed)):
        trace = Trace(world, script or {}, shards)
        try:
            yield trace
            trace.check()
        finally:
            for process in trace.processes:
                if process.is_alive:
                    world.loop.kill(process)
            logger.removeHandler(handler)


__all__ = ["AGENT", "PLAIN", "FactsByProcess", "Trace", "traced"]
