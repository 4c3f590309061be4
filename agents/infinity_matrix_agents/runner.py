"""Serves one agent: pulls work, runs the handler, publishes the outcome until it is confirmed, and only then acks.

A worker is a task that lives on; a message makes none. One ticker extends the leases of all works held, and says
`taken` for those that last longer than 100 ms. An agent with a rate asks for no more works than it may begin now.
"""

import asyncio
import contextvars
import os
import secrets
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nats.micro
from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import API_PREFIX, STREAM_NOT_FOUND, JetStreamApi, JetStreamError
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import read_installation
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.publisher import Ack, Fate, Outbox
from infinity_matrix_bus.puller import Puller
from infinity_matrix_bus.session import RequestTimeout, Session, SessionLost
from infinity_matrix_bus.streams import ACK_WAIT_S, agent_consumer
from infinity_matrix_bus.subjects import Subjects
from nats.errors import Error as NatsError
from nats.micro.service import Service, ServiceConfig

from infinity_matrix_agents import outcomes
from infinity_matrix_agents.agent import Agent
from infinity_matrix_agents.begins import Begins
from infinity_matrix_agents.calling import called
from infinity_matrix_agents.cancels import Cancels
from infinity_matrix_agents.delivery import Delivery, UnreadableWork
from infinity_matrix_agents.doubt import Doubt
from infinity_matrix_agents.missed_orders import MissedOrders
from infinity_matrix_agents.payloads import Payloads
from infinity_matrix_agents.rate import TokenBucket
from infinity_matrix_agents.reports import Reports
from infinity_matrix_agents.stream_time import StreamTime
from infinity_matrix_agents.work import Work

TAKEN_AFTER_S = 0.1
TICK_S = 0.05
#: With nothing in hand. What begins meanwhile says no later that it was taken, as this is no longer than that takes.
IDLE_TICK_S = 0.1
LEASE_INTERVAL_S = ACK_WAIT_S / 3
CONSUMER_RETRY_S = 0.5
DRAIN_TIMEOUT_S = 10.0
#: Works are asked for again at this interval at most, when their rate is high.
PACE_MIN_S = 0.005
#: Work of a version that is not served is passed on with a delay, doubled by every delivery.
PASS_ON_DELAY_MIN_S = 0.1
PASS_ON_DELAY_MAX_S = 30.0
SERVICE_VERSION = "1.0.0"
log = get_logger("infinity_matrix.agents")


