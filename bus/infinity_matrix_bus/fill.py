"""How full the logs are, as who starts executions knows it: asked every few seconds, not for each start.

A log keeps a reserve: starts are refused before what runs is, or nothing could end any more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError, LogFull

from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session

#: Above this share of a log's `max_bytes` nothing is started.
START_FILL_MAX = 0.70
#: What is known of a log is asked anew after this long.
FILL_AGE_S = 5.0
ASK_TIMEOUT_S = 1.0
#: Who may not ask, or gets no answer, starts unchecked for so long: the full log itself refuses in the end.
UNKNOWN_AGE_S = 60.0
log = get_logger("infinity_matrix.bus")


def fill_of(info: Mapping[str, Any]) -> float:
    """The share of its `max_bytes` a stream holds, from its info; 0 where it has no limit."""
    limit_bytes = int(info["config"].get("max_bytes", -1))
    return int(info["state"]["bytes"]) / limit_bytes if limit_bytes > 0 else 0.0


@dataclass(slots=True)
class _Known:
    filled: float
    until: float


class Fills:
    """What is known of the logs of one installation. `session` answers the session of now."""

    def __init__(self, session: Callable[[], Awaitable[Session]]) -> None:
        self._session = session
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()

    async def check(self, stream: str) -> None:
        """Raises LogFull when nothing may be started on that log. Waits only where nothing, or nothing good, is known.

        One that had room a moment ago is asked about meanwhile.
        """
        known = self._known.get(stream)
        is_old = known is None or self._loop.time() >= known.until
        if is_old:
            asking = self._ask(stream)
            if known is None or known.filled > START_FILL_MAX:
                await asyncio.shield(asking)
                known = self._known[stream]
        assert known is not None
        if known.filled > START_FILL_MAX:
            raise LogFull(stream, known.filled, START_FILL_MAX)

    def close(self) -> None:
        for task in self._asking.values():
            task.cancel()

    def _ask(self, stream: str) -> asyncio.Task[None]:
        task = self._asking.get(stream)
        if task is None:
            task = self._asking[stream] = asyncio.create_task(self._read(stream), name=f"fill-{stream}")
            task.add_done_callback(lambda _: self._asking.pop(stream, None))
        return task

    async def _read(self, stream: str) -> None:
        try:
            api = JetStreamApi(await self._session())
            filled = fill_of(await api.call(f"STREAM.INFO.{stream}", timeout_s=ASK_TIMEOUT_S))
            age_s = FILL_AGE_S
        except InfinityMatrixError as error:
            log.debug("fill_not_known", stream=stream, reason=str(error))
            filled, age_s = 0.0, UNKNOWN_AGE_S
        self._known[stream] = _Known(filled, self._loop.time() + age_s)
