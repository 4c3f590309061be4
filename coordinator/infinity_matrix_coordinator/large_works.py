"""Works too large for a message: stored in part, and kept small until they are published.

Storing takes time, in which the attempt may be closed, or another owner publish it. So what is stored is published
only afterwards, in one step, by the same rules as any other work.
"""

import asyncio
from collections import OrderedDict
from typing import Any

from infinity_matrix_bus.artifacts import ArtifactStore

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.offload import offloaded

#: Works that are stored at once; more wait: each may be many megabytes in memory.
STORING_MAX = 4
#: Works that are stored and kept until they are published, or published once more; an older one is stored again.
KEPT_MAX = 64


class LargeWorks:
    """The large works of one shard."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._room = asyncio.Semaphore(STORING_MAX)
        self._small: OrderedDict[Attempt, dict[str, Any]] = OrderedDict()

    def small(self, attempt: Attempt) -> dict[str, Any] | None:
        """The record of a work that was stored, with references; None for another."""
        return self._small.get(attempt)

    async def store(self, attempt: Attempt, record: dict[str, Any], limit_bytes: int) -> None:
        """Makes `small` answer that work.

        Raises PayloadTooLarge when no references make it fit, StorageUnavailable, Unreachable, SessionLost.
        """
        async with self._room:
            self._small[attempt] = await offloaded(record, self._store, limit_bytes)
        if len(self._small) > KEPT_MAX:
            self._small.popitem(last=False)
