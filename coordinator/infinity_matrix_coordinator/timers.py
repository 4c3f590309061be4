"""Timers by key, on a time that is given: a heap with lazy deletion. Pure; the shard asks it what is due."""

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
#: The heap is rebuilt when it holds this many times what is armed: most timers are disarmed long before their time.
GARBAGE_RATIO = 4
GARBAGE_FREE_BELOW = 1024


class Timers(Generic[Key]):
    """At most one timer a key."""

    def __init__(self) -> None:
        self._armed: dict[Key, tuple[float, int, Key]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, key: Key, at: float) -> bool:
        """Sets the key's timer to `at`, in place of its earlier one; answers whether it is the next one due."""
        # The same tuple in both: a hundred thousand timers wait.
        self._armed[key] = armed = (at, next(self._count), key)
        heapq.heappush(self._heap, armed)
        if len(self._heap) > GARBAGE_FREE_BELOW and len(self._heap) > GARBAGE_RATIO * len(self._armed):
            self._heap = list(self._armed.values())
            heapq.heapify(self._heap)
        return self._heap[0] is armed

    def disarm(self, key: Key) -> None:
        self._armed.pop(key, None)

    def next_at(self) -> float | None:
        """When the earliest timer is due."""
        while self._heap:
            first = self._heap[0]
            if self._armed.get(first[2]) is first:
                return first[0]
            heapq.heappop(self._heap)
        return None

    def due(self, now: float, limit: int) -> list[Key]:
        """Takes out the keys whose time has come, at most `limit`, earliest first."""
        keys: list[Key] = []
        while len(keys) < limit:
            at = self.next_at()
            if at is None or at > now:
                break
            _, _, key = heapq.heappop(self._heap)
            del self._armed[key]
            keys.append(key)
        return keys
