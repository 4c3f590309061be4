"""Patience: what a reader does when the connection breaks under it. It reads again, and gives up in the end.

Only for what may be done again without harm.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from infinity_matrix_actors.errors import InfinityMatrixError, StorageUnavailable
from infinity_matrix_bus.api import NoLeader
from infinity_matrix_bus.session import RequestTimeout, SessionLost

#: Losses in a row, each soon after the one before, after which the last is raised.
LOSSES_MAX = 5
LOSS_DELAY_S = 0.1
#: An election takes seconds.
ELECTION_DELAY_S = 1.0
#: A loss this long after the one before is the first of a new row.
FORGIVEN_AFTER_S = 30.0
LOSSES = (SessionLost, RequestTimeout, StorageUnavailable)
Answer = TypeVar("Answer")
Parameters = ParamSpec("Parameters")


class Patience:
    """Counts losses in a row."""

    def __init__(self) -> None:
        self._losses = 0
        self._lost_at = 0.0
        self._loop = asyncio.get_running_loop()

    async def bear(self, loss: InfinityMatrixError) -> None:
        """Waits a moment before the next try; raises the loss when it was one too many."""
        now = self._loop.time()
        self._losses = self._losses + 1 if now - self._lost_at < FORGIVEN_AFTER_S else 1
        self._lost_at = now
        if self._losses >= LOSSES_MAX:
            raise loss
        delay_s = ELECTION_DELAY_S if isinstance(loss, NoLeader) else LOSS_DELAY_S
        await asyncio.sleep(delay_s * self._losses)


def patiently(
    call: Callable[Parameters, Awaitable[Answer]], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Coroutine[Any, Any, Answer]:
    """The answer of a call that may be made again; raises what it raises, losses only after five in a row."""
    return _bearing(LOSSES, call, *arguments, **options)


def across_sessions(
    call: Callable[Parameters, Awaitable[Answer]], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Coroutine[Any, Any, Answer]:
    """The answer of a call that writes, and is made again where the connection broke under it.

    What was written then is there already. Where the server does not confirm, waiting was done by the call itself.
    """
    return _bearing((SessionLost,), call, *arguments, **options)


async def _bearing(
    losses: tuple[type[InfinityMatrixError], ...],
    call: Callable[Parameters, Awaitable[Answer]],
    *arguments: Parameters.args,
    **options: Parameters.kwargs,
) -> Answer:
    patience: Patience | None = None
    while True:
        try:
            return await call(*arguments, **options)
        except losses as loss:
            patience = patience or Patience()
            await patience.bear(loss)
