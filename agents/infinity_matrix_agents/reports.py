"""What an agent says of its attempts beside their outcome: log lines, progress, that they were taken or released."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.fact import RELEASED_SIGNAL
from infinity_matrix_bus.codec import encode, rfc3339
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.publisher import Outbox
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_agents.delivery import Delivery
from infinity_matrix_agents.stream_time import StreamTime
from infinity_matrix_agents.work import Work
from infinity_matrix_agents.work_log import WorkLog

LOG_LINES_KEPT = 1000
#: Between two progress messages of one attempt; of those that come quicker the last is sent.
PROGRESS_INTERVAL_S = 0.25
#: A heartbeat is sent at least this often within `heartbeat_timeout`, if the handler gives that many.
HEARTBEATS_MIN = 4
#: How often it is said that a closed attempt was let go, while the server is there.
RELEASED_TRIES = 5
log = get_logger("infinity_matrix.agents")


@dataclass(slots=True)
class _Told:
    """The progress of one attempt: when it was last sent (loop time), and what is not sent yet."""

    sent_at: float
    timer: asyncio.TimerHandle | None = None
    waiting: dict[str, Any] = field(default_factory=dict)


class Reports:
    """Reports of one agent. Log lines and progress may come from any thread."""

    def __init__(
        self, connection: Connection, subjects: Subjects, time: StreamTime, outbox: Outbox, instance: str
    ) -> None:
        self._connection = connection
        self._subjects = subjects
        self._time = time
        self._outbox = outbox
        self._instance = instance
        self._log_lines: deque[tuple[str, bytes]] = deque(maxlen=LOG_LINES_KEPT)
        self._told: dict[Work, _Told] = {}
        self._loop = asyncio.get_running_loop()

    def on_session(self, session: Session) -> None:
        """Sends the log lines that were kept while the server was away."""
        while self._log_lines:
            session.publish(*self._log_lines.popleft())

    def log_of(self, record: dict[str, Any]) -> WorkLog:
        """The log of one attempt."""
        subject = self._subjects.logs(record["workflow"], record["execution"], record["task"])
        base = {key: record[key] for key in ("execution", "workflow", "task", "attempt", "agent")}
        return WorkLog(lambda line: self._call(self._publish_log, subject, line), base, {})

    def progress(self, work: Work, fields: dict[str, Any]) -> None:
        """Reports progress: `percent`, `data` and `message`, whichever there are; a heartbeat has none."""
        self._call(self._progress, work, fields)

    def end(self, work: Work) -> None:
        """Sends what progress was held back: the attempt has ended."""
        told = self._told.pop(work, None)
        if told is not None and told.timer is not None:
            told.timer.cancel()
            self._publish_progress(work, told.waiting)

    def taken(self, delivery: Delivery) -> None:
        """Says that an attempt was begun, with its capability."""
        subject = delivery.record.get("taken_to")
        if isinstance(subject, str):
            started_at = rfc3339(delivery.started_at or self._time.now())
            payload = encode({"instance": self._instance, "started_at": started_at})
            self._outbox.post(subject, payload, lambda ack: None)

    def released(self, delivery: Delivery) -> None:
        """The attempt was closed before its outcome came: what undoes it need not wait for the lease any more."""
        record = delivery.record
        fact = self._subjects.parse_fact(record["reply_to"])
        if fact is None:
            return
        task, attempt = record["task"], record["attempt"]
        subject = self._subjects.signal(fact.shard, record["execution"], RELEASED_SIGNAL, f"{task}-{attempt}")
        payload = encode({"task": task, "attempt": attempt, "late": delivery.is_completed})
        # Whom its permissions do not let say so is denied without an answer; then the lease ends it.
        self._outbox.post(subject, payload, lambda ack: None, RELEASED_TRIES)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Calls in the loop's thread, from whichever thread."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._loop.call_soon_threadsafe(function, *arguments)
        else:
            function(*arguments)

    def _publish_log(self, subject: str, line: bytes) -> None:
        try:
            self._connection.session.publish(subject, line)
        except SessionLost:
            self._log_lines.append((subject, line))

    def _progress(self, work: Work, fields: dict[str, Any]) -> None:
        if work.has_ended:
            # Reported by a thread that outlived its attempt, or a moment before its end was known here.
            return
        now = self._loop.time()
        told = self._told.get(work)
        if told is None:
            self._told[work] = _Told(now)
            self._publish_progress(work, fields)
            return
        # A heartbeat takes nothing away from the progress that waits: that is a sign of life as well.
        told.waiting = fields or told.waiting
        if told.timer is None:
            wait_s = told.sent_at + _interval_s(work) - now
            if wait_s <= 0:
                self._send(work, told)
            else:
                told.timer = self._loop.call_later(wait_s, self._send, work, told)

    def _send(self, work: Work, told: _Told) -> None:
        told.sent_at, told.timer = self._loop.time(), None
        fields, told.waiting = told.waiting, {}
        self._publish_progress(work, fields)

    def _publish_progress(self, work: Work, fields: dict[str, Any]) -> None:
        subject = self._subjects.status(work.workflow, work.execution, work.task, "progress", work.attempt)
        status = {
            "v": 1,
            "execution": work.execution,
            "workflow": work.workflow,
            "task": work.task,
            "status": "progress",
            "attempt": work.attempt,
            "at": rfc3339(self._time.now()),
            **fields,
        }
        try:
            self._connection.session.publish(subject, encode(status))
        except SessionLost:
            log.debug("progress_lost", subject=subject)


def _interval_s(work: Work) -> float:
    if work.heartbeat_timeout is None:
        return PROGRESS_INTERVAL_S
    return min(PROGRESS_INTERVAL_S, work.heartbeat_timeout / HEARTBEATS_MIN)
