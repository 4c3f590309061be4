"""Worn works: what is given out again and again because no agent lives to give an outcome, with or without the SDK.

Agents of the SDK count for themselves; a plain agent that dies cannot, and only the server knows how often a work was
delivered. It tells when asked for a limit: above `max_deliver` it gives a work to nobody and says how often it was
given out, whoever else waits for work. So where works come again, their consumer gets one. What was handed back does
not count, the server tells of that, too: the limit is higher where it happens, and what reaches it all the same, or
what nobody here can judge, begins anew.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_bus.api import JetStreamApi, JetStreamError, StoredMessage
from infinity_matrix_bus.codec import Undecodable, decode_record, parse_server_time
from infinity_matrix_bus.direct_client import ended
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session, Subscription
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.clock import StreamClock

#: Leases that ran out under an agent, after which the work itself is what kills agents.
DEATHS_MAX = 5
#: Deliveries after which the server tells. One more: given it once again, an agent of the SDK says `poison` itself.
DELIVERIES_MAX = DEATHS_MAX + 1
#: The limit is higher by how often works of that agent were handed back of late, but never by more than this: each of
#: these deliveries is a lease that poison has in the meantime.
HANDED_BACK_MAX = 14
HANDED_BACK_FOR_S = 120.0
UNLIMITED = -1
#: Works of which it is remembered how often they were handed back, and that wait to be looked at; forgetting one only
#: finds poison later, for a sweep publishes again what nobody is given any more.
REMEMBERED_MAX = 100_000
ADVISORY = "$JS.EVENT.ADVISORY.CONSUMER"
#: How often an attempt was begun again, by the marks of an SDK agent; None when that cannot be read.
Marks = Callable[[Attempt], Awaitable[int | None]]
Known = TypeVar("Known")
log = get_logger("infinity_matrix.coordinator")


@dataclass(slots=True)
class _HandedBack:
    """A work that an agent handed back, how often, and when last."""

    agent: str
    count: int = 0
    at: float = 0.0


class WornWorks:
    """Finds the works of one shard that kill agents, on one session.

    `is_own`: whether an execution is of this shard. `condemn` is called for what kills agents, `renew` for what was
    taken out of the queue and is to be published again.
    """

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        clock: StreamClock,
        is_own: Callable[[str], bool],
        marks: Marks,
        condemn: Callable[[Attempt, TaskError], None],
        renew: Callable[[Attempt], None],
    ) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._subjects = subjects
        self._stream = subjects.work_stream
        self._clock = clock
        self._is_own = is_own
        self._marks = marks
        self._condemn = condemn
        self._renew = renew
        #: By place in the work stream, in the order of when: what was handed back.
        self._handed_back: OrderedDict[int, _HandedBack] = OrderedDict()
        #: By place in the work stream: how often in all it was given out.
        self._exceeded: OrderedDict[int, int] = OrderedDict()
        #: Agents whose consumers were given a limit here.
        self._limited: set[str] = set()
        self._listening: list[Subscription] = []
        self._listening_since = 0.0
        self._examining: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Hears of what is handed back from now on, and of what nobody is given any more."""
        for kind, hear in (("MSG_NAKED", self._hear_handed_back), ("MAX_DELIVERIES", self._hear_exceeded)):
            self._listening.append(await self._session.subscribe(f"{ADVISORY}.{kind}.{self._stream}.*", hear))
        self._listening_since = self._clock.now()

    async def look(self, suspects: Mapping[str, Mapping[Attempt, float]]) -> None:
        """Limits the consumers whose works come again; `suspects` are open attempts, with when each was dispatched.

        Raises RequestTimeout, SessionLost.
        """
        handed_back = self._handed_back_of_late()
        for agent in {*suspects, *self._limited}:
            try:
                await self._look_at(agent, suspects.get(agent, {}), handed_back.get(agent, 0))
            except JetStreamError as error:
                # One consumer that the server cannot change keeps nobody from the others.
                log.warning("deliveries_not_limited", agent=agent, reason=str(error))

    async def _look_at(self, agent: str, suspects: Mapping[Attempt, float], handed_back: int) -> None:
        info = await self._api.consumer_info(self._stream, agent)
        if info is None:
            self._limited.discard(agent)
            return
        lease_s = int(info["config"].get("ack_wait", 0)) / 1e9
        limit = int(info["config"].get("max_deliver", UNLIMITED))
        is_again = bool(info.get("num_redelivered"))
        oldest = min(suspects.values(), default=self._clock.now())
        wanted = DELIVERIES_MAX + handed_back
        if 0 < limit < DELIVERIES_MAX:
            # Whoever set it: what reaches it begins anew, so nothing would ever be given out often enough to count.
            await self._limit(agent, info["config"], UNLIMITED)
        elif not is_again:
            # Nothing comes again: whoever set it, it is needed by nobody now.
            self._limited.discard(agent)
            if limit <= DELIVERIES_MAX + HANDED_BACK_MAX and limit != UNLIMITED:
                await self._limit(agent, info["config"], UNLIMITED)
        elif limit < wanted and oldest < self._clock.now() - lease_s:
            # Only ever higher: another owner may have heard more.
            self._limited.add(agent)
            await self._limit(agent, info["config"], wanted)

    async def close(self) -> None:
        if self._examining is not None:
            await ended(self._examining)
        for subscription in self._listening:
            await subscription.close()

    async def _limit(self, agent: str, config: Mapping[str, Any], deliveries: int) -> None:
        """Sets how often a consumer gives a work out, and leaves the rest of it as it is."""
        log.debug("deliveries_limited", agent=agent, deliveries=deliveries)
        await self._api.create_consumer(self._stream, agent, {**config, "max_deliver": deliveries})

    def _hear_handed_back(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        told = _told(data, "stream_seq")
        if told is None:
            return
        known = self._handed_back.get(told[0])
        if known is None:
            known = self._handed_back[told[0]] = _HandedBack(subject.rpartition(".")[2])
            _bound(self._handed_back)
        known.count += 1
        known.at = self._clock.now()
        self._handed_back.move_to_end(told[0])

    def _hear_exceeded(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        told = _told(data, "stream_seq", "deliveries")
        if told is None:
            return
        self._exceeded[told[0]] = told[1]
        _bound(self._exceeded)
        if self._examining is None or self._examining.done():
            self._examining = asyncio.create_task(self._examine_all(), name="worn")

    def _handed_back_of_late(self) -> dict[str, int]:
        """By agent how often one of its works was handed back, the one that was most often."""
        most: dict[str, int] = {}
        since = self._clock.now() - HANDED_BACK_FOR_S
        for one in reversed(self._handed_back.values()):
            if one.at < since:
                break
            most[one.agent] = max(most.get(one.agent, 0), min(one.count, HANDED_BACK_MAX))
        return most

    async def _examine_all(self) -> None:
        while self._exceeded:
            sequence, deliveries = self._exceeded.popitem(last=False)
            try:
                stored = await self._api.message(self._stream, sequence)
                if stored is not None:
                    await self._examine(stored, deliveries)
            except InfinityMatrixError as error:
                # The sweep finds that nobody is given it any more.
                log.debug("worn_not_looked_at", sequence=sequence, reason=str(error))

    async def _examine(self, stored: StoredMessage, deliveries: int) -> None:
        """Of a work that nobody is given any more: is it poison, or has it only been handed back?"""
        place = self._subjects.parse_work(stored.subject)
        if place is None or not self._is_own(place[1]):
            return
        attempt = place[1:]
        # Of what is older nobody here heard how often it was handed back.
        is_known = parse_server_time(stored.at) >= self._listening_since
        handed_back = self._handed_back.pop(stored.sequence, None)
        deaths = deliveries - (0 if handed_back is None else handed_back.count)
        # Nobody marks what plain agents begin; what agents of the SDK began again as often is poison to them, too.
        marks = await self._marks(attempt) if is_known and deaths >= DEATHS_MAX else None
        if marks is not None and (marks == 0 or marks >= DEATHS_MAX - 1):
            log.warning("work_is_poison", execution=attempt[0], task=attempt[1], deliveries=deliveries)
            message = f"given out {deliveries} times, and no agent lived to give an outcome"
            self._condemn(attempt, TaskError(ErrorType.POISON, message, retryable=False))
        else:
            await self._api.delete_message(self._stream, stored.sequence)
            self._renew(attempt)


def _told(data: bytes, *keys: str) -> tuple[int, ...] | None:
    """These numbers of what the server told; None where it lacks one."""
    try:
        record = decode_record(data)
        return tuple(int(record[key]) for key in keys)
    except (Undecodable, KeyError, TypeError, ValueError):
        return None


def _bound(remembered: OrderedDict[int, Known]) -> None:
    if len(remembered) > REMEMBERED_MAX:
        remembered.popitem(last=False)
