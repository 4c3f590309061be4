"""Concurrency keys: at most so many executions with one key at a time; the others wait for a slot, oldest first.

A key is an actor of its own, on the shard of its hash: who asks and who lets go are facts there, and a slot that was
given is a fact of the execution that got it. A slot whose holder has ended without letting go is found by a sweep.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from infinity_matrix_actors.fact import ENTER_SIGNAL, LEAVE_SIGNAL, SLOT_SIGNAL, Fact, Signal
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.publisher import Ack, Outbox
from infinity_matrix_bus.subjects import Subjects, shard_of

KEY_PREFIX = "im-key-"
#: Holders looked at by one sweep.
HOLDERS_A_SWEEP = 256
#: A ticket that was given back before it was there is remembered for so long, in stream time.
LEFT_KEPT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """One execution's place with a key. `n` counts the times the execution was begun."""

    id: str
    execution: str
    n: int
    sequence: int
    at: float


class SlotActor:
    """One key: who has a slot, and who waits. Pure; `receive` answers the tickets that get a slot by it."""

    __slots__ = ("left", "max_running", "running", "waiting")

    def __init__(self) -> None:
        self.max_running = 1
        self.running: dict[str, Ticket] = {}
        self.waiting: OrderedDict[str, Ticket] = OrderedDict()
        self.left: dict[str, float] = {}

    @property
    def is_empty(self) -> bool:
        return not self.running and not self.waiting and not self.left

    def receive(self, fact: Signal, sequence: int) -> list[Ticket]:
        """Folds that an execution asks or lets go."""
        data = fact.data if isinstance(fact.data, dict) else {}
        if fact.name == ENTER_SIGNAL:
            execution, limit, n = data.get("execution"), data.get("max"), data.get("n", 1)
            if not isinstance(execution, str) or not isinstance(limit, int) or not isinstance(n, int):
                return []
            # The newest to ask knows the newest definition.
            self.max_running = max(1, limit)
            if self.left.pop(fact.id, None) is None and fact.id not in self.running:
                self.waiting[fact.id] = Ticket(fact.id, execution, n, sequence, fact.at)
        elif fact.name == LEAVE_SIGNAL and not (self.running.pop(fact.id, None) or self.waiting.pop(fact.id, None)):
            self.left[fact.id] = fact.at
        granted = []
        while self.waiting and len(self.running) < self.max_running:
            _, ticket = self.waiting.popitem(last=False)
            self.running[ticket.id] = ticket
            granted.append(ticket)
        return granted

    def position(self) -> int | None:
        """The sequence this state must be folded from; None when from anywhere."""
        oldest = [ticket.sequence for ticket in (*self.running.values(), *self.waiting.values())]
        return min(oldest) if oldest else None

    def forget_left(self, before: float) -> None:
        self.left = {ticket: at for ticket, at in self.left.items() if at >= before}


class SlotKeys:
    """The keys of one shard."""

    def __init__(self, subjects: Subjects, shards: int, outbox: Outbox) -> None:
        self._subjects = subjects
        self._shards = shards
        self._outbox = outbox
        self.actors: dict[str, SlotActor] = {}

    def on_fact(self, fact: Fact, sequence: int, *, is_live: bool) -> None:
        """Folds a fact of a key; while live, slots are given at once."""
        if not isinstance(fact, Signal):
            return
        actor = self.actors.setdefault(fact.execution, SlotActor())
        granted = actor.receive(fact, sequence)
        if is_live:
            for ticket in granted:
                self._grant(ticket)
        if actor.is_empty:
            del self.actors[fact.execution]

    def resume(self) -> None:
        """Gives again what may have been given: the log refuses what is there."""
        for actor in self.actors.values():
            for ticket in actor.running.values():
                self._grant(ticket)

    def position(self, next_sequence: int) -> int:
        """The sequence a new owner must read from."""
        found = [position for actor in self.actors.values() if (position := actor.position()) is not None]
        return min([next_sequence, *found])

    def ask(self, workflow: str, key: str, execution: str, max_running: int, n: int) -> None:
        """Asks for a slot of a workflow's key."""
        id = self.id_of(workflow, key)
        subject = self._subjects.signal(
            shard_of(id, self._shards), id, ENTER_SIGNAL, self._subjects.derived_id("slot", execution, str(n))
        )
        self._outbox.post(subject, encode({"execution": execution, "max": max_running, "n": n}), _ignore)

    def leave(self, workflow: str, key: str, execution: str, n: int, then: Callable[[], None]) -> None:
        """Lets go of a slot, or of the place in the queue, and calls `then` once that is a fact."""
        self._leave(self.id_of(workflow, key), self._subjects.derived_id("slot", execution, str(n)), then)

    def id_of(self, workflow: str, key: str) -> str:
        """The key as an actor's id, that nobody can guess."""
        return KEY_PREFIX + self._subjects.derived_id("key", workflow, key)

    async def sweep(self, api: JetStreamApi, now: float, is_finished: Callable[[Ticket], Awaitable[bool]]) -> None:
        """Frees slots whose holder has ended without letting go."""
        holders = [(id, ticket) for id, actor in self.actors.items() for ticket in actor.running.values()]
        for id, ticket in holders[:HOLDERS_A_SWEEP]:
            if await is_finished(ticket):
                self._leave(id, ticket.id, lambda: None)
        for actor in self.actors.values():
            actor.forget_left(now - LEFT_KEPT_S)

    def _leave(self, id: str, ticket: str, then: Callable[[], None]) -> None:
        subject = self._subjects.signal(shard_of(id, self._shards), id, LEAVE_SIGNAL, ticket)
        self._outbox.post(subject, b"null", lambda ack: then())

    def _grant(self, ticket: Ticket) -> None:
        subject = self._subjects.signal(
            shard_of(ticket.execution, self._shards), ticket.execution, SLOT_SIGNAL, ticket.id
        )
        self._outbox.post(subject, encode({"n": ticket.n}), _ignore)


def _ignore(ack: Ack) -> None:
    """The log itself is the answer: the fact comes back through it."""
