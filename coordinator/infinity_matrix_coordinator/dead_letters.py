"""Dead letters as messages: the work that could not be done, with the reason, for people to look at and replay.

Published once: the subject must be free, so that an owner that takes over finds what is there, also where somebody has
discarded it since. An execution ends after its letters are stored; a store that refuses them holds no end up for long.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from infinity_matrix_actors.errors import PayloadNotEncodable, PayloadTooLarge
from infinity_matrix_bus.codec import encode, rfc3339
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.publisher import Ack, Fate, Publisher
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.work_message import work_record

LETTER_VERSION = 1
#: After so many refusals a letter is given up: it is a convenience, and the log has the failure.
TRIES_MAX = 3
RETRY_DELAY_S = 0.5
#: In place of what was discarded.
DISCARDED = b'{"discarded":true}'
_FREE = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n\r\n"
#: How the server refuses a subject that is not free.
_NOT_FREE = "wrong last sequence"
#: What an agent needs to give an outcome; nobody may give one any more.
_SPENT = ("reply_to", "taken_to")
log = get_logger("infinity_matrix.coordinator")


class DeadLetters:
    """The dead letters of one shard on one session."""

    def __init__(self, session: Session, publisher: Publisher, subjects: Subjects) -> None:
        self._session = session
        self._publisher = publisher
        self._subjects = subjects
        #: Letters under way by execution, and what waits for them.
        self._under_way: dict[str, int] = {}
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def publish(self, execution: ExecutionActor, task: str, attempt: int) -> None:
        """Publishes the letter of a failed attempt, unless it is there; raises SessionLost."""
        agent = execution.tasks[task].node.definition.agent
        subject = self._subjects.dead(agent, execution.id, task, attempt)
        self._under_way[execution.id] = self._under_way.get(execution.id, 0) + 1
        self._send(execution.id, subject, self._payload(execution, task), 1)

    def are_under_way(self, execution: str) -> bool:
        return execution in self._under_way

    def when_sent(self, execution: str, callback: Callable[[], None]) -> None:
        """Calls back once no letter of the execution is under way; never when the session is lost first."""
        if execution in self._under_way:
            self._waiting.setdefault(execution, []).append(callback)
        else:
            callback()

    def _send(self, execution: str, subject: str, payload: bytes, tries: int) -> None:
        def on_ack(ack: Ack) -> None:
            if self._session.is_lost:
                return
            if ack.fate is Fate.STORED or ack.reason.startswith(_NOT_FREE):
                self._sent(execution)
            elif tries >= TRIES_MAX:
                log.warning("dead_letter_given_up", subject=subject, reason=ack.reason)
                self._sent(execution)
            else:
                asyncio.get_running_loop().call_later(RETRY_DELAY_S, again)

        def again() -> None:
            if not self._session.is_lost:
                self._send(execution, subject, payload, tries + 1)

        self._publisher.publish(subject, payload, on_ack, _FREE)

    def _sent(self, execution: str) -> None:
        self._under_way[execution] -= 1
        if self._under_way[execution]:
            return
        del self._under_way[execution]
        for callback in self._waiting.pop(execution, ()):
            try:
                callback()
            except SessionLost:
                return

    def _payload(self, execution: ExecutionActor, task: str) -> bytes:
        actor = execution.tasks[task]
        # Where it would be answered is left out below, so its shard does not matter.
        work = work_record(self._subjects, 0, execution, task)
        letter: dict[str, Any] = {
            "v": LETTER_VERSION,
            **{key: work[key] for key in ("execution", "workflow", "task", "attempt", "agent")},
            "error": actor.error.record() if actor.error is not None else None,
            "undoes": execution.is_undoing(task),
            "queued_at": _time(actor.dispatched_at),
            "taken_at": _time(actor.taken_at),
            "failed_at": _time(actor.completed_at),
        }
        try:
            payload = encode({**letter, "work": {key: work[key] for key in work if key not in _SPENT}})
            if len(payload) <= self._session.max_payload_bytes - len(_FREE):
                return payload
        except (PayloadTooLarge, PayloadNotEncodable) as error:
            log.debug("dead_letter_without_work", execution=execution.id, task=task, reason=str(error))
        return encode(letter)


def _time(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)
