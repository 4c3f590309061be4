"""Worn works: what is given out again and again because no agent lives to give an outcome, with or without the SDK.

Agents of the SDK count for themselves; a plain agent that dies cannot. Only a delivery says how often a work was
delivered, so where works come again, this takes one delivery itself now and then, reads its count, and hands it back.
What was handed back by anybody does not count: the server tells of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_bus.api import API_PREFIX, JetStreamApi
from infinity_matrix_bus.codec import Undecodable, decode_record
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.log_reader import parse_ack_reply
from infinity_matrix_bus.puller import Puller
from infinity_matrix_bus.session import Session, SessionLost, Subscription
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.clock import StreamClock

#: Leases that ran out under an agent, after which the work itself is what kills agents.
DEATHS_MAX = 5
#: Works of which it is remembered how often they were handed back; forgetting one only finds poison later.
REMEMBERED_MAX = 100_000
NAKED = "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED"
#: How often an attempt was begun again, by the marks of an SDK agent; None when that cannot be read.
Marks = Callable[[Attempt], Awaitable[int | None]]
log = get_logger("infinity_matrix.coordinator")


class WornWorks:
    """Finds the works of one shard that kill agents, on one session; calls `condemn` for each."""

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        clock: StreamClock,
        marks: Marks,
        condemn: Callable[[Attempt, TaskError], None],
    ) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._subjects = subjects
        self._clock = clock
        self._marks = marks
        self._condemn = condemn
        #: By place in the work stream: how often it was handed back, and its first delivery that is counted.
        self._handed_back: OrderedDict[int, int] = OrderedDict()
        self._first: OrderedDict[int, int] = OrderedDict()
        self._listening: Subscription | None = None
        self._listening_since = 0.0
        self._looking: dict[str, asyncio.Task[None]] = {}

    async def look(self, suspects: Mapping[str, Mapping[Attempt, float]], for_s: float) -> None:
        """Looks for `for_s` where works come again, at agents of open attempts, given with when each was dispatched.

        Returns at once; raises JetStreamError, RequestTimeout, SessionLost.
        """
        if self._listening is None:
            subject = f"{NAKED}.{self._subjects.work_stream}.*"
            self._listening = await self._session.subscribe(subject, self._hear)
            self._listening_since = self._clock.now()
        for agent, attempts in suspects.items():
            if agent in self._looking:
                continue
            info = await self._api.consumer_info(self._subjects.work_stream, agent)
            if info is None or not info.get("num_redelivered"):
                continue
            worn_before = self._clock.now() - DEATHS_MAX * int(info["config"].get("ack_wait", 0)) / 1e9
            old = {attempt for attempt, dispatched_at in attempts.items() if dispatched_at < worn_before}
            if old:
                task = asyncio.create_task(self._look_at(agent, old, for_s), name=f"worn-{agent}")
                self._looking[agent] = task
                task.add_done_callback(lambda _, agent=agent: self._looking.pop(agent, None))  # type: ignore[misc]

    async def close(self) -> None:
        tasks = list(self._looking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listening is not None:
            await self._listening.close()

    async def _look_at(self, agent: str, suspects: set[Attempt], for_s: float) -> None:
        """Waits for one delivery, as an agent would; the server gives what comes again before what is new."""
        delivery: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

        def take(subject: str, reply: str, data: bytes) -> None:
            if delivery.done():
                self._hand_back(reply)
            else:
                delivery.set_result((subject, reply))

        puller = Puller(
            self._session,
            API_PREFIX,
            self._subjects.work_stream,
            agent,
            lambda: 0 if delivery.done() else 1,
            take,
            lambda reason: log.debug("worn_not_looked_at", agent=agent, reason=reason),
        )
        try:
            await puller.open()
            try:
                async with asyncio.timeout(for_s):
                    await asyncio.shield(delivery)
            except TimeoutError:
                # What is on its way now is handed back by `take`.
                pass
            await puller.drain()
            if delivery.done():
                await self._examine(*delivery.result(), suspects)
        except InfinityMatrixError as error:
            log.debug("worn_not_looked_at", agent=agent, reason=str(error))
        finally:
            await puller.close()

    async def _examine(self, subject: str, reply: str, suspects: set[Attempt]) -> None:
        place = self._subjects.parse_work(subject)
        deliveries, sequence, _, stored_at, _ = parse_ack_reply(reply)
        attempt = place[1:] if place is not None else None
        if attempt is None or attempt not in suspects or self._deaths(deliveries, sequence, stored_at) < DEATHS_MAX:
            self._hand_back(reply)
            return
        if await self._marks(attempt) != 0:
            # An agent of the SDK has it, or it cannot be told: that agent counts better.
            self._hand_back(reply)
            return
        log.warning("work_is_poison", execution=attempt[0], task=attempt[1], deliveries=deliveries)
        message = f"given out {deliveries} times, and no agent lived to give an outcome"
        self._condemn(attempt, TaskError(ErrorType.POISON, message, retryable=False))

    def _deaths(self, deliveries: int, sequence: int, stored_at: float) -> int:
        """How many deliveries before this one ended neither with an outcome nor by being handed back."""
        first = self._first.get(sequence)
        if first is None:
            # Of what is older nobody here heard how often it was handed back: it counts from now on.
            first = self._first[sequence] = 1 if stored_at >= self._listening_since else deliveries
            _bound(self._first)
        return deliveries - first - self._handed_back.get(sequence, 0)

    def _hand_back(self, reply: str) -> None:
        try:
            self._session.publish(reply, b"-NAK")
        except SessionLost:
            log.debug("not_handed_back")

    def _hear(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        try:
            sequence = int(decode_record(data)["stream_seq"])
        except (Undecodable, KeyError, TypeError, ValueError):
            return
        self._handed_back[sequence] = self._handed_back.get(sequence, 0) + 1
        _bound(self._handed_back)


def _bound(remembered: OrderedDict[int, int]) -> None:
    if len(remembered) > REMEMBERED_MAX:
        remembered.popitem(last=False)
