"""Orders to stop, as they are pushed to agents, and what they mean for the work in hand and in the queue."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable

from infinity_matrix_bus.codec import Undecodable, decode_record, parse_rfc3339
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_agents.delivery import Delivery
from infinity_matrix_agents.stream_time import StreamTime

#: A handler has this long to look at `work.cancelled`, or half of the grace; one that does not is cancelled then.
POLITE_S = 1.0
#: Of the grace this is kept, or a quarter of it, so that the outcome is the agent's own: it comes before the end.
CONFIRM_S = 1.0
STOPPED_REMEMBERED_MAX = 10_000


def own_time_s(grace_s: float) -> float:
    """What a handler may use of a grace."""
    return max(0.0, grace_s - min(CONFIRM_S, grace_s / 4))


class Cancels:
    """Takes orders to stop. `held` are the works in hand; `drop` ends one that was not begun and says whether it did.

    `interrupts` says whether a handler can be cancelled: one in a thread can only be told. `is_patient`: whether a
    handler that looks at `work.cancelled` is left the time to end by itself; one that does not look is not.
    """

    def __init__(
        self,
        subjects: Subjects,
        time: StreamTime,
        held: Iterable[Delivery],
        drop: Callable[[Delivery, str], bool],
        interrupts: bool,
        is_patient: bool,
    ) -> None:
        self._subjects = subjects
        self._time = time
        self._held = held
        self._drop = drop
        self._interrupts = interrupts
        self._is_patient = is_patient
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
        grace_s = float(grace) if isinstance(grace, int | float) and grace > 0 else 0.0
        stopped_at: float | None = None
        if task is None:
            stopped_at = parse_rfc3339(order.get("at")) or self._time.now()
            self._stopped[execution] = (stopped_at, reason)
            if len(self._stopped) > STOPPED_REMEMBERED_MAX:
                self._stopped.popitem(last=False)
        for delivery in list(self._held):
            is_meant = delivery.concerns(execution, task, attempt if isinstance(attempt, int) else 0)
            if is_meant and not _is_later(delivery, stopped_at):
                self.cancel(delivery, reason, grace_s)

    def stop_of(self, delivery: Delivery) -> str | None:
        """Why the execution was stopped after this work had become ready and lay in the queue; None if it was not."""
        execution = delivery.record["execution"]
        stopped = self._stopped.get(execution)
        if stopped is None or not delivery.concerns(execution, None, 0):
            return None
        at, reason = stopped
        ready_at = parse_rfc3339(delivery.record.get("ready_at"))
        return None if ready_at is None or ready_at > at else reason

    def cancel(self, delivery: Delivery, reason: str, grace_s: float = 0.0) -> None:
        """Stops one work: that is told, left the grace where it may use it, and then interrupted."""
        delivery.is_cancelled, delivery.cancel_reason = True, reason
        if delivery.work is not None:
            delivery.work.mark_cancelled(reason, grace_s)
        if self._drop(delivery, reason) or delivery.task is None or not self._interrupts:
            return
        if grace_s == 0 or not self._is_patient:
            self._interrupt(delivery)
        else:
            polite_s = min(POLITE_S, grace_s / 2)
            self._loop.call_later(polite_s, self._look, delivery, own_time_s(grace_s) - polite_s)

    def _look(self, delivery: Delivery, rest_s: float) -> None:
        """Lets a handler that looks end by itself for the rest of the grace."""
        if delivery.work is not None and delivery.work.is_looking and rest_s > 0:
            self._loop.call_later(rest_s, self._interrupt, delivery)
        else:
            self._interrupt(delivery)

    def _interrupt(self, delivery: Delivery) -> None:
        if delivery.task is not None and not delivery.is_released and not delivery.is_interrupted:
            delivery.is_interrupted = True
            delivery.task.cancel()


def _is_later(delivery: Delivery, stopped_at: float | None) -> bool:
    """Whether a work became ready after its execution was stopped: it has been taken up again since."""
    ready_at = None if stopped_at is None else parse_rfc3339(delivery.record.get("ready_at"))
    return ready_at is not None and stopped_at is not None and ready_at > stopped_at
