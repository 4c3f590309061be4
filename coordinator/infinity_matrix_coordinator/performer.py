"""Performs effects: the one place where a decision becomes messages.

Work is published plainly only while the fact it follows from is fresh; everything else goes to the repairs.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from infinity_matrix_actors.effect import (
    Arm,
    AskHeartbeat,
    AskSlot,
    AskTaken,
    CancelChild,
    CloseAttempt,
    Disarm,
    Effect,
    PublishDead,
    PublishDeadline,
    PublishDue,
    PublishFinished,
    PublishStatus,
    PublishWork,
    PurgeWork,
    StartChild,
    TellAgents,
)
from infinity_matrix_actors.errors import InfinityMatrixError, PayloadNotEncodable, PayloadTooLarge
from infinity_matrix_actors.fact import CommandKind, ErrorType, Finished, TaskError
from infinity_matrix_actors.state import ExecutionState
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.codec import encode, rfc3339
from infinity_matrix_bus.facts import closed_payload, command_payload, finished_payload
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.publisher import Ack, Fate, Outbox, Publisher
from infinity_matrix_bus.session import RequestTimeout, Session, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.backlog import QUEUED_MAX, Attempt, Backlog
from infinity_matrix_coordinator.children import Children
from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.dead_letters import DeadLetters
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.large_works import LargeWorks
from infinity_matrix_coordinator.slots import SlotKeys
from infinity_matrix_coordinator.status_message import status_payload
from infinity_matrix_coordinator.timers import Timers
from infinity_matrix_coordinator.views import is_small, outputs_of
from infinity_matrix_coordinator.work_message import work_payload, work_record

#: A cause older than this is not fresh: a quarter of the work stream's duplicate window.
FRESH_S = 30.0
#: Closings under way at once; more wait.
CLOSINGS_MAX = 64
ACK_TIMEOUT_S = 5.0
RETRY_DELAY_S = 0.5
#: Work that the server took for a duplicate is looked for this much later.
DUPLICATE_LOOK_S = 2.0
#: While a stream has no leader thousands of works are refused, each again and again: one of them is told in this time.
REFUSAL_TOLD_S = 5.0
TimerKey = tuple[str, str | None]  #: execution, task (None: the execution's own)
log = get_logger("infinity_matrix.coordinator")


@dataclass(slots=True)
class Counters:
    """What a shard did since it was taken over, for people and tests."""

    facts: int = 0
    garbage: int = 0
    works: int = 0
    repairs: int = 0
    closings: int = 0
    finished: int = 0
    dead: int = 0


@dataclass(slots=True)
class Performer:
    """Performs the effects of one shard on one session."""

    session: Session
    subjects: Subjects
    shard: int
    shards: int
    outbox: Outbox
    clock: StreamClock
    instance: str
    repair: Callable[[Attempt], None]
    ask_taken: Callable[[str, str, int], None]
    ask_heartbeat: Callable[[str, str, int], None]
    slots: SlotKeys
    wake_timers: Callable[[], None]
    publisher: Publisher = field(init=False)
    timers: Timers[TimerKey] = field(default_factory=Timers)
    counters: Counters = field(default_factory=Counters)
    backlog: Backlog = field(init=False)
    children: Children = field(init=False)
    dead_letters: DeadLetters = field(init=False)
    #: Timers that were overdue when the shard was taken over wait until then: agents reconnect and publish too.
    overdue_not_before: float = 0.0
    _large: LargeWorks = field(init=False)
    _refusal_told_at: float = -REFUSAL_TOLD_S
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _closings: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CLOSINGS_MAX))

    def __post_init__(self) -> None:
        self.publisher = Publisher(self.session)
        self.backlog = Backlog(QUEUED_MAX // self.shards)
        self.dead_letters = DeadLetters(self.session, self.publisher, self.subjects)
        artifacts = ArtifactStore(self._session_of_now, self.subjects, cache_bytes_max=0)
        self._large = LargeWorks(artifacts)
        self.children = Children(self.session, self.subjects, self.shards, self.outbox, artifacts)

    async def _session_of_now(self) -> Session:
        return self.session

    def perform(self, execution: ExecutionActor, effects: Iterable[Effect], *, is_fresh: bool) -> None:
        """Performs the effects of one decision; raises SessionLost."""
        purges = [effect for effect in effects if isinstance(effect, PurgeWork)]
        if purges:
            # Nothing that follows from a closing is done before its work is purged once more.
            follow = [effect for effect in effects if isinstance(effect, PublishWork | PublishFinished)]
            effects = [e for e in effects if not isinstance(e, PurgeWork | PublishWork | PublishFinished)]
            self._spawn(self._purge_then(execution, purges, follow))
        for effect in effects:
            self._perform(execution, effect, is_fresh)

    async def close(self) -> None:
        """Drops what is under way; a new owner derives it again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def publish_repair(self, execution: ExecutionActor, task: str) -> None:
        """Publishes an open attempt again, saying so.

        First with its Msg-Id, which burns it: an owner that lags, but less than the fresh time, could publish plainly
        after this repair was run and acked, and no agent would ask. Where the id is burnt already, without it.
        """
        self.counters.repairs += 1
        self._publish_work(execution, task, execution.tasks[task].attempt, is_repair=True)

    def _perform(self, execution: ExecutionActor, effect: Effect, is_fresh: bool) -> None:
        match effect:
            case PublishWork(task, attempt):
                key = (execution.id, task, attempt)
                actor = execution.tasks.get(task)
                if actor is None or actor.attempt != attempt or not actor.is_open:
                    # It waited for a purge, and another owner's doing settled it meanwhile.
                    return
                if self.backlog.admit(actor.node.definition.agent, key, execution.started.priority):
                    if is_fresh:
                        self._publish_work(execution, task, attempt, is_repair=False)
                    else:
                        self.repair(key)
            case PublishStatus():
                self._publish_status(execution, effect)
            case Arm(task, at):
                if at < self.overdue_not_before:
                    at = self.overdue_not_before
                if self.timers.arm((execution.id, task), at):
                    self.wake_timers()
            case Disarm(task):
                self.timers.disarm((execution.id, task))
                if task is not None:
                    self._settle_backlog(execution, task)
            case PublishFinished():
                self._publish_finished(execution, effect)
            case PublishDue(task, attempt):
                self.outbox.post(self.subjects.due(self.shard, execution.id, task, attempt), b"{}", _ignore)
            case AskTaken(task, attempt):
                self.ask_taken(execution.id, task, attempt)
            case AskHeartbeat(task, attempt):
                self.ask_heartbeat(execution.id, task, attempt)
            case StartChild(task, attempt):
                self._spawn(self.children.start(execution, task, attempt))
            case CancelChild(task, attempt, reason):
                self.children.cancel(execution, task, attempt, reason)
            case AskSlot(key, max_running, n):
                self.slots.ask(execution.plan.definition.name, key, execution.id, max_running, n)
            case CloseAttempt():
                self._spawn(self._close_attempt(execution, effect))
            case PurgeWork():
                self._spawn(self._purge_then(execution, [effect], []))
            case TellAgents(task, reason, attempt):
                order: dict[str, Any] = {"reason": reason, "attempt": attempt, "grace": 0.0}
                if task is None:
                    # Who hears of it later than the next work of an execution that goes on does not stop that.
                    order |= {"grace": execution.grace_s, "at": rfc3339(execution.stopped_at or self.clock.now())}
                self.session.publish(self.subjects.cancel(execution.id, task), encode(order))
            case PublishDeadline():
                subject = self.subjects.command(self.shard, execution.id, str(CommandKind.DEADLINE), effect.id)
                self.outbox.post(subject, command_payload(CommandKind.DEADLINE), _ignore)
            case PublishDead(task, attempt):
                self.counters.dead += 1
                self.dead_letters.publish(execution, task, attempt)
            case _:
                assert_never(effect)

    def _publish_work(
        self, execution: ExecutionActor, task: str, attempt: int, *, is_repair: bool, with_id: bool = True
    ) -> None:
        actor = execution.tasks.get(task)
        # An instance of a map or a loop leaves with its group.
        if actor is None or actor.attempt != attempt or not actor.is_open:
            return
        agent = actor.node.definition.agent
        key = (execution.id, task, attempt)

        def on_ack(ack: Ack) -> None:
            self.backlog.stored(agent, key, ack.sequence)
            if ack.fate is Fate.DUPLICATE and is_repair and not self.session.is_lost:
                self._publish_work(execution, task, attempt, is_repair=True, with_id=False)
            elif ack.fate is Fate.DUPLICATE and not self.session.is_lost:
                # The other owner's copy; or of an id that was there before, and whose works the server remembers.
                asyncio.get_running_loop().call_later(DUPLICATE_LOOK_S, self.repair, key)
            # What is unknown or refused becomes a repair.
            elif ack.fate is Fate.UNKNOWN or ack.fate is Fate.REFUSED:
                if not self.session.is_lost:
                    asyncio.get_running_loop().call_later(RETRY_DELAY_S, self.repair, key)
                if ack.fate is Fate.REFUSED:
                    self._tell_refusal(execution.id, task, ack.reason)

        headers = b""
        if with_id:
            message_id = self.subjects.message_id(execution.id, task, attempt)
            headers = f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\n\r\n".encode()
        record = self._large.small(key) or work_record(self.subjects, self.shard, execution, task)
        try:
            payload = work_payload(record, is_repair=is_repair)
            self.publisher.publish(self.subjects.work(agent, *key), payload, on_ack, headers)
            self.counters.works += 1
        except PayloadTooLarge:
            self._spawn(self._offload(execution, key, record, is_repair))
        except PayloadNotEncodable as error:
            self._undeliverable(execution, task, str(error))

    def _tell_refusal(self, execution: str, task: str, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._refusal_told_at >= REFUSAL_TOLD_S:
            self._refusal_told_at = now
            log.warning("work_refused", execution=execution, task=task, reason=reason)

    async def _offload(self, execution: ExecutionActor, key: Attempt, record: dict[str, Any], is_repair: bool) -> None:
        """Stores what makes a work too large, and publishes it then: plainly only while that is still allowed."""
        _, task, attempt = key
        actor = execution.tasks[task]
        try:
            await self._large.store(key, record, self.session.max_payload_bytes)
            if is_repair or self.clock.now() - (actor.dispatched_at or 0.0) > FRESH_S / 2:
                self.repair(key)
            else:
                self._publish_work(execution, task, attempt, is_repair=False)
        except (PayloadTooLarge, PayloadNotEncodable) as error:
            if actor.attempt == attempt and actor.is_open:
                self._undeliverable(execution, task, str(error))
        except InfinityMatrixError as error:
            if not self.session.is_lost:
                log.warning("work_not_stored", execution=execution.id, task=task, reason=str(error))
                asyncio.get_running_loop().call_later(RETRY_DELAY_S, self.repair, key)

    def _undeliverable(self, execution: ExecutionActor, task: str, reason: str) -> None:
        error = TaskError(ErrorType.UNDELIVERABLE, reason, retryable=False)
        self._post_outcome(execution, task, execution.tasks[task].attempt, closed_payload(error, self.instance))

    def _post_outcome(self, execution: ExecutionActor, task: str, attempt: int, payload: bytes) -> None:
        actor = execution.tasks.get(task)
        if actor is None:
            # An instance that was settled and has left while it was to be closed.
            return
        agent = actor.node.definition.agent
        self.outbox.post(self.subjects.outcome(self.shard, execution.id, agent, task, attempt), payload, _ignore)

    def _publish_status(self, execution: ExecutionActor, effect: PublishStatus) -> None:
        workflow = execution.plan.definition.name
        subject = self.subjects.status(workflow, execution.id, effect.task, effect.state, effect.attempt)
        try:
            self.session.publish(subject, status_payload(execution, effect))
        except PayloadTooLarge:
            self.session.publish(subject, status_payload(execution, effect, with_error=False))

    def _publish_finished(self, execution: ExecutionActor, effect: PublishFinished) -> None:
        self.counters.finished += 1
        fact = Finished(
            execution.id, effect.at, effect.n, effect.state, effect.error, effect.compensation, effect.compensated
        )
        more: dict[str, Any] = {"started_at": rfc3339(execution.started.at), "decided_at": rfc3339(effect.at)}
        if effect.state is ExecutionState.COMPLETED:
            outputs = outputs_of(execution)
            if is_small(outputs):
                more["outputs"] = outputs
        subject, payload = self.subjects.finished(self.shard, execution.id, effect.n), finished_payload(fact, more)
        if self.dead_letters.are_under_way(execution.id):
            # After its end nobody would derive them again.
            self.dead_letters.when_sent(execution.id, lambda: self._end(execution, effect, subject, payload))
        else:
            self._end(execution, effect, subject, payload)

    def _end(self, execution: ExecutionActor, effect: PublishFinished, subject: str, payload: bytes) -> None:
        """Writes an end, once who must hear of it first has."""
        if execution.slot_key is None and "parent" not in execution.started.cause:
            self.outbox.post(subject, payload, _ignore)
            return

        def finish() -> None:
            self.outbox.post(subject, payload, _ignore)

        def let_go() -> None:
            if execution.slot_key is None:
                finish()
            else:
                name = execution.plan.definition.name
                self.slots.leave(name, execution.slot_key, execution.id, effect.n, finish)

        if "parent" in execution.started.cause:
            # Who waits for it hears of it before its own end: after that nobody would derive it again.
            self._spawn(self.children.answer_parent(execution, let_go))
        else:
            let_go()

    def _settle_backlog(self, execution: ExecutionActor, task: str) -> None:
        actor = execution.tasks[task]
        if actor.node.definition.child is not None or not actor.attempt:
            return
        for released in self.backlog.settle(actor.node.definition.agent, (execution.id, task, actor.attempt)):
            # It became ready long ago perhaps: the repairs look before they publish.
            self.repair(released)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_attempt(self, execution: ExecutionActor, effect: CloseAttempt) -> None:
        """Tombstone, purge, outcome, in that order; an armed timer asks again if it breaks off."""
        key = (execution.id, effect.task, effect.attempt)
        self.counters.closings += 1
        async with self._closings:
            try:
                await self._plant_tombstone(*key)
                await JetStreamApi(self.session).purge(self.subjects.work_stream, self.subjects.work_of_attempt(*key))
            except InfinityMatrixError as error:
                log.info("closing_broke_off", execution=execution.id, task=effect.task, reason=str(error))
                return
        self._post_outcome(execution, effect.task, effect.attempt, closed_payload(effect.error, self.instance))

    async def _plant_tombstone(self, execution: str, task: str, attempt: int) -> None:
        """Burns the attempt's Msg-Id, so that nothing a lagging owner publishes plainly can land any more."""
        message_id = self.subjects.message_id(execution, task, attempt)
        headers = f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\n\r\n".encode()
        done: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self.publisher.publish(
            self.subjects.tombstone(execution, task, attempt),
            b"{}",
            lambda ack: None if done.done() else done.set_result(ack),
            headers,
        )
        async with asyncio.timeout(ACK_TIMEOUT_S * 2):
            ack = await done
        if ack.fate is Fate.UNKNOWN or ack.fate is Fate.REFUSED:
            raise RequestTimeout(f"the tombstone of {execution}/{task}/{attempt} was not confirmed")

    async def _purge_then(self, execution: ExecutionActor, purges: list[PurgeWork], follow: Sequence[Effect]) -> None:
        api = JetStreamApi(self.session)
        for purge in purges:
            subject = self.subjects.work_of_attempt(execution.id, purge.task, purge.attempt)
            while True:
                try:
                    await api.purge(self.subjects.work_stream, subject)
                    break
                except SessionLost:
                    return
                except InfinityMatrixError as error:
                    log.info("purge_postponed", execution=execution.id, reason=str(error))
                    await asyncio.sleep(RETRY_DELAY_S)
        try:
            for effect in follow:
                # Time has passed: work goes by the repairs, which look first.
                self._perform(execution, effect, is_fresh=False)
        except SessionLost:
            return


def _ignore(ack: Ack) -> None:
    """The log itself is the answer: the fact comes back through it."""
