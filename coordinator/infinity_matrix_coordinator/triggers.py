"""Triggers: an event on `im.trigger.<event>` starts an execution of every workflow that is armed for it.

All coordinators share one durable consumer. The execution's id follows from (workflow, event subject, the event's place
in its stream), so an event delivered twice starts nothing twice.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.condition import ConditionError, Filter, compile_filter
from infinity_matrix_actors.errors import InfinityMatrixError, InvalidDefinition, LogFull, PayloadTooLarge
from infinity_matrix_actors.fact import Started
from infinity_matrix_bus.api import API_PREFIX
from infinity_matrix_bus.codec import Undecodable, decode
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.facts import started_payload
from infinity_matrix_bus.fill import Fills
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.log_reader import parse_ack_reply
from infinity_matrix_bus.publisher import Outbox
from infinity_matrix_bus.puller import Puller
from infinity_matrix_bus.session import Session, Subscription
from infinity_matrix_bus.subjects import Subjects, shard_of

from infinity_matrix_coordinator.trigger_consumer import CONSUMER, IN_FLIGHT_MAX, TriggerConsumer

ARMED_REFRESH_S = 5.0
REFRESH_RETRY_S = 1.0
#: A deployment is heard of before it is stored, by so much at the most.
STORED_S = 2.0
#: How often it is noted how far the events have been handled.
NOTE_INTERVAL_S = 5.0
#: A consumer that is gone is made again after so long on average, by one coordinator before the others: the server
#: may still be deleting it.
REOPEN_DELAY_S = 0.3
#: After which an event is tried again that found its log nearly full.
FULL_RETRY_S = 5.0
#: Definitions whose triggers are kept compiled.
COMPILED_MAX = 10_000
_NANOSECONDS = 1_000_000_000
log = get_logger("infinity_matrix.coordinator")


@dataclass(frozen=True, slots=True)
class Armed:
    """One trigger of one deployed workflow."""

    workflow: str
    definition: str
    event: tuple[str, ...]
    filter: Filter | None


def matches(pattern: tuple[str, ...], event: tuple[str, ...]) -> bool:
    """Whether an event's tokens match a trigger's, by the rules of NATS subjects."""
    for index, token in enumerate(pattern):
        if token == ">":
            return len(event) > index
        if index >= len(event) or (token != "*" and token != event[index]):
            return False
    return len(pattern) == len(event)


class Triggers:
    """Starts executions for events, on one session."""

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        shards: int,
        outbox: Outbox,
        prepare: Callable[[str], Awaitable[Any]],
    ) -> None:
        #: Called with the hash of every deployed definition: its agents find their consumers before its first start.
        self._prepare = prepare
        self._prepared: set[str] = set()
        self._session = session
        self._subjects = subjects
        self._shards = shards
        self._outbox = outbox
        self._store = DefinitionStore(session, subjects)
        self._consumer = TriggerConsumer(session, subjects)
        self._armed: list[Armed] = []
        self._compiled: dict[str, list[Armed]] = {}
        self._in_flight = 0
        self._broken = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        #: When a deployment was last heard of, and when the reading of what is armed began, by the loop's clock.
        self._heard_at = self._armed_at = float("-inf")
        self._refreshing = asyncio.Lock()
        self._puller: Puller | None = None
        self._fills = Fills(self._session_of_now)
        self._queue: asyncio.Queue[tuple[str, str, bytes, float]] = asyncio.Queue()

    async def _session_of_now(self) -> Session:
        return self._session

    async def run(self) -> None:
        """Serves events until cancelled."""
        changes = await self._watch()
        try:
            await self.refresh()
        except BaseException:
            await changes.close()
            raise
        tasks = [
            asyncio.create_task(work, name=f"triggers-{name}")
            for name, work in (("work", self._work()), ("refresh", self._refresh_often()), ("note", self._note_often()))
        ]
        try:
            while not self._session.is_lost:
                self._broken.clear()
                self._puller = await self._open()
                broken = asyncio.create_task(self._broken.wait())
                try:
                    await asyncio.wait([broken, *tasks], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    broken.cancel()
                await self._puller.close()
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(REOPEN_DELAY_S * random.uniform(0.5, 1.5))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._fills.close()
            await changes.close()

    async def refresh(self) -> None:
        """Reads which triggers are armed."""
        async with self._refreshing:
            began_at = self._loop.time()
            armed: list[Armed] = []
            for deployment in await self._store.deployments():
                if deployment.is_armed and not deployment.is_paused:
                    armed.extend(await self._triggers_of(deployment.workflow, deployment.definition))
            self._armed = armed
            self._armed_at = began_at

    async def _prepare_deployed(self) -> None:
        for deployment in await self._store.deployments():
            if deployment.definition not in self._prepared:
                await self._prepare(deployment.definition)
                self._prepared.add(deployment.definition)

    async def _triggers_of(self, workflow: str, digest: str) -> list[Armed]:
        compiled = self._compiled.get(digest)
        if compiled is not None:
            return compiled
        try:
            definition = await self._store.load(digest)
            if definition is None:
                return []
            compiled = [
                Armed(
                    definition.name,
                    digest,
                    tuple(trigger.event.split(".")),
                    compile_filter(trigger.filter, definition.name) if trigger.filter else None,
                )
                for trigger in definition.triggers
            ]
        except (InvalidDefinition, ValueError, KeyError, TypeError) as error:
            # One that cannot be read must not disarm the others.
            log.error("triggers_unreadable", workflow=workflow, definition=digest, reason=str(error))
            return []
        self._compiled[digest] = compiled
        if len(self._compiled) > COMPILED_MAX:
            self._compiled.pop(next(iter(self._compiled)))
        return compiled

    async def _watch(self) -> Subscription:
        """Hears of every deployment at once: what is deployed is armed when `deploy` returns, or moments later."""
        subject = f"$KV.{self._subjects.bucket('definitions')}.name.*"
        return await self._session.subscribe(subject, self._hear)

    def _hear(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        self._heard_at = self._loop.time()
        self._changed.set()

    async def _refresh_often(self) -> None:
        while True:
            try:
                await self._prepare_deployed()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ARMED_REFRESH_S):
                        await self._changed.wait()
                self._changed.clear()
                await self.refresh()
            except InfinityMatrixError as error:
                log.info("triggers_not_refreshed", reason=str(error))
                await asyncio.sleep(REFRESH_RETRY_S)

    async def _note_often(self) -> None:
        while True:
            await asyncio.sleep(NOTE_INTERVAL_S)
            try:
                await self._consumer.note()
            except InfinityMatrixError as error:
                log.debug("events_not_noted", reason=str(error))

    async def _open(self) -> Puller:
        await self._consumer.ensure()
        return await Puller(
            self._session,
            API_PREFIX,
            self._subjects.triggers_stream,
            CONSUMER,
            lambda: IN_FLIGHT_MAX - self._in_flight,
            self._take,
            lambda reason: self._broken.set(),
        ).open()

    def _take(self, subject: str, reply: str, data: bytes) -> None:
        self._in_flight += 1
        self._queue.put_nowait((subject, reply, data, self._loop.time()))

    async def _work(self) -> None:
        while True:
            subject, reply, data, taken_at = await self._queue.get()
            try:
                await self._start(subject, reply, data, taken_at)
            except PayloadTooLarge as error:
                # It fits an event and not a `started`: it never will.
                log.error("event_too_large", subject=subject, reason=str(error))
                self._session.publish(reply, b"+TERM")
            except LogFull as error:
                # The event waits where it is, and is tried again until there is room.
                log.warning("trigger_waits_for_room", subject=subject, reason=str(error))
                self._session.publish(reply, b'-NAK {"delay": %d}' % int(FULL_RETRY_S * _NANOSECONDS))
            except InfinityMatrixError as error:
                log.warning("trigger_postponed", subject=subject, reason=str(error))
            finally:
                self._in_flight -= 1
                if self._puller is not None:
                    self._puller.pull()

    async def _start(self, subject: str, reply: str, data: bytes, taken_at: float) -> None:
        event_name = subject[len(self._subjects.trigger("")) :]
        try:
            event = decode(data)
        except Undecodable as error:
            log.warning("event_unreadable", subject=subject, reason=str(error))
            self._session.publish(reply, b"+TERM")
            return
        # What was deployed before the event was published is in what is read after the event came.
        while self._armed_at < min(taken_at, self._heard_at + STORED_S):
            await self.refresh()
        sequence = str(parse_ack_reply(reply)[1])
        for armed in self._armed:
            if not matches(armed.event, tuple(event_name.split("."))) or not self._passes(armed, event):
                continue
            execution = self._subjects.derived_id("trigger", armed.workflow, subject, sequence)
            fact = Started(
                execution, 0.0, armed.workflow, armed.definition, event, {"trigger": event_name, "sequence": sequence}
            )
            shard = shard_of(execution, self._shards)
            await self._fills.check(self._subjects.facts_stream(shard))
            await self._outbox.publish(self._subjects.started(shard, execution), started_payload(fact), 20.0)
        self._session.publish(reply, b"+ACK")

    def _passes(self, armed: Armed, event: object) -> bool:
        if armed.filter is None:
            return True
        try:
            return armed.filter.evaluate(event)
        except ConditionError as error:
            # A filter is not a task: nothing is running yet that could fail. The event does not match.
            log.warning("filter_failed", workflow=armed.workflow, reason=str(error))
            return False
