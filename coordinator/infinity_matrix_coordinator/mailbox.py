"""The mailbox of a shard: which execution actor hears a fact, one fact at a time, in log order.

An actor exists from its `started` to its `finished`. Facts that come before the actor can exist are parked: because
`started` is not there yet, or because its definition is not readable yet. An actor that raises is quarantined alone.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from infinity_matrix_actors import fact as facts_of_core
from infinity_matrix_actors.effect import Effect
from infinity_matrix_actors.fact import Command, CommandKind, Fact, Finished, Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.log import get_logger

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.execution_actor import ExecutionActor

#: Facts before their `started` are kept this long, in stream time.
ORPHANS_KEPT_S = 3600.0
ORPHAN_EXECUTIONS_MAX = 10_000
#: Finished executions remembered, so that a late fact of one is not taken for an orphan.
FINISHED_REMEMBERED_MAX = 100_000
REOPENING = frozenset({CommandKind.RETRY, CommandKind.COMPENSATE})
log = get_logger("infinity_matrix.coordinator")


@dataclass(slots=True)
class Parked:
    """Facts of an execution whose actor cannot exist yet."""

    sequence: int
    at: float
    facts: list[tuple[int, Fact]] = field(default_factory=list)
    started: Started | None = None


@dataclass(slots=True)
class Reopening:
    """An execution that ended and is taken up again: its facts are read before anything else of it is folded."""

    sequence: int
    facts: list[tuple[int, Fact]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """An execution whose actor raised, or that another version of the rules decides.

    `sequence` is where its log begins, for it must be folded again from there.
    """

    sequence: int
    reason: str
    #: The actor raised: somebody must put that right. Else another coordinator has its rules.
    is_fault: bool = True


def is_decided_here(version: int) -> bool:
    """Whether this coordinator has the rules of that version."""
    return version == facts_of_core.DECIDE_VERSION


class Mailbox:
    """All actors of one shard. `plan_of` answers a definition's plan, or None while it is not readable."""

    def __init__(self, plan_of: Callable[[str], Plan | None]) -> None:
        self._plan_of = plan_of
        self.executions: OrderedDict[str, ExecutionActor] = OrderedDict()
        self.parked: OrderedDict[str, Parked] = OrderedDict()
        self.quarantined: OrderedDict[str, Quarantine] = OrderedDict()
        self.reopening: dict[str, Reopening] = {}
        #: Executions that only wait and left memory, with the place up to which their checkpoint is folded.
        self.passive: dict[str, int] = {}
        #: Called when an execution begins while more than `crowd_at` are in memory.
        self.crowd_at = sys.maxsize
        self.on_crowd: Callable[[], None] = lambda: None
        self._finished: OrderedDict[str, None] = OrderedDict()
        self.dropped = 0
        #: How many ends it heard of.
        self.ended = 0

    def deliver(self, fact: Fact, sequence: int) -> list[Effect]:
        """Gives a fact to its actor and answers the effects; parks it when there is no actor yet.

        One that left memory must be brought back first; only its end is heard without.
        """
        actor = self.executions.get(fact.execution)
        if actor is not None:
            return self.receive(actor, fact, sequence) if sequence > actor.folded else []
        if isinstance(fact, Started):
            # The log takes one start for an id: what this owner knew of it was purged since, or is too old.
            self._finished.pop(fact.execution, None)
        if self._is_of_reopened(fact, sequence):
            return []
        if fact.execution in self._finished or fact.execution in self.quarantined:
            self.dropped += 1
            if isinstance(fact, Finished):
                # Another owner could do what this one could not.
                self.forget(fact.execution)
            return []
        parked = self.parked.get(fact.execution)
        if isinstance(fact, Started) and not is_decided_here(fact.decide):
            self.leave_alone(fact.execution, fact.decide, sequence if parked is None else parked.sequence)
            return []
        if isinstance(fact, Started) and fact.skipped:
            self.forget(fact.execution)
            return []
        if isinstance(fact, Started) and (parked is None or parked.started is None):
            if parked is None:
                plan = self._plan_of(fact.definition)
                if plan is not None:
                    return self.receive(self._open(fact, plan, sequence), fact, sequence)
            parked = self._park(fact, sequence)
            parked.started = fact
            parked.facts.append((sequence, fact))
            return []
        if isinstance(fact, Finished) and (parked is None or parked.started is None):
            self.forget(fact.execution)
            return []
        self._park(fact, sequence).facts.append((sequence, fact))
        return []

    def is_folded(self, execution: str, sequence: int) -> bool:
        """Whether a fact at that place is in the state of an execution that came from its checkpoint."""
        actor = self.executions.get(execution)
        return sequence <= (actor.folded if actor is not None else self.passive.get(execution, 0))

    def open_attempts(self, before: float) -> dict[str, dict[Attempt, float]]:
        """By agent the open attempts that were dispatched before a time, each with when that was."""
        found: dict[str, dict[Attempt, float]] = {}
        for execution in self.executions.values():
            for task in (*execution.open, *execution.notices):
                actor = execution.tasks[task]
                at = actor.dispatched_at or 0.0
                if at < before and actor.node.definition.child is None:
                    found.setdefault(actor.node.definition.agent, {})[execution.id, task, actor.attempt] = at
        return found

    def __contains__(self, execution: str) -> bool:
        """Whether an execution is open, as far as this owner knows."""
        held = (self.executions, self.parked, self.quarantined, self.reopening, self.passive)
        return any(execution in place for place in held)

    def passivate(self, actor: ExecutionActor) -> None:
        """Lets an execution that only waits leave memory; its checkpoint has all of it."""
        self.passive[actor.id] = actor.folded
        self.executions.pop(actor.id, None)

    def restored(self, actor: ExecutionActor) -> None:
        """Takes in an execution from its checkpoint."""
        self.passive.pop(actor.id, None)
        self.executions[actor.id] = actor

    def reopen(self, execution: str, facts: list[tuple[int, Fact]], plan: Plan | None) -> None:
        """Folds all facts of an execution that is taken up again; without a plan it stays ended."""
        reopening = self.reopening.pop(execution)
        started = next((fact for _, fact in facts if isinstance(fact, Started)), None)
        if started is not None and not is_decided_here(started.decide):
            self._finished.pop(execution, None)
            self.leave_alone(execution, started.decide, reopening.sequence)
            return
        if started is None or plan is None:
            self.forget(execution)
            return
        # A new owner must find the command that reopened it; what is before that is read again, as here.
        actor = ExecutionActor(started, plan, reopening.sequence)
        last = max(sequence for sequence, _ in facts)
        later = [(sequence, fact) for sequence, fact in reopening.facts if sequence > last]
        self._finished.pop(execution, None)
        self.executions[execution] = actor
        self._fold(actor, [*facts, *later])
        actor.folded = max(last, *(sequence for sequence, _ in later), 0)
        actor.sequence = reopening.sequence
        if actor.finished is not None:
            self.forget(execution)

    def leave_alone(self, execution: str, version: int, sequence: int) -> None:
        """Keeps away from an execution of another version until it ends; who has its rules reads from `sequence`."""
        own = facts_of_core.DECIDE_VERSION
        self.parked.pop(execution, None)
        reason = f"decided by version {version}, this is version {own}"
        self.quarantined[execution] = Quarantine(sequence, reason, is_fault=False)
        log.info("execution_left_alone", execution=execution, version=version, own_version=own)

    def _fold(self, actor: ExecutionActor, facts: list[tuple[int, Fact]]) -> None:
        """All facts of one execution."""
        for _, fact in facts:
            self.receive(actor, fact, actor.sequence, is_kept=True)
            if actor.id in self.quarantined:
                return

    def _is_of_reopened(self, fact: Fact, sequence: int) -> bool:
        """Keeps the facts of an execution that ended and is taken up again, beginning with the command that says so."""
        reopening = self.reopening.get(fact.execution)
        if reopening is None:
            parked = self.parked.get(fact.execution)
            is_reopening = isinstance(fact, Command) and fact.kind in REOPENING
            if not is_reopening or fact.execution in self.quarantined or (parked is not None and parked.started):
                return False
            reopening = self.reopening[fact.execution] = Reopening(sequence)
            self.parked.pop(fact.execution, None)
        reopening.facts.append((sequence, fact))
        return True

    def awaited_definitions(self) -> dict[str, list[str]]:
        """Definitions that parked executions wait for, each with those executions."""
        awaited: dict[str, list[str]] = {}
        for execution, parked in self.parked.items():
            if parked.started is not None:
                awaited.setdefault(parked.started.definition, []).append(execution)
        return awaited

    def unpark(self, execution: str, plan: Plan) -> list[tuple[Fact, list[Effect]]]:
        """Opens a parked execution; answers each of its facts with its effects, in order."""
        parked = self.parked.get(execution)
        if parked is None or parked.started is None:
            return []
        del self.parked[execution]
        actor = self._open(parked.started, plan, parked.sequence)
        answers: list[tuple[Fact, list[Effect]]] = []
        # Also what is older than `started`: one that was cancelled before it began has nothing to begin.
        for sequence, fact in parked.facts:
            if execution in self.executions:
                answers.append((fact, self.receive(actor, fact, sequence)))
            else:
                # It ended meanwhile, by another owner's doing, and may have been taken up again.
                self.deliver(fact, sequence)
        return answers

    def forget(self, execution: str) -> None:
        """Takes a finished execution out."""
        self.ended += 1
        self._close(execution)
        self.parked.pop(execution, None)
        self.quarantined.pop(execution, None)
        self._finished[execution] = None
        if len(self._finished) > FINISHED_REMEMBERED_MAX:
            self._finished.popitem(last=False)

    def drop_orphans(self, now: float) -> None:
        """Drops facts that waited too long for their `started`."""
        for execution, parked in list(self.parked.items()):
            if parked.started is None and parked.at < now - ORPHANS_KEPT_S:
                del self.parked[execution]
                self.dropped += len(parked.facts)

    def position(self, next_sequence: int) -> int:
        """The sequence a new owner must read from: nothing before it matters any more."""
        oldest = next_sequence
        for actor in self.executions.values():
            oldest = min(oldest, actor.sequence)
        for parked in self.parked.values():
            oldest = min(oldest, parked.sequence)
        for reopening in self.reopening.values():
            oldest = min(oldest, reopening.sequence)
        for quarantine in self.quarantined.values():
            oldest = min(oldest, quarantine.sequence)
        return oldest

    def _open(self, started: Started, plan: Plan, sequence: int) -> ExecutionActor:
        actor = ExecutionActor(started, plan, sequence)
        self.executions[started.execution] = actor
        if len(self.executions) > self.crowd_at:
            self.on_crowd()
        return actor

    def _close(self, execution: str) -> None:
        self.executions.pop(execution, None)
        self.passive.pop(execution, None)

    def receive(self, actor: ExecutionActor, fact: Fact, sequence: int, *, is_kept: bool = False) -> list[Effect]:
        """Gives a fact to an actor that is there, and forgets it when that was its end, unless it `is_kept`."""
        # From here on the state is ahead of its checkpoint.
        if sequence < actor.sequence:
            actor.sequence = sequence
        if sequence > actor.folded:
            actor.folded = sequence
        try:
            effects = actor.receive(fact)
        except Exception as error:
            # One actor's fault must not stop the others; what it did is visible and it can go on after a fix.
            log.exception("execution_quarantined", execution=actor.id, sequence=sequence)
            self._close(actor.id)
            self.quarantined[actor.id] = Quarantine(min(actor.sequence, sequence), f"{type(error).__name__}: {error}")
            return []
        if actor.finished is not None and not is_kept:
            self.forget(actor.id)
        return effects

    def _park(self, fact: Fact, sequence: int) -> Parked:
        parked = self.parked.get(fact.execution)
        if parked is None:
            parked = self.parked[fact.execution] = Parked(sequence, fact.at)
            if len(self.parked) > ORPHAN_EXECUTIONS_MAX:
                self._drop_oldest_orphan(fact.execution)
        return parked

    def _drop_oldest_orphan(self, newest: str) -> None:
        for execution, parked in self.parked.items():
            # The newest may be a `started` that is being parked just now.
            if parked.started is None and execution != newest:
                del self.parked[execution]
                self.dropped += len(parked.facts)
                return
