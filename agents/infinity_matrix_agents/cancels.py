"""Orders to stop, as they are pushed to agents, and what they mean for the work in hand and in the queue."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable

from infinity_matrix_bus.codec import Undecodable, decode_record, parse_rfc3339
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_agents.delivery import Delivery
from infinity_matrix_agents.stream_time import StreamTime

#: A handler that looks at `work.cancelled` has this long to end by itself before it is cancelled.
POLITE_S = 1.0
STOPPED_REMEMBERED_MAX = 10_000


class Cancels:
    """Takes orders to stop. `held` are the works in hand; `drop` ends one that was not begun and says whether it did.

    `interrupts` says whether a handler can be cancelled: one in a thread can only be told.
    """

    def __init__(
        self,
        subjects: Subjects,
        time: StreamTime,
        held: Iterable[Delivery],
        drop: Callable[[Delivery, str], bool],
        interrupts: bool,
    ) -> None:
        self._subjects = subjects
        self._time = time
        self._held = held
        self._drop = drop
        self._interrupts = interrupts
        #: Executions that were stopped, when (stream time) and why: their queued work is not begun any more.
        self._stopped: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    def on_order(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        """Takes one order, as a subscription's callback."""
        execution, task = self._subjects.parse_cancel(subject)
        try:
            order = decode_record(data) if data else {}
        except Undecodable:
            order = {}
        attempt = order.get("attempt")
        reason = str(order.get("reason", ""))
        grace = order.get("grace")
        polite_s = min(POLITE_S, float(grace) / 2) if isinstance(grace, int | float) else 0.0
        if task is None:
            self._stopped[execution] = (self._time.now(), reason)
            if len(self._stopped) > STOPPED_REMEMBERED_MAX:
                self._stopped.popitem(last=False)
        for delivery in list(self._held):
            if delivery.concerns(execution, task, attempt if isinstance(attempt, int) else 0):
                self._cancel(delivery, reason, polite_s)

    def stop_of(self, delivery: Delivery) -> str | None:
        """Why the execution was stopped after this work had become ready and lay in the queue; None if it was not."""
        at, reason = self._stopped.get(delivery.record["execution"], (0.0, ""))
        ready_at = parse_rfc3339(delivery.record.get("ready_at")) if at else None
        if ready_at is None or ready_at > at or not delivery.concerns(delivery.record["execution"], None, 0):
            return None
        return reason

    def _cancel(self, delivery: Delivery, reason: str, polite_s: float) -> None:
        delivery.is_cancelled = True
        if delivery.work is not None:
            delivery.work.mark_cancelled(reason)
        if not self._drop(delivery, reason) and delivery.task is not None and self._interrupts:
            self._loop.call_later(polite_s, self._interrupt, delivery)

    def _interrupt(self, delivery: Delivery) -> None:
        if delivery.task is not None and not delivery.is_released:
            delivery.task.cancel()
