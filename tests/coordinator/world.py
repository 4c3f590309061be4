"""A world of one execution, in pure Python: a write-once log, a work queue, agents, and owners that lag and restart.

Everything that may go wrong does so by choice of one random source, a step at a time: one seed is one run. The actors,
mailbox and timers in it are the production ones; the rest is as small as DESIGN section 4 lets it be. In one rule it
goes beyond: a repair burns its Msg-Id (`repairs_burn_ids`; `test_world` has the trace that needs it).
"""

from dataclasses import replace
from random import Random

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.effect import PublishFinished
from infinity_matrix_actors.fact import Command, CommandKind, Finished, Outcome, Signal, Started, Taken, TaskError
from infinity_matrix_actors.plan import Plan
from world_owner import FRESH_S, Owner
from world_streams import AGENT, EXECUTION, Key, Log, WorkQueue

ROUNDS_MAX = 2000
__all__ = ["AGENT", "EXECUTION", "Agents", "Owner", "World"]


class Agents:
    """Whoever takes work; each attempt ends in a way of its own."""

    WAYS = ("ok",) * 12 + ("fails",) * 6 + ("fatal", "later", "dies", "acks early", "silent")

    def __init__(self, world: "World") -> None:
        self.world = world
        self.running: dict[Key, str] = {}
        self.journal: list[Key] = []
        self._ended: set[Key] = set()

    def take(self) -> bool:
        """Takes a message; asks the log first when in doubt (rule 6)."""
        world = self.world
        free = [key for key, message in world.queue.messages.items() if not message.is_held]
        if not free:
            return False
        key = world.random.choice(free)
        message = world.queue.messages[key]
        message.deliveries += 1
        in_doubt = message.deliveries > 1 or message.is_repair or message.stored_at - message.ready_at > FRESH_S
        if in_doubt and world.log.has_outcome(key):
            del world.queue.messages[key]
            return True
        assert not world.log.has_outcome(key), f"{key} runs again after its outcome"
        message.is_held = True
        self.journal.append(key)
        # What goes wrong without an outcome goes wrong once: faults end.
        ways = self.WAYS[:-3] if key in self._ended else self.WAYS
        self._ended.add(key)
        self.running[key] = world.random.choice(ways)
        if world.random.random() < 0.3:
            world.log.publish(Taken(EXECUTION, world.now, AGENT, *key))
        return True

    def answer(self) -> bool:
        """Ends one of the runs, unless all are silent."""
        keys = [key for key, way in self.running.items() if way != "silent"]
        if not keys:
            return False
        key = self.world.random.choice(keys)
        way = self.running.pop(key)
        message = self.world.queue.messages.get(key)
        if way == "dies":
            if message is not None:
                message.is_held = False
            return True
        if way != "acks early":
            error = {
                "fails": TaskError("boom", "it broke"),
                "fatal": TaskError("bad-input", "it never will"),
                "later": TaskError("busy", "come back", retry_after=7.0),
                "cancelled": TaskError("cancelled", "stopped", retryable=False),
            }.get(way)
            result = {"n": self.world.random.randrange(3)} if error is None else None
            self.world.log.publish(Outcome(EXECUTION, self.world.now, AGENT, *key, result=result, error=error))
            if message is not None and self.world.random.random() < 0.1:
                message.is_held = False  # it died between its outcome and its ack
                return True
        self.world.queue.messages.pop(key, None)
        return True

    def hear(self, task: str | None) -> None:
        """They are told to stop; some do."""
        for key, way in self.running.items():
            if (task is None or key[0] == task) and way != "silent" and self.world.random.random() < 0.5:
                self.running[key] = "cancelled"


