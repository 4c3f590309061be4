"""Orders to stop that were missed: an agent asks about the work in hand that it would have been told to stop.

Orders are pushed once. A server that dies just then tells nobody, and a handler that hangs would keep one of its
agent's places for ever: its attempt is closed, so no coordinator says it again.
"""

from collections.abc import Callable, Iterable

from infinity_matrix_bus.codec import parse_rfc3339

from infinity_matrix_agents.delivery import Delivery
from infinity_matrix_agents.doubt import Doubt
from infinity_matrix_agents.stream_time import StreamTime

#: Past its time by so much an attempt should have been told to stop.
LATE_S = 5.0
REASON = "the attempt has its outcome already"


class MissedOrders:
    """Asks about `held` work that runs, once a session is over or its time has passed; `stop` ends what is settled."""

    def __init__(
        self, doubt: Doubt, time: StreamTime, held: Iterable[Delivery], stop: Callable[[Delivery, str], None]
    ) -> None:
        self._doubt = doubt
        self._time = time
        self._held = held
        self._stop = stop
        #: What ran while there was no session.
        self._unheard: set[Delivery] = set()
        self._is_looking = False

    def on_session(self) -> None:
        """Orders that were pushed until now may have been missed."""
        self._unheard = {delivery for delivery in self._held if delivery.started_at is not None}

    async def look(self) -> None:
        """Asks about each that is to be asked about, one after another; returns at once while another look lasts."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            self._unheard.intersection_update(self._held)
            for delivery in list(self._held):
                if delivery in self._unheard or self._is_late(delivery):
                    await self._ask(delivery)
        finally:
            self._is_looking = False

    async def _ask(self, delivery: Delivery) -> None:
        answer = await self._doubt.ask_once(delivery)
        if answer is None:
            return
        self._unheard.discard(delivery)
        if answer.is_settled and not delivery.is_released and not delivery.is_cancelled:
            self._stop(delivery, REASON)

    def _is_late(self, delivery: Delivery) -> bool:
        if delivery.started_at is None or delivery.is_cancelled:
            return False
        now = self._time.now() - LATE_S
        timeout_s, deadline = delivery.record.get("timeout"), parse_rfc3339(delivery.record.get("deadline"))
        is_past_timeout = isinstance(timeout_s, int | float) and now > delivery.started_at + timeout_s
        return is_past_timeout or (deadline is not None and now > deadline)