class AgentRunner:
    """Serves `agent` on `connection`. `open` begins, `close` takes no more, finishes, and hands the rest back."""

    def __init__(self, agent: Agent, connection: Connection, prefix: str = "im") -> None:
        if agent.function is None:
            raise InfinityMatrixError(f"agent {agent.name!r} has no handler; decorate one with @agent.handler")
        self.agent = agent
        self.instance = f"{outcomes.HOST}-{os.getpid()}-{secrets.token_hex(2)}"
        self._connection = connection
        self._subjects = Subjects(prefix)
        self._outbox = Outbox(connection)
        self._puller: Puller | None = None
        self._reopened_at = -CONSUMER_RETRY_S
        self._service: Service | None = None
        self._held: dict[Delivery, None] = {}
        #: Every attempt from its delivery until its outcome is confirmed.
        self._attempts: dict[tuple[str, str, int], Delivery] = {}
        self._lease_interval_s = LEASE_INTERVAL_S
        self._queue: deque[Delivery] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._time = StreamTime()
        self._doubt = Doubt(connection, self._subjects, self._time)
        self._payloads = Payloads(connection, self._subjects)
        self._cancels = Cancels(
            self._subjects, self._time, self._held, self._drop, agent.is_async, not agent.keeps_grace
        )
        self._missed = MissedOrders(self._doubt, self._time, self._held, self._cancels.cancel)
        self._reports = Reports(connection, self._subjects, self._time, self._outbox, self.instance)
        self._begins = Begins(connection, self._subjects, self._time, self.instance)
        self._threads: ThreadPoolExecutor | None = None
        self._is_draining = False
        self._all_done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._bucket = None if agent.rate_per_s is None else TokenBucket(agent.rate_per_s, self._loop.time)
        self._pace: asyncio.TimerHandle | None = None

    async def open(self) -> "AgentRunner":
        """Begins to take work. The consumer is made if it is not there; raises NotInstalled, SessionLost."""
        try:
            await self._until_installed()
            await self._connection.add_listener(self._outbox.on_session)
            await self._connection.add_listener(self._on_session)
        except InfinityMatrixError:
            await self.close(0.0)
            raise
        self._spawn(self._tick())
        return self

    async def _until_installed(self) -> None:
        """Waits for the stream of works where it was lost: coordinators make it again. Raises NotInstalled."""
        stream = self._subjects.work_stream
        while True:
            try:
                # The agent's own consumer: that is all it need be allowed to ask about.
                await JetStreamApi(self._connection.session).consumer_info(stream, self.agent.name)
                return
            except JetStreamError as error:
                if error.code != STREAM_NOT_FOUND:
                    raise
            await read_installation(self._connection.session, self._subjects.prefix)
            log.warning("work_stream_missing", stream=stream)
            await asyncio.sleep(CONSUMER_RETRY_S)

    async def close(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Takes no more, lets what runs finish for `timeout_s`, hands the rest back at once."""
        self._is_draining = True
        if self._pace is not None:
            self._pace.cancel()
        if self._puller is not None:
            # First, or what is handed back would come back here.
            await self._puller.drain()
        for delivery in list(self._queue):
            self._hand_back(delivery)
        self._queue.clear()
        if self._held and timeout_s > 0:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._all_done.wait()
            except TimeoutError:
                log.info("handed_back", agent=self.agent.name, works=len(self._held))
        for delivery in list(self._held):
            self._hand_back(delivery)
        for task in [*self._workers, *self._tasks]:
            task.cancel()
        await asyncio.gather(*self._workers, *self._tasks, return_exceptions=True)
        await self._outbox.drained(timeout_s if timeout_s > 0 else 1.0)
        self._connection.remove_listener(self._on_session)
        self._connection.remove_listener(self._outbox.on_session)
        self._outbox.close()
        if self._puller is not None:
            await self._puller.close()
        if self._service is not None and self._connection.is_connected:
            await _quietly(self._service.stop())
        if self._connection.is_connected:
            await _quietly(self._connection.session.flushed())
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def running(self) -> int:
        """Works in hand."""
        return len(self._held)

    # The session.

    async def _on_session(self, session: Session) -> None:
        await session.subscribe(self._subjects.all_cancels, self._cancels.on_order)
        self._missed.on_session()
        self._reports.on_session(session)
        await self._open_puller(session)
        await self._announce(session)

    async def _open_puller(self, session: Session) -> None:
        api = JetStreamApi(session)
        stream = self._subjects.work_stream
        info = await api.consumer_info(stream, self.agent.name)
        if info is None:
            config = agent_consumer(self._subjects, self.agent.name)
            info = await api.create_consumer(stream, self.agent.name, config)
        self._learn(info)
        self._puller = await Puller(
            session, API_PREFIX, stream, self.agent.name, self._capacity, self._take, self._on_broken
        ).open()

    def _learn(self, info: dict[str, Any]) -> None:
        """Takes in what the server says of the consumer now: the time, and how long a lease is."""
        ack_wait_s = int(info["config"].get("ack_wait", 0)) / 1e9 or ACK_WAIT_S
        self._lease_interval_s = min(LEASE_INTERVAL_S, ack_wait_s / 3)
        self._doubt.know(info, self._lease_interval_s)

    def _on_broken(self, reason: str) -> None:
        log.warning("consumer_broken", agent=self.agent.name, reason=reason)
        self._spawn(self._reopen())

    async def _reopen(self) -> None:
        # One that breaks again at once, as in a cluster that elects a leader, is not opened again at once.
        pause_s = self._reopened_at + CONSUMER_RETRY_S - asyncio.get_running_loop().time()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        while self._connection.is_connected and not self._is_draining:
            try:
                if self._puller is not None:
                    await self._puller.close()
                await self._open_puller(self._connection.session)
                self._reopened_at = asyncio.get_running_loop().time()
                return
            except (JetStreamError, RequestTimeout) as error:
                log.warning("consumer_not_opened", agent=self.agent.name, reason=str(error))
                await asyncio.sleep(CONSUMER_RETRY_S)
            except SessionLost:
                return

    async def _announce(self, session: Session) -> None:
        """Makes the agent visible to `nats micro ls` and `imx agents`."""
        agent = self.agent
        metadata = {
            "kind": "im-agent",
            "concurrency": str(agent.concurrency),
            "instance": self.instance,
            "prefix": self._subjects.prefix,
        }
        if agent.rate is not None:
            metadata["rate"] = str(agent.rate)
        if agent.versions is not None:
            metadata["versions"] = ", ".join(agent.versions)
        config = ServiceConfig(
            name=agent.name,
            version=SERVICE_VERSION,
            description="Infinity Matrix agent",
            metadata=metadata,
        )
        try:
            self._service = await nats.micro.add_service(session.client, config)
        except NatsError as error:
            log.debug("not_announced", agent=self.agent.name, reason=str(error))

    # Taking work.

    def _capacity(self) -> int:
        if self._is_draining:
            return 0
        free = self.agent.concurrency - len(self._held)
        if self._bucket is None or free <= 0:
            return free
        # What has no token is not asked for: it stays in the queue, where other processes of the agent find it.
        allowed = self._bucket.available
        if allowed < free and self._pace is None and (next_in_s := self._bucket.next_in_s()) is not None:
            self._pace = self._loop.call_later(max(PACE_MIN_S, next_in_s), self._on_pace)
        return min(free, allowed)

    def _on_pace(self) -> None:
        self._pace = None
        if self._puller is not None:
            self._puller.pull()

    def _take(self, subject: str, ack_reply: str, data: bytes) -> None:
        try:
            delivery = Delivery.read(ack_reply, data)
        except UnreadableWork as error:
            log.error("unreadable_work", subject=subject, reason=str(error))
            self._reply(ack_reply, b"+TERM unreadable")
            return
        self._time.learn(delivery.stored_at)
        if self._is_draining:
            self._reply(ack_reply, b"-NAK")
            return
        if self._is_in_hand(delivery):
            return
        self._doubt.see(delivery, self._puller.unwatched_until if self._puller is not None else None)
        if not self._serves(delivery):
            delay_s = min(PASS_ON_DELAY_MAX_S, PASS_ON_DELAY_MIN_S * 2.0 ** min(delivery.deliveries - 1, 30))
            self._reply(ack_reply, b'-NAK {"delay": %d}' % int(delay_s * 1e9))
            return
        if self._bucket is not None:
            self._bucket.take()
        self._attempts[delivery.attempt_key] = delivery
        self._held[delivery] = None
        self._queue.append(delivery)
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        if len(self._workers) < self.agent.concurrency:
            self._workers.append(asyncio.create_task(self._work(), name=f"{self.agent.name}-worker"))

    def _serves(self, delivery: Delivery) -> bool:
        """Whether this work is of a version that this agent serves."""
        version = delivery.record.get("version")
        return self.agent.versions is None or version is None or version in self.agent.versions

    def _is_in_hand(self, delivery: Delivery) -> bool:
        """Whether this is work in hand, delivered again: then its newest lease counts, and it is not run twice."""
        known = self._attempts.get(delivery.attempt_key)
        if known is None:
            return False
        known.ack_reply = delivery.ack_reply
        if self._puller is not None:
            self._puller.pull()
        return True

    async def _work(self) -> None:
        """A worker: one work after another."""
        while True:
            while not self._queue:
                waiter: asyncio.Future[None] = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
            delivery = self._queue.popleft()
            if self._doubt.is_about(delivery):
                if await self._is_open(delivery):
                    await self._begins.mark(delivery)
                    if delivery in self._held:
                        await self._run(delivery)
            elif (reason := self._cancels.stop_of(delivery)) is not None:
                # Nobody has begun it: that is certain only of work that is not in doubt.
                self._finish(delivery, outcomes.cancelled(reason, None, self.instance))
            else:
                await self._run(delivery)

    async def _is_open(self, delivery: Delivery) -> bool:
        """Whether the attempt is to be done and still in hand; what is settled is acked, what kills agents is ended."""
        answer = await self._doubt.ask(delivery, lambda: delivery in self._held and not self._is_draining)
        if answer is None:
            if delivery in self._held:
                self._hand_back(delivery)
        elif answer.is_settled:
            self._reply(delivery.ack_reply, b"+ACK")
            self._release(delivery)
        elif answer.begun is not None and delivery.is_poisonous(answer.begun):
            # Without the count it is run: what was passed on from version to version is not to be condemned unread.
            self._finish(delivery, outcomes.poison(delivery.deliveries, answer.begun, self.instance))
        else:
            return delivery in self._held
        return False

    async def _run(self, delivery: Delivery) -> None:
        work = delivery.work = self._work_of(delivery)
        delivery.started_at = started_at = self._time.now()
        delivery.task = asyncio.current_task()
        function = self.agent.function
        assert function is not None
        try:
            if delivery.is_cancelled:
                payload = self._cancelled(delivery, None)
            else:
                if delivery.may_have_references:
                    await self._payloads.resolve(work)
                result = await (function(work) if self.agent.is_async else self._in_thread(work))
                # It is done: a cancel that comes while a large result is stored comes too late.
                delivery.is_completed, delivery.task = True, None
                payload = await self._payloads.completed(result, started_at, self.instance)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None
            if not task.cancelling():
                # Nobody cancelled the worker: the handler waited for something that was cancelled.
                payload = self._failed(delivery, error)
            elif delivery.is_cancelled and delivery in self._held:
                task.uncancel()
                payload = self._cancelled(delivery, started_at)
            else:
                raise
        except Exception as error:
            work.log.exception("failed", error=type(error).__name__)
            payload = self._failed(delivery, error)
        finally:
            delivery.task = None
        self._finish(delivery, payload)

    async def _in_thread(self, work: Work) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.agent.concurrency, thread_name_prefix=self.agent.name)
        function = self.agent.function
        assert function is not None
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(self._threads, lambda: context.run(called, function, work))

    def _work_of(self, delivery: Delivery) -> Work:
        return Work(delivery.record, self._reports.log_of, self._reports.progress)

    # Giving outcomes and replies.

    def _finish(self, delivery: Delivery, payload: bytes) -> None:
        """Publishes the outcome until it is confirmed, then acks. "Already there" is success: someone was first."""
        if delivery not in self._held:
            return

        def confirmed(ack: Ack) -> None:
            if not ack.is_there:
                # This server takes less than others do: that is the outcome then, and it is small.
                self._outbox.post(delivery.record["reply_to"], outcomes.refused(ack.reason, self.instance), acknowledge)
            else:
                acknowledge(ack)

        def acknowledge(ack: Ack) -> None:
            self._attempts.pop(delivery.attempt_key, None)
            self._reply(delivery.ack_reply, b"+ACK")
            if ack.fate is Fate.TAKEN and delivery.is_cancelled:
                self._reports.released(delivery)

        delivery.is_settled = True
        self._release(delivery)
        self._outbox.post(delivery.record["reply_to"], payload, confirmed)

    def _failed(self, delivery: Delivery, error: BaseException) -> bytes:
        assert delivery.started_at is not None
        return outcomes.failed(error, delivery.started_at, self.instance, is_repeated=delivery.is_repeated)

    def _cancelled(self, delivery: Delivery, started_at: float | None) -> bytes:
        # That it was not begun here says nothing of others, where they may have been given it.
        is_repeated = delivery.is_repeated or (started_at is None and self._doubt.is_about(delivery))
        return outcomes.cancelled(delivery.cancel_reason, started_at, self.instance, is_repeated=is_repeated)

    def _release(self, delivery: Delivery) -> None:
        self._held.pop(delivery, None)
        delivery.is_released = True
        if delivery.work is not None:
            delivery.work.has_ended = True
            self._reports.end(delivery.work)
        if not delivery.is_settled:
            self._attempts.pop(delivery.attempt_key, None)
        if self._is_draining and not self._held:
            self._all_done.set()
        elif self._puller is not None and not self._outbox.is_full:
            self._puller.pull()

    def _hand_back(self, delivery: Delivery) -> None:
        self._begins.unmark(delivery)
        self._reply(delivery.ack_reply, b"-NAK")
        self._release(delivery)

    def _reply(self, ack_reply: str, body: bytes) -> None:
        """Acks are best effort: one that is lost brings the work again, and the log is asked then."""
        try:
            self._connection.session.publish(ack_reply, body)
        except SessionLost:
            log.debug("ack_lost", agent=self.agent.name)

    # Cancelling, leases, `taken`.

    def _drop(self, delivery: Delivery, reason: str) -> bool:
        """Ends a cancelled work that nobody has begun; false when it was begun."""
        if delivery not in self._queue:
            return False
        self._queue.remove(delivery)
        delivery.cancel_reason = reason
        self._finish(delivery, self._cancelled(delivery, None))
        return True

    async def _tick(self) -> None:
        extended_at = self._loop.time()
        while True:
            await asyncio.sleep(TICK_S if self._held else IDLE_TICK_S)
            self._doubt.tick()
            now = self._time.now()
            for delivery in list(self._held):
                started_at = delivery.started_at
                if started_at is not None and not delivery.is_taken and now - started_at >= TAKEN_AFTER_S:
                    delivery.is_taken = True
                    self._reports.taken(delivery)
            if self._loop.time() - extended_at >= self._lease_interval_s:
                extended_at = self._loop.time()
                self._spawn(self._missed.look())
                for delivery in list(self._attempts.values()):
                    self._reply(delivery.ack_reply, b"+WPI")

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Any) -> None:
    """Waits for an ending that may fail, because the connection may be gone."""
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await work
    except (NatsError, OSError, TimeoutError) as error:
        log.debug("ending_failed", reason=str(error))