class World:
    """One execution with its two owners. `chaos`, then `calm`, and the log must hold one end."""

    def __init__(
        self,
        definition: WorkflowDefinition,
        seed: int,
        input: object = None,
        *,
        repairs_burn_ids: bool = True,
        runs: int = 1,
        is_meddled_with: bool = False,
    ) -> None:
        self.random = Random(seed)
        self.plan = Plan.of(definition)
        self.now = 1000.0
        self.log = Log()
        self.queue = WorkQueue(repairs_burn_ids=repairs_burn_ids)
        self.agents = Agents(self)
        #: What owners published: attempts, and terminal records.
        self.asked: set[Key] = set()
        self.endings: list[PublishFinished] = []
        self._is_calm = False
        #: How often it is begun, at most: what ended badly is taken up again. And whether people pause and signal it.
        self._runs_left = runs - 1
        self._is_meddled_with = is_meddled_with
        self._commands = 0
        self._started = Started(EXECUTION, self.now, definition.name, self.plan.digest, input)
        self.owners = [Owner(self), Owner(self)]

    def can_read_definitions(self) -> bool:
        return self._is_calm or self.random.random() < 0.7

    def chaos(self, steps: int, *, cancel_at: int | None = None) -> None:
        """That many steps of anything by anyone; a cancel at a given one, even before the start."""
        start_at = self.random.choice((0, 0, 0, 3))
        speeds = [self.random.choice((1.0, 3.0, 10.0)) for _ in self.owners]
        for step in range(steps):
            self.now += self.random.random() * self.random.choice((0.01, 0.1, 2.0))
            if step == start_at:
                self._start()
            if step == cancel_at:
                self.log.publish(Command(EXECUTION, self.now, CommandKind.CANCEL, "1", "enough"))
            if self._is_meddled_with and self.random.random() < 0.05:
                self._meddle()
            if self.random.random() < 0.4:
                self.random.choice((self.agents.take, self.agents.answer))()
                continue
            (number,) = self.random.choices(range(len(self.owners)), speeds)
            chance = self.random.random()
            owner = self.owners[number]
            if chance < 0.02:
                self.owners[number] = Owner(self)
            elif chance < 0.04:
                owner.sweep()
            elif chance < 0.1:
                owner.load()
                owner.fire()
            else:
                self.random.choice((owner.fold, owner.perform))()
        if steps <= start_at:
            self._start()

    def calm(self) -> None:
        """No more faults: everyone does what there is to do until the log holds the end and nothing is left."""
        self._is_calm = True
        if self._is_meddled_with:
            self._command(CommandKind.RESUME)
        for _ in range(ROUNDS_MAX):
            moved = False
            for owner in self.owners:
                moved |= owner.load()
                while owner.fold() or owner.perform():
                    moved = True
            while self.agents.take() or self.agents.answer():
                moved = True
            if moved:
                continue
            if self.owners[0].actor is None and any(isinstance(fact, Finished) for fact in self.log.facts):
                if self._take_up():
                    continue
                return
            if self.owners[0].sweep() | self.owners[1].sweep():
                continue
            self.agree()
            times = [at for owner in self.owners if (at := owner.timers.next_at()) is not None]
            if not times and self._is_meddled_with:
                self._signal()
                continue
            assert times, "no way on: nothing to do and no timer"
            self.now = max(self.now, min(times))
            for owner in self.owners:
                owner.fire()
        raise AssertionError(f"no end after {ROUNDS_MAX} rounds")

    def agree(self) -> None:
        """All owners that have read everything, and whoever folds the log now, are in the same state."""
        records = [owner.actor.record() for owner in self.owners if owner.actor is not None]
        assert all(record == records[0] for record in records)

    def _take_up(self) -> bool:
        """Takes it up again if it ended badly, while that is still to be done; a paused one goes on."""
        last = next(fact for fact in reversed(self.log.facts) if isinstance(fact, Finished))
        if not self._runs_left or last.state == "completed":
            return False
        self._runs_left -= 1
        if last.compensation == "incomplete" and self.random.random() < 0.3:
            self._command(CommandKind.COMPENSATE)
        else:
            self._command(CommandKind.RETRY)
            self._command(CommandKind.RESUME)
        return True

    def _meddle(self) -> None:
        kinds = [CommandKind.PAUSE, CommandKind.RESUME, None]
        if self._runs_left and any(isinstance(fact, Finished) for fact in self.log.facts):
            self._runs_left -= 1
            kinds = [CommandKind.RETRY, CommandKind.COMPENSATE]
        kind = self.random.choice(kinds)
        if kind is None:
            self._signal()
        else:
            self._command(kind)

    def _command(self, kind: CommandKind) -> None:
        self._commands += 1
        self.log.publish(Command(EXECUTION, self.now, kind, f"c{self._commands}"))

    def _signal(self) -> None:
        self._commands += 1
        self.log.publish(Signal(EXECUTION, self.now, "go", f"s{self._commands}", {"n": self.random.randrange(3)}))

    def _start(self) -> None:
        self.log.publish(replace(self._started, at=self.now))
