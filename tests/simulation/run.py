"""One seed, one run: a world, its work, its disorder, and what came of it."""

import gc
import logging
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from infinity_matrix_coordinator.checkpoints import CHECKPOINT_AFTER_S as CHECKPOINT_AFTER_DEFAULT_S
from infinity_matrix_coordinator.verification import partly_checked

from .census import Census
from .check import Knowledge, history_of, missing_ticks, violations
from .client import Client
from .disorder import Disorder
from .kinds import AGED_CHECKPOINT_AFTER_S, CHECKPOINT_AFTER_S, EXECUTIONS_MAX, LOG_AGE_S, NAP_S, Definitions, kinds_of
from .loop import Process, Stuck
from .plain import PlainAgent
from .substitutes import entered
from .workload import ASKING, Behaviour, random_workflow
from .world import AlarmHandler, World

#: Simulated seconds.
SETTLE_S = 2.0
CHAOS_S = 20.0
END_S = 900.0
AFTER_S = 1.0
#: After this, nothing may be left over of what has ended.
LEFTOVERS_S = 65.0
RESTART_CHECK_S = 0.25


@dataclass(slots=True)
class Report:
    """What came of a seed."""

    seed: int
    hash: str = ""
    executions: int = 0
    #: Of them those that are checked task by task only.
    partly: int = 0
    steps: int = 0
    simulated_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


class Run:
    """The processes of a run, and who starts the dead ones again."""

    def __init__(self, seed: int, kinds: Collection[str]) -> None:
        self.world = World(seed)
        self.kinds = kinds
        self.random = Random(f"run/{seed}")
        self.shards = self.random.choice((1, 1, 2))
        self.has_plain = self.random.random() < 0.25
        self.owns_all = self.random.random() < 0.3
        self.sweep_interval_s = self.random.choice((5.0, 30.0))
        self.is_skewed = self.random.random() < 0.2
        self.behaviour = Behaviour(self.world)
        self.behaviour.fails_to_undo = "retries" in kinds
        self.knowledge = Knowledge(self.world)
        self.census = Census(self.world)
        self.checkpoint_after_s = CHECKPOINT_AFTER_DEFAULT_S
        if "checkpoints" in kinds:
            self.checkpoint_after_s = Random(f"checkpoints/{seed}").choice(CHECKPOINT_AFTER_S)
        if "aged-log" in kinds:
            self.checkpoint_after_s = AGED_CHECKPOINT_AFTER_S
            self.world.streams.log_age_ns = round(LOG_AGE_S * 1e9)
        #: By role; a dead one is started again.
        self.alive: dict[str, Process] = {}
        self._restarts = 0

    def begin(self) -> None:
        """Starts everything and lets it settle."""
        count = self.random.choice((1, 2, 2))
        for number in range(count):
            self._start(f"coordinator-{number}")
        if self.owns_all and count > 1:
            self.world.faults.count("two owners at once")
        self.world.run(SETTLE_S)
        for name in ASKING:
            count = self.random.choice((1, 2))
            # What lives for minutes has fewer processes: each of them ticks twenty times a second.
            for number in range(1 if "aged-log" in self.kinds else count):
                self._start(f"{name}/{number}")
        if self.has_plain:
            self.world.faults.count("agent that never asks")
            self._start("agent-plain/0")
        self._look_after()

    def _skew_s(self) -> float:
        if not self.is_skewed:
            return 0.0
        self.world.faults.count("clock off")
        return self.random.choice((-3600.0, -5.0, -0.2, 0.2, 5.0, 3600.0))

    def _start(self, role: str) -> None:
        world = self.world

        def life() -> Coroutine[Any, Any, Any]:
            if role.startswith("coordinator"):
                return world.coordinator(
                    shards=self.shards,
                    owns_all=self.owns_all,
                    sweep_interval_s=self.sweep_interval_s,
                    checkpoint_after_s=self.checkpoint_after_s,
                )
            name = role.partition("/")[0]
            if name == "agent-plain":
                return PlainAgent(world, self.behaviour).life()
            return world.agent(self.behaviour.agent(name))

        self.alive[role] = world.start(role, life, self._skew_s())

    def _look_after(self) -> None:
        """Starts dead processes again, each a while after its death."""
        for role, process in list(self.alive.items()):
            if not process.is_alive:
                del self.alive[role]
                delay_s = self.random.choice((0.0, 0.5, 3.0, 12.0))
                self.world.loop.post(self.world.server_process, self.world.loop.now + delay_s, self._start, role)
        self.world.loop.post(self.world.server_process, self.world.loop.now + RESTART_CHECK_S, self._look_after)

    def coordinators(self) -> list[Process]:
        return [one for role, one in self.alive.items() if role.startswith("coordinator") and one.is_alive]

    def agents(self) -> list[Process]:
        return [one for role, one in self.alive.items() if role.startswith("agent") and one.is_alive]

    def finish(self) -> None:
        """Nothing more is wrong from here on."""
        self.behaviour.is_calm = True
        for process in self.alive.values():
            process.fuse = 0


