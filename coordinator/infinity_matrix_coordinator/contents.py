"""Contents: what a reference in a fact stands for, where a decision looks into it.

A large result, input or signal travels as a reference. Most are only handed on, and nobody reads them here; but a
condition, a formula or a schema over one decides something, so everyone who folds that fact must know its content.
While an artifact is not readable the facts of that execution wait, not those of the shard.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.fact import Fact, Finished, Outcome, Signal, Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.references import has_references, resolved

from infinity_matrix_coordinator.execution import CLEAN

RETRY_DELAY_S = 0.5
#: Executions whose contents, or checkpoints, are fetched at once.
FETCHES_AT_ONCE = 32
log = get_logger("infinity_matrix.coordinator")


def unread_in(fact: Fact, plan: Plan | None) -> Any:
    """The value in a fact that decides something and has references; None for none. Without a plan any may decide."""
    if isinstance(fact, Outcome):
        if plan is not None and not plan.examines_results:
            return None
        value = fact.result
    elif isinstance(fact, Started):
        value = fact.input
    elif isinstance(fact, Signal):
        value = fact.data
    else:
        return None
    if type(value) is not dict and type(value) is not list:
        return None
    return value if (plan is None or _is_examined(fact, plan)) and has_references(value) else None


def _is_examined(fact: Outcome | Started | Signal, plan: Plan) -> bool:
    match fact:
        case Outcome():
            return plan.examines(fact.task)
        case Started():
            return plan.examines_input
        case Signal():
            return bool(plan.examined)


async def with_content(fact: Fact, plan: Plan | None, store: ArtifactStore) -> Fact:
    """The fact with the content that decides something; raises ArtifactMissing, StorageUnavailable."""
    value = unread_in(fact, plan)
    if value is None:
        return fact
    assert isinstance(fact, Outcome | Started | Signal)
    # Also where it stands deeper: the outputs of a child are a map of results.
    return replace(fact, content=await resolved(value, store))


@dataclass(slots=True)
class _Waiting:
    #: The place in the log of the first: a new owner must find it.
    sequence: int
    facts: deque[tuple[Fact, int]] = field(default_factory=deque)
    #: It was out of reach just now.
    is_postponed: bool = False
    #: A timer of its own fell due meanwhile.
    is_called: bool = False


class Contents:
    """The facts of one shard that wait for a content, and all that came after them of the same executions.

    An execution that left memory is waited for alike. `deliver(execution, facts)` gets the facts once all of them are
    complete; there are none when only a timer called.
    """

    def __init__(
        self,
        store: ArtifactStore,
        plan_of: Callable[[Fact], Plan | None],
        passive: Mapping[str, int],
        activate: Callable[[str], Awaitable[bool]],
        deliver: Callable[[str, list[tuple[Fact, int]]], None],
    ) -> None:
        self._store = store
        self._plan_of = plan_of
        self._passive = passive
        self._activate = activate
        self._deliver = deliver
        self._waiting: dict[str, _Waiting] = {}
        self._wake = asyncio.Event()

    def __contains__(self, execution: str) -> bool:
        return execution in self._waiting

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def take(self, fact: Fact, sequence: int) -> bool:
        """Whether the fact waits here for its content, or for that of one before it."""
        if self._waiting:
            waiting = self._waiting.get(fact.execution)
            if waiting is not None:
                waiting.facts.append((fact, sequence))
                waiting.sequence = min(waiting.sequence, sequence)
                return True
        folded = self._passive.get(fact.execution) if self._passive else None
        if folded is not None:
            if sequence <= folded:
                return True
            if isinstance(fact, Finished):
                # Another owner went on with it; there is nothing to bring back.
                return False
        elif unread_in(fact, self._plan_of(fact)) is None:
            return False
        self._waiting[fact.execution] = _Waiting(sequence, deque([(fact, sequence)]))
        self._wake.set()
        return True

    def call(self, execution: str) -> None:
        """Brings an execution back that left memory, because a timer of its own is due."""
        waiting = self._waiting.get(execution)
        if waiting is not None:
            # The timer is gone; whatever brings it back, its timers must be looked at then.
            waiting.is_called = True
        elif execution in self._passive:
            # No fact: nothing that a new owner would have to read.
            self._waiting[execution] = _Waiting(CLEAN, is_called=True)
            self._wake.set()

    def position(self, next_sequence: int) -> int:
        """The sequence a new owner must read from."""
        return min([next_sequence, *(waiting.sequence for waiting in self._waiting.values())])

    async def run(self) -> None:
        """Fetches until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while ready := [id for id, waiting in self._waiting.items() if not waiting.is_postponed][:FETCHES_AT_ONCE]:
                await asyncio.gather(*(self._fetch(execution) for execution in ready))

    async def _fetch(self, execution: str) -> None:
        waiting = self._waiting[execution]
        complete: list[tuple[Fact, int]] = []
        try:
            if execution in self._passive:
                await self._activate(execution)
            while waiting.facts:
                fact, sequence = waiting.facts[0]
                whole = await with_content(fact, self._plan_of(fact), self._store)
                waiting.facts.popleft()
                complete.append((whole, sequence))
        except InfinityMatrixError as error:
            # It was stored before the fact that names it, so it is only out of reach. To go on without it would be to
            # decide otherwise than who can read it.
            log.warning("content_not_readable", execution=execution, reason=str(error))
            waiting.facts.extendleft(reversed(complete))
            waiting.is_postponed = True
            asyncio.get_running_loop().call_later(RETRY_DELAY_S, self._try_again, waiting)
            return
        del self._waiting[execution]
        if complete:
            self._deliver(execution, complete)
        if waiting.is_called:
            self._deliver(execution, [])

    def _try_again(self, waiting: _Waiting) -> None:
        waiting.is_postponed = False
        self._wake.set()
