"""What an agent may believe of the work it is given, and how it asks the log when it cannot know.

A server that was killed forgets acks, a consumer that was made again counts anew, a process that slept reads what is
long over: work that comes for the first time by its count may yet be done.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infinity_matrix_bus.codec import Undecodable, decode_record, encode, parse_server_time
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import NoResponders, RequestTimeout, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_agents.delivery import Delivery
from infinity_matrix_agents.stream_time import StreamTime

ASK_TIMEOUT_S = 5.0
ASK_AGAIN_S = 0.5
#: "Still to be done" is trusted for this long after the question.
ANSWER_AGE_MAX_S = 0.05
#: A process that did not run for this long may find work in its socket that is another's by now, though its lease is
#: not over: a consumer that was deleted meanwhile and made again has given it out anew. Many ticks of the runner.
AWAY_S = 0.5
log = get_logger("infinity_matrix.agents")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a coordinator says of an attempt."""

    #: It has its outcome.
    is_settled: bool
    #: How often it was begun after its first delivery and not handed back; None when that was not asked, or not told.
    begun: int | None = None


class Doubt:
    """Says which deliveries may be done already, and asks whether they are."""

    def __init__(self, connection: Connection, subjects: Subjects, time: StreamTime) -> None:
        self._connection = connection
        self._subjects = subjects
        self._time = time
        #: What was stored before this is asked about before it is run (stream time).
        self._trusted_from = 0.0
        self._consumer_sequence = 0
        self._unwatched_until: float | None = None
        self._away_s = AWAY_S
        self._loop = asyncio.get_running_loop()
        self._ticked_at = self._loop.time()

    def know(self, info: dict[str, Any], lease_interval_s: float) -> None:
        """Takes in what the server says of the consumer now: nothing that was stored before is trusted."""
        self._time.know(parse_server_time(info["ts"]))
        self._trusted_from = self._time.now()
        self._consumer_sequence = 0
        self._away_s = min(AWAY_S, lease_interval_s)

    def tick(self) -> None:
        """Called often, so that a process notices that it slept."""
        if self._loop.time() - self._ticked_at > self._away_s:
            self._trusted_from = self._time.now()
        self._ticked_at = self._loop.time()

    def see(self, delivery: Delivery, unwatched_until: float | None) -> None:
        """Notices what this process cannot see otherwise: that it slept, or that its consumer was made again.

        `unwatched_until` is when (loop time) it last began to pull again after a while without: a consumer that was
        made again in between counts anew, and by then perhaps above what this process saw of the one before.
        """
        now = self._loop.time()
        if unwatched_until is not None and unwatched_until != self._unwatched_until:
            self._unwatched_until = unwatched_until
            self._trusted_from = max(self._trusted_from, self._time.now() - (now - unwatched_until))
        if now - self._ticked_at > self._away_s or delivery.consumer_sequence <= self._consumer_sequence:
            self._trusted_from = self._time.now()
        self._consumer_sequence = delivery.consumer_sequence

    def is_about(self, delivery: Delivery) -> bool:
        """Whether the log must be asked before this is run, which it may then be at once."""
        # It may have been read before this process stood still, and nothing else may have run since.
        self.tick()
        return delivery.is_doubtful(self._trusted_from, self._time.now())

    async def ask(self, delivery: Delivery, is_wanted: Callable[[], bool]) -> Answer | None:
        """Asks whether the attempt has its outcome in the log, until there is an answer; None when no longer wanted.

        Without one the work stays in hand: each time it is handed back it is delivered once more, and after a few
        minutes without a coordinator it would pass for poison.
        """
        age_max_s = ANSWER_AGE_MAX_S
        while is_wanted():
            asked_at = self._loop.time()
            answer = await self.ask_once(delivery)
            if answer is None:
                await asyncio.sleep(ASK_AGAIN_S)
            elif answer.is_settled or self._loop.time() - asked_at <= age_max_s:
                return answer
            else:
                # Whoever answered may have looked long before: the outcome can be there by now. Ask again, and be
                # content with less where everything is slow.
                age_max_s *= 2
        return None

    async def ask_once(self, delivery: Delivery) -> Answer | None:
        """One question; None when nobody can say."""
        record = delivery.record
        question = {key: record[key] for key in ("execution", "task", "attempt", "agent")}
        if delivery.is_worn:
            # With it the coordinator counts the marks of this attempt, which stand under its workflow's name.
            question["workflow"] = record["workflow"]
        try:
            session = self._connection.session
            reply = await session.request(self._subjects.api("attempt"), encode(question), ASK_TIMEOUT_S)
            answer = decode_record(reply)["ok"]
            begun = answer.get("begun")
            return Answer(bool(answer["settled"]), begun if isinstance(begun, int) else None)
        except (NoResponders, RequestTimeout, SessionLost, Undecodable, KeyError, TypeError, AttributeError) as error:
            log.info("attempt_not_answered", execution=record["execution"], task=record["task"], reason=str(error))
            return None
