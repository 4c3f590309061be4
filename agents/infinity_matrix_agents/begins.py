"""How often a work was begun, so that what was handed back unharmed never passes for poison.

The server counts deliveries, and a delivery that an ending agent gave back, or that an agent of another version passed
on, counts like one that killed its agent. So an agent marks what it begins after a first delivery, and what of that it
hands back. Marks are status messages: if some are lost, work is found to be poison later, never wrongly.
"""

from infinity_matrix_bus.codec import encode, rfc3339
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import NoResponders, RequestTimeout, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_agents.delivery import Delivery
from infinity_matrix_agents.stream_time import StreamTime

#: A mark that is not confirmed by then is given up: the work goes on.
MARK_TIMEOUT_S = 1.0
log = get_logger("infinity_matrix.agents")


class Begins:
    """Marks of one agent."""

    def __init__(self, connection: Connection, subjects: Subjects, time: StreamTime, instance: str) -> None:
        self._connection = connection
        self._subjects = subjects
        self._time = time
        self._instance = instance

    async def mark(self, delivery: Delivery) -> None:
        """Says that a work is begun again. Confirmed, as the work may kill this process at once."""
        if delivery.deliveries == 1:
            # The usual case costs nothing: the first beginning is known by the others.
            return
        delivery.is_marked = True
        try:
            await self._connection.session.request(*self._message(delivery, "begun"), MARK_TIMEOUT_S)
        except (NoResponders, RequestTimeout, SessionLost) as error:
            log.debug("begin_not_marked", execution=delivery.record["execution"], reason=str(error))

    def unmark(self, delivery: Delivery) -> None:
        """Says that a work that was marked is handed back."""
        if not delivery.is_marked:
            return
        try:
            self._connection.session.publish(*self._message(delivery, "returned"))
        except SessionLost:
            log.debug("return_not_marked", execution=delivery.record["execution"])

    def _message(self, delivery: Delivery, state: str) -> tuple[str, bytes]:
        record = delivery.record
        fields = {key: record[key] for key in ("execution", "workflow", "task", "attempt", "agent")}
        execution, task, attempt = delivery.attempt_key
        subject = self._subjects.status(record["workflow"], execution, task, state, attempt)
        at = rfc3339(self._time.now())
        return subject, encode(
            {"v": 1, **fields, "status": state, "at": at, "delivery": delivery.deliveries, "instance": self._instance}
        )