def run_seed(
    seed: int, *, faults: int | None = None, kinds: Collection[str] | None = None, with_trace: bool = False
) -> Report:
    """One run; `faults` overrides how many strike, `kinds` what there is to do besides small graphs."""
    gc.disable()
    report = Report(seed)
    run = Run(seed, kinds_of(seed) if kinds is None else kinds)
    handler = AlarmHandler(run.world)
    logger = logging.getLogger("infinity_matrix")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with entered(run.world.loop, Random(f"substitutes/{seed}")):
            if with_trace:
                run.world.trace = report.trace
            _run(run, report, faults)
            for process in run.alive.values():
                run.world.loop.kill(process)
    finally:
        logger.removeHandler(handler)
        gc.enable()
    return report


def _run(run: Run, report: Report, faults: int | None) -> None:
    world, random = run.world, run.random
    executions = random.choice((1, 3, 6, 10))
    if "children" in run.kinds:
        executions = min(executions, EXECUTIONS_MAX)
    plain = [random_workflow(random, number, plain=run.has_plain) for number in range(2)]
    definitions = Definitions(Random(f"definitions/{world.seed}"), plain, run.kinds)
    census = run.census
    is_aged = "aged-log" in run.kinds
    try:
        run.begin()
        during_s = random.choice((0.5, 5.0, CHAOS_S * 0.7))
        client = Client(world, census, definitions, executions, during_s, run.kinds)
        disorder = Disorder(world, run.coordinators, run.agents, is_brief=is_aged)
        if faults is None:
            faults = random.choice((1, 3, 6, 10))
        disorder.arm(SETTLE_S, SETTLE_S + CHAOS_S, faults)
        process = world.start("client", client.life)
        world.run(SETTLE_S + CHAOS_S)
        if is_aged:
            # Once more when what was started first is in no log any more.
            disorder.arm(SETTLE_S + NAP_S - CHAOS_S, SETTLE_S + NAP_S + CHAOS_S, faults)
            world.run(SETTLE_S + NAP_S + CHAOS_S)
        disorder.end()
        run.finish()
        is_over = world.run(END_S, lambda: world.loop.steps % 50 == 0 and client.is_done and not census.open)
        after_s = AFTER_S if random.random() < 0.9 else LEFTOVERS_S
        world.run(world.loop.now + after_s)
        world.loop.kill(process)
        if not is_over:
            open_now = sorted(census.open)
            report.violations.append(f"not ended by {END_S:g} s: {open_now}, client done: {client.is_done}")
        for stream in world.streams.streams.values():
            world.faults.count("outlived by its execution", len(stream.aged or ()))
        secret_of = world.streams.streams["KV_IM_INSTALLATION"].last("$KV.IM_INSTALLATION.secret")
        secret = bytes.fromhex(secret_of.data.decode()) if secret_of is not None else b""
        history = history_of(world, run.knowledge, run.shards, secret, client.started, client.digests)
        history.clients = [*history.clients, *client.lines]
        if after_s < LEFTOVERS_S:
            # What a killed server brought back is seen once all that lies before it in its queue is done.
            history.queued = []
        if is_over:
            report.violations += violations(world, history)
            report.violations += missing_ticks(history, client.ticks)
        report.executions = len(history.facts)
        report.partly = len(partly_checked(history))
    except Stuck as error:
        report.violations.append(f"stuck: {error}")
    report.hash = world.hash
    report.steps = world.loop.steps
    report.simulated_s = world.loop.now
    report.faults = dict(world.faults.counts)
