"""How much work of one agent may be queued at a time; the rest stays in the state, ready.

An agent nobody runs must not fill `IM_WORK` and starve the others.
"""

from collections import OrderedDict

from infinity_matrix_actors.fact import Priority

#: Works of one agent queued at a time, over all shards.
QUEUED_MAX = 10_000
#: While work of a higher priority is out, so many works of a lower one may be out besides: what comes next at a higher
#: priority waits behind no more than these.
LOWER_OUT_MAX = 16

Attempt = tuple[str, str, int]  #: execution, task, attempt
_ORDER = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Backlog:
    """One shard's share: which attempts are out, and which are held back, by agent."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        #: With the sequence of its work in the work stream; 0 while that is not known.
        self._out: dict[str, dict[Attempt, int]] = {}
        self._held: dict[str, dict[Priority, OrderedDict[Attempt, None]]] = {}
        #: Of what is out or held: only what is not normal. How much is of high priority, and how much low is out.
        self._priorities: dict[Attempt, Priority] = {}
        self._high: dict[str, int] = {}
        self._low_out: dict[str, int] = {}

    def admit(self, agent: str, attempt: Attempt, priority: Priority = Priority.NORMAL) -> bool:
        """Whether the attempt may be published now; if not it is held and comes out of `settle` later."""
        out = self._out.get(agent)
        if out is None:
            out = self._out[agent] = {}
        if attempt in out:
            return True
        if priority is not Priority.NORMAL and attempt not in self._priorities:
            self._priorities[attempt] = priority
            if priority is Priority.HIGH:
                self._high[agent] = self._high.get(agent, 0) + 1
        size = len(out)
        if size >= self._limit or (size >= LOWER_OUT_MAX and not self._has_turn(agent, priority, size)):
            self._held.setdefault(agent, {}).setdefault(priority, OrderedDict())[attempt] = None
            return False
        out[attempt] = 0
        if priority is Priority.LOW:
            self._low_out[agent] = self._low_out.get(agent, 0) + 1
        return True

    def stored(self, agent: str, attempt: Attempt, sequence: int) -> None:
        """Takes in where the work of an attempt stands in the work stream."""
        out = self._out.get(agent)
        if out is not None and attempt in out:
            out[attempt] = sequence

    def sequence_of(self, agent: str, attempt: Attempt) -> int:
        """Where the work of an attempt stands in the work stream, 0 when that is not known here."""
        return self._out.get(agent, {}).get(attempt, 0)

    def settle(self, agent: str, attempt: Attempt) -> list[Attempt]:
        """Takes in that an attempt has its outcome; answers those that were held and may be published now."""
        out = self._out.get(agent)
        if self._priorities:
            self._forget_priority(agent, attempt, is_out=out is not None and attempt in out)
        held = self._held.get(agent)
        if out is None or attempt not in out:
            for queue in (held or {}).values():
                # It never came out (cancelled, closed): released later it would hold its place for ever.
                queue.pop(attempt, None)
        else:
            del out[attempt]
        if not held or out is None:
            return []
        return self._release(agent, out, held)

    def is_held(self, agent: str, attempt: Attempt) -> bool:
        """Whether the attempt waits here, so that its absence from `IM_WORK` is no loss."""
        held = self._held.get(agent)
        return held is not None and any(attempt in queue for queue in held.values())

    def held(self) -> int:
        return sum(len(queue) for queues in self._held.values() for queue in queues.values())

    def _has_turn(self, agent: str, priority: Priority, out: int) -> bool:
        """Whether nothing of a higher priority is there, or little of a lower one is out."""
        if priority is Priority.HIGH or out < LOWER_OUT_MAX:
            return True
        if agent in self._high:
            return False
        return priority is Priority.NORMAL or out == self._low_out.get(agent, 0)

    def _release(
        self, agent: str, out: dict[Attempt, int], held: dict[Priority, OrderedDict[Attempt, None]]
    ) -> list[Attempt]:
        released: list[Attempt] = []
        for priority in _ORDER:
            queue = held.get(priority)
            while queue and len(out) < self._limit and self._has_turn(agent, priority, len(out)):
                attempt, _ = queue.popitem(last=False)
                out[attempt] = 0
                if priority is Priority.LOW:
                    self._low_out[agent] = self._low_out.get(agent, 0) + 1
                released.append(attempt)
        return released

    def _forget_priority(self, agent: str, attempt: Attempt, *, is_out: bool) -> None:
        priority = self._priorities.pop(attempt, None)
        if priority is Priority.HIGH:
            self._high[agent] -= 1
            if not self._high[agent]:
                del self._high[agent]
        elif priority is Priority.LOW and is_out:
            self._low_out[agent] -= 1
