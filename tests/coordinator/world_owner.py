"""An owner of a world's shard: it folds, performs, fires timers, sweeps and repairs, a step at a time."""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infinity_matrix_actors.effect import (
    Arm,
    AskTaken,
    CloseAttempt,
    Disarm,
    Effect,
    PublishDeadline,
    PublishDue,
    PublishFinished,
    PublishStatus,
    PublishWork,
    PurgeWork,
    TellAgents,
)
from infinity_matrix_actors.fact import Command, CommandKind, Due, Finished, Outcome
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.mailbox import Mailbox
from infinity_matrix_coordinator.timers import Timers
from world_streams import AGENT, EXECUTION, Key

if TYPE_CHECKING:
    from world import World

FRESH_S = 30.0


@dataclass(frozen=True, slots=True)
class Repair:
    """An open attempt on its way through the order of a repair: absent from the queue, head read, folded, published."""

    key: Key
    head: int | None = None


@dataclass(frozen=True, slots=True)
class TakeOutcome:
    """The second half of a closing: the queue is purged, now the outcome's subject is taken."""

    closing: CloseAttempt


class Owner:
    """A coordinator's shard. What it has to do waits in `todo`; another owner begins with what is outstanding."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.position = 0
        self.todo: deque[Effect | Repair | TakeOutcome] = deque()
        self.timers: Timers[str | None] = Timers()
        self._seen: dict[Key, float] = {}
        self.mailbox = Mailbox(lambda digest: world.plan if world.can_read_definitions() else None)
        while self.position < len(world.log.facts):
            self._deliver()
        self.load()
        self.todo.clear()
        self._resume()

    @property
    def actor(self) -> ExecutionActor | None:
        return self.mailbox.executions.get(EXECUTION)

    def fold(self) -> bool:
        """Folds the next fact, if there is one."""
        if self.position == len(self.world.log.facts):
            return False
        self._deliver()
        return True

    def _deliver(self) -> None:
        self.position += 1
        self.todo.extend(self.mailbox.deliver(self.world.log.facts[self.position - 1], self.position))
        assert not self.mailbox.quarantined

    def load(self) -> bool:
        """Opens the execution if it was parked; reads all of it if it ended and is taken up again."""
        answers = self.mailbox.unpark(EXECUTION, self.world.plan)
        for _, effects in answers:
            self.todo.extend(effects)
        if EXECUTION not in self.mailbox.reopening:
            return bool(answers)
        self.mailbox.reopen(EXECUTION, list(enumerate(self.world.log.facts, 1)), self.world.plan)
        self._resume()
        return True

    def _resume(self) -> None:
        for effect in self.actor.outstanding() if self.actor is not None else ():
            self.todo.append(Repair((effect.task, effect.attempt)) if isinstance(effect, PublishWork) else effect)

    def fire(self) -> bool:
        """Fires the timers that are due."""
        due = self.timers.due(self.world.now, 100)
        for task in due:
            if self.actor is not None:
                self.todo.extend(self.actor.expire(task, self.world.now))
        return bool(due)

    def sweep(self) -> bool:
        """Repairs open attempts that are absent from the queue."""
        if self.actor is None:
            return False
        keys = [(task, self.actor.tasks[task].attempt) for task in sorted(self.actor.open)]
        absent = [Repair(key) for key in keys if key not in self.world.queue.messages]
        self.todo.extend(absent)
        return bool(absent)

    def perform(self) -> bool:
        """Does the next thing there is to do."""
        if not self.todo:
            return False
        world, effect = self.world, self.todo.popleft()
        log, queue, now = world.log, world.queue, world.now
        match effect:
            case PublishWork(task, attempt, at):
                world.asked.add((task, attempt))
                if now - at < FRESH_S:
                    queue.publish((task, attempt), at, now, is_repair=False)
                else:
                    self.todo.append(Repair((task, attempt)))
            case Repair(key, head):
                self._repair(key, head)
            case PublishDue(task, attempt):
                log.publish(Due(EXECUTION, now, task, attempt))
            case CloseAttempt(task, attempt):
                queue.close((task, attempt), now)
                self.todo.append(TakeOutcome(effect))
            case TakeOutcome(closing):
                error = closing.error
                log.publish(Outcome(EXECUTION, now, AGENT, closing.task, closing.attempt, error=error, closed=True))
            case PurgeWork(task, attempt):
                queue.messages.pop((task, attempt), None)
            case AskTaken(task, attempt):
                self._ask((task, attempt))
            case TellAgents(task):
                world.agents.hear(task)
            case PublishDeadline():
                log.publish(Command(EXECUTION, now, CommandKind.DEADLINE, effect.id))
            case PublishFinished(state, error):
                world.endings.append(effect)
                log.publish(Finished(EXECUTION, now, effect.n, state, error, effect.compensation, effect.compensated))
            case Arm(task, at):
                self.timers.arm(task, at)
            case Disarm(task):
                self.timers.disarm(task)
            case PublishStatus():
                pass
        return True

    def _repair(self, key: Key, head: int | None) -> None:
        if head is None:
            if key not in self.world.queue.messages:
                self.todo.append(Repair(key, len(self.world.log.facts)))
            return
        while self.position < head:
            self._deliver()
        task, attempt = key
        actor = self.actor.tasks.get(task) if self.actor is not None else None
        if actor is not None and actor.is_open and actor.attempt == attempt:
            assert actor.dispatched_at is not None
            self.world.asked.add(key)
            self.world.queue.publish(key, actor.dispatched_at, self.world.now, is_repair=True)

    def _ask(self, key: Key) -> None:
        if self.actor is None:
            return
        message = self.world.queue.messages.get(key)
        is_queued = message is not None and message.deliveries == 0
        seen_at = None if is_queued else self._seen.setdefault(key, self.world.now)
        self.todo.extend(self.actor.expire_quiet(*key, self.world.now, is_queued, seen_at))
