"""How much work of one agent may be queued at a time; the rest stays in the state, ready.

An agent nobody runs must not fill `IM_WORK` and starve the others.
"""

from collections import OrderedDict

#: Works of one agent queued at a time, over all shards.
QUEUED_MAX = 10_000

Attempt = tuple[str, str, int]  #: execution, task, attempt


class Backlog:
    """One shard's share: which attempts are out, and which are held back, by agent."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        #: With the sequence of its work in the work stream; 0 while that is not known.
        self._out: dict[str, dict[Attempt, int]] = {}
        self._held: dict[str, OrderedDict[Attempt, None]] = {}

    def admit(self, agent: str, attempt: Attempt) -> bool:
        """Whether the attempt may be published now; if not it is held and comes out of `settle` later."""
        out = self._out.get(agent)
        if out is None:
            out = self._out[agent] = {}
        if attempt in out:
            return True
        if len(out) >= self._limit:
            self._held.setdefault(agent, OrderedDict())[attempt] = None
            return False
        out[attempt] = 0
        return True

    def stored(self, agent: str, attempt: Attempt, sequence: int) -> None:
        """Takes in where the work of an attempt stands in the work stream."""
        out = self._out.get(agent)
        if out is not None and attempt in out:
            out[attempt] = sequence

    def sequence_of(self, agent: str, attempt: Attempt) -> int:
        """Where the work of an attempt stands in the work stream, 0 when that is not known here."""
        return self._out.get(agent, {}).get(attempt, 0)

    def settle(self, agent: str, attempt: Attempt) -> Attempt | None:
        """Takes in that an attempt has its outcome; answers one that was held and may be published now."""
        out = self._out.get(agent)
        held = self._held.get(agent)
        if out is None or attempt not in out:
            if held is not None:
                # It never came out (cancelled, closed): released later it would hold its place for ever.
                held.pop(attempt, None)
            return None
        del out[attempt]
        if not held:
            return None
        released, _ = held.popitem(last=False)
        out[released] = 0
        return released

    def is_held(self, agent: str, attempt: Attempt) -> bool:
        """Whether the attempt waits here, so that its absence from `IM_WORK` is no loss."""
        return attempt in self._held.get(agent, ())

    def held(self) -> int:
        return sum(len(queue) for queue in self._held.values())
