"""Large payloads at the agent's end: values for the references in a work, and a reference for a large result.

The handler sees none of it. What can pass (a connection that broke, a store that is full) is tried again, for the work
is in hand and its lease is extended meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from infinity_matrix_actors.errors import PayloadTooLarge, StorageUnavailable, Unreachable
from infinity_matrix_bus.artifacts import ARTIFACT_BYTES_MAX, ArtifactStore
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.references import resolved
from infinity_matrix_bus.session import SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_agents import outcomes
from infinity_matrix_agents.work import Work

CONNECT_TIMEOUT_S = 10.0
#: A work whose values cannot be read fails after this, and may be tried again later.
FETCH_LIMIT_S = 30.0
#: A result is what was worked for: it is given up much later.
STORE_LIMIT_S = 600.0
RETRY_DELAY_MIN_S = 0.25
RETRY_DELAY_MAX_S = 5.0
_PASSING = (StorageUnavailable, SessionLost, Unreachable)
log = get_logger("infinity_matrix.agents")
Answer = TypeVar("Answer")


class Payloads:
    """The artifacts of one agent's works."""

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._store = ArtifactStore(lambda: connection.connected(CONNECT_TIMEOUT_S), subjects)

    async def resolve(self, work: Work) -> None:
        """Puts values in the place of a work's references; raises ArtifactMissing, StorageUnavailable, Unreachable."""
        work.resolve(await _persistently(lambda: resolved(work.record, self._store), FETCH_LIMIT_S))

    async def completed(self, result: Any, started_at: float, instance: str) -> bytes:
        """The payload of a result, which is stored first when it is large; that of a failure when it cannot be."""
        try:
            return outcomes.completed(result, started_at, instance)
        except PayloadTooLarge:
            pass
        try:
            data = encode(result, "the result", ARTIFACT_BYTES_MAX)
            reference = await _persistently(lambda: self._store.put(data, "the result"), STORE_LIMIT_S)
        except PayloadTooLarge as error:
            return outcomes.too_large(error, started_at, instance)
        except _PASSING as error:
            return outcomes.failed(error, started_at, instance)
        return outcomes.completed(reference, started_at, instance)


async def _persistently(call: Callable[[], Awaitable[Answer]], limit_s: float) -> Answer:
    """The answer of a call that may be made again; raises what it raised last once `limit_s` has passed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    delay_s = RETRY_DELAY_MIN_S
    while True:
        try:
            return await call()
        except _PASSING as error:
            if loop.time() + delay_s > deadline:
                raise
            log.info("artifact_postponed", reason=str(error))
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, RETRY_DELAY_MAX_S)
