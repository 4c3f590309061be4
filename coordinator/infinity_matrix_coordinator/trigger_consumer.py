"""The consumer of events: how far all coordinators together have come, also when the server has forgotten it.

The server keeps that in the consumer. One that is deleted would begin with all events of the last day: those whose
executions were purged would start them once more, and workflows that were deployed since would hear of what was before
them. So the place is noted beside it, and the next consumer goes on from there.
"""

from typing import Any

from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

CONSUMER = "im-triggers"
IN_FLIGHT_MAX = 256
NOTE_TIMEOUT_S = 5.0
_NANOSECONDS = 1_000_000_000
_CONFIG: dict[str, Any] = {
    "durable_name": CONSUMER,
    "ack_policy": "explicit",
    "ack_wait": 30 * _NANOSECONDS,
    "max_deliver": -1,
    "max_ack_pending": IN_FLIGHT_MAX * 16,
}


class TriggerConsumer:
    """The consumer of one installation's events, on one session."""

    def __init__(self, session: Session, subjects: Subjects) -> None:
        self._session = session
        self._subjects = subjects
        self._api = JetStreamApi(session)
        self._noted = 0

    async def ensure(self) -> None:
        """Makes it if it is not there, to go on where the last one was; raises JetStreamError, RequestTimeout."""
        stream = self._subjects.triggers_stream
        info = await self._api.consumer_info(stream, CONSUMER)
        if info is not None and _CONFIG.items() <= info["config"].items():
            return
        if info is not None:
            # Where it begins cannot be changed, and need not be.
            begin = {key: info["config"][key] for key in ("deliver_policy", "opt_start_seq") if key in info["config"]}
        else:
            floor = await self._floor()
            begin = {"deliver_policy": "all"}
            if floor:
                begin = {"deliver_policy": "by_start_sequence", "opt_start_seq": floor + 1}
        await self._api.create_consumer(stream, CONSUMER, {**_CONFIG, **begin})

    async def note(self) -> None:
        """Notes how far the events have been handled; raises JetStreamError, RequestTimeout, SessionLost.

        A note that is older than it could be, because two were written at once, only brings some events again.
        """
        info = await self._api.consumer_info(self._subjects.triggers_stream, CONSUMER)
        floor = 0 if info is None else int(info["ack_floor"]["stream_seq"])
        if floor > self._noted and floor > await self._floor():
            await self._session.request(self._subjects.triggers_floor, encode(floor), NOTE_TIMEOUT_S)
        self._noted = max(self._noted, floor)

    async def _floor(self) -> int:
        stream = self._subjects.bucket_stream("checkpoints")
        stored = await self._api.last_message(stream, self._subjects.triggers_floor)
        return int(stored.data) if stored is not None and stored.data.isdigit() else 0
