"""A shard: one log stream, and the actors of the executions hashed to it, owned for one session.

It reads the log from its position to the head (replay: effects are dropped), derives what is outstanding, and goes on
live: fact, decision, effects, one after another. When the session breaks, or the process was away for too long, the
owner is done; a new one begins. Two owners at once are wasteful and harmless.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from infinity_matrix_actors.effect import Arm, CloseAttempt, Effect
from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.fact import Fact, Finished, Started, TaskError
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.codec import parse_server_time
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import read_all, read_facts
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.log_reader import BATCH, Entry, LogReader
from infinity_matrix_bus.publisher import IN_FLIGHT_MAX, Outbox
from infinity_matrix_bus.session import RequestTimeout, Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, shard_of

from infinity_matrix_coordinator.backlog import Attempt
from infinity_matrix_coordinator.checkpoint_store import CheckpointStore
from infinity_matrix_coordinator.checkpoints import CHECKPOINT_AFTER_S, Checkpoints
from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.contents import Contents, with_content
from infinity_matrix_coordinator.deadlines import CLOSE_AGAIN_S
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.heartbeats import Heartbeats
from infinity_matrix_coordinator.log_identity import Likeness, LogIdentity, compare
from infinity_matrix_coordinator.mailbox import Mailbox, Quarantine
from infinity_matrix_coordinator.performer import FRESH_S, Performer
from infinity_matrix_coordinator.purging import PURGE_AGE_MIN_S, Purging
from infinity_matrix_coordinator.quiet import QuietAttempts
from infinity_matrix_coordinator.refolding import Refolding
from infinity_matrix_coordinator.repairs import Repairs
from infinity_matrix_coordinator.slots import KEY_PREFIX, SlotKeys
from infinity_matrix_coordinator.sweep import SWEEP_INTERVAL_S, ConsumerMender, Sweep

#: An overdue timer fires only after its owner has been at the head for this long.
OVERDUE_WAIT_S = 5.0
DEFINITION_RETRY_S = 0.25
HEAD_TIMEOUT_S = 10.0
TIMERS_A_TURN = 500
TICK_S = 1.0
log = get_logger("infinity_matrix.coordinator")

PlanLoader = Callable[[Session, str], Awaitable[Plan | None]]


class Shard:
    """One owner of one shard. `run` returns when the session is lost or the owner has been away for too long."""

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        number: int,
        shards: int,
        outbox: Outbox,
        plans: dict[str, Plan],
        load_plan: PlanLoader,
        mend_consumers: ConsumerMender,
        artifacts: ArtifactStore,
        *,
        instance: str,
        sweep_interval_s: float = SWEEP_INTERVAL_S,
        checkpoint_after_s: float = CHECKPOINT_AFTER_S,
        purge_age_min_s: float = PURGE_AGE_MIN_S,
    ) -> None:
        self.number = number
        self._shards = shards
        self._session = session
        self._subjects = subjects
        self._stream, self._api = subjects.facts_stream(number), JetStreamApi(session)
        self._artifacts = artifacts
        self._plans = plans
        self._load_plan = load_plan
        self._loop = asyncio.get_running_loop()
        self.clock = StreamClock()
        self.mailbox = Mailbox(plans.get)
        self._repairs = Repairs(self._api, subjects, self)
        self._quiet = QuietAttempts(self._api, subjects, self.clock, self._on_quiet, self._sequence_of)
        self._heartbeats = Heartbeats(session, subjects, self.clock, self._on_heartbeat)
        self.slots = SlotKeys(subjects, shards, outbox)
        self._sweep = Sweep(session, subjects, shards, self, self._repairs, mend_consumers, sweep_interval_s)
        self._checkpoint_store = store = CheckpointStore(session, subjects, number, artifacts)
        self.checkpoints = Checkpoints(store, self, self._api, subjects, number, checkpoint_after_s)
        activate = self.checkpoints.activate
        self._contents = Contents(artifacts, self._plan_of, self.mailbox.passive, activate, self._on_complete)
        held = (self.mailbox, self.checkpoints, self._contents)
        self.purging = Purging(session, subjects, number, self.clock, self.checkpoints, held, age_min_s=purge_age_min_s)
        self.performer = Performer(
            session,
            subjects,
            number,
            shards,
            outbox,
            self.clock,
            instance,
            self._repairs.add,
            self._ask_taken,
            self._heartbeats.ask,
            self.slots,
            self._set_timer,
        )
        self._reader: LogReader | None = None
        self.is_live = False
        self._head = self._head_wanted = 0
        self._at_head = asyncio.Event()
        self._replayed: dict[str, list[tuple[int, Fact]]] = {}
        self._parked_by_replay: set[str] = set()
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._awaited = asyncio.Event()
        self._reopening = asyncio.Event()
        self._ticked_at = time.monotonic()
        self._restored: list[str] = []
        self._identity: LogIdentity | None = None
        self._last_entry: Entry | None = None

    @property
    def next_sequence(self) -> int:
        return self._reader.next_sequence if self._reader is not None else 1

    def position(self) -> int:
        """The sequence a new owner must read from; only sensible while live."""
        held = (self.mailbox, self.slots, self._contents, self.checkpoints)
        return min(one.position(self.next_sequence) for one in held)

    async def run(self) -> None:
        """Owns the shard from its mark on; raises SessionLost, RequestTimeout or StorageUnavailable before it can."""
        self._session.when_lost(self._over.set)
        info = await self._api.stream_info(self._stream)
        if info is None:
            raise RequestTimeout(f"the stream {self._stream} is missing: the log is gone, nothing is made in its place")
        self._learn_time(info)
        self._head = int(info["state"]["last_seq"])
        from_sequence, in_the_log = await self._where_to_begin(str(info["created"]))
        self._restored = await self.checkpoints.load(self._arm, in_the_log)
        tasks = [
            asyncio.create_task(work, name=f"shard-{self.number}-{name}")
            for name, work in (
                ("tick", self._tick()),
                ("repairs", self._repairs.run()),
                ("sweep", self._sweep.run()),
                ("definitions", self._load_definitions()),
                ("reopening", self._reopen()),
                ("quiet", self._quiet.run()),
                ("heartbeats", self._heartbeats.run()),
                ("contents", self._contents.run()),
                ("checkpoints", self.checkpoints.run()),
                ("purging", self.purging.run(lambda: self.is_live)),
            )
        ]
        try:
            self._reader = await LogReader(
                self._session, self._stream, self._on_entry, from_sequence=from_sequence, capacity=self._capacity
            ).open()
            if not self.is_live and (from_sequence > self._head or not self._reader.pending):
                # Nothing to read, perhaps because what was there is too old by now.
                self._reader.next_sequence = max(self._reader.next_sequence, self._head + 1)
                self._go_live()
            over = asyncio.create_task(self._over.wait())
            try:
                await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    log.error("shard_task_failed", shard=self.number, task=task.get_name(), exc_info=task.exception())
        finally:
            await self._stop(tasks)

    async def _where_to_begin(self, created: str) -> tuple[int, set[str] | None]:
        """The sequence to read from; and of a log that is not the one that was folded, the executions it begins."""
        mark = await self._checkpoint_store.mark()
        self.checkpoints.mark = mark
        likeness = Likeness.SAME
        if mark.identity is not None:
            likeness = await compare(self._api, self._stream, mark.identity)
        self._identity = mark.identity if likeness is Likeness.SAME and mark.identity else LogIdentity(created)
        if likeness is not Likeness.OTHER and mark.sequence <= self._head + 1:
            return mark.sequence, None
        # It was restored, or lost its end with the power: other facts stand where the mark is.
        self.performer.outbox.drop(self._subjects.facts_of_shard(self.number).rstrip(">"))
        log.error("log_is_another", shard=self.number, mark=mark.sequence, head=self._head)
        self.checkpoints.mark = replace(mark, sequence=1)
        started = self._subjects.all_started(self.number)
        found = await read_all(self._session, self._stream, (started,))
        subjects = [self._subjects.parse_fact(entry.subject) for entry in found]
        return 1, {subject.execution for subject in subjects if subject is not None}

    def note_identity(self) -> LogIdentity | None:
        """Which log was folded, as far as it was; kept beside the mark."""
        last = self._last_entry
        if last is not None and self._identity is not None:
            self._identity.note(last.sequence, last.subject, last.at)
        return self._identity

    def is_awaited(self, execution: str) -> bool:
        """Whether facts of it wait for what they refer to, or for it to be brought back."""
        return execution in self._contents

    async def plan_of_digest(self, digest: str) -> Plan | None:
        return await self._load_plan(self._session, digest)

    def _arm(self, execution: str, task: str | None, at: float) -> None:
        """A timer of an execution that stays where it is; overdue ones wait as after every takeover."""
        self.performer.timers.arm((execution, task), max(at, self.clock.now() + OVERDUE_WAIT_S))

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        self._session.not_when_lost(self._over.set)
        if self._timer is not None:
            self._timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sweep.close()
        await self.performer.close()
        if self._reader is not None:
            await self._reader.close()

    # Reading.

    def _capacity(self) -> int:
        is_busy = self.performer.publisher.in_flight > IN_FLIGHT_MAX * 4 or self.checkpoints.is_behind
        return 0 if is_busy else BATCH

    def read_on(self) -> None:
        """Reads again, after there had been no capacity for it."""
        if self._reader is not None:
            self._reader.resume()

    def _on_entry(self, entry: Entry) -> None:
        self.performer.counters.facts += 1
        self._last_entry = entry
        subject = self._subjects.parse_fact(entry.subject)
        fact = decode_fact(subject, entry.data, entry.at) if subject is not None else None
        if isinstance(fact, Started) and shard_of(fact.execution, self._shards) != self.number:
            # Started on a shard that is not its own, it would be a second execution of one id.
            fact = None
        if fact is None:
            self.performer.counters.garbage += 1
            log.warning("garbage_in_the_log", subject=entry.subject, sequence=entry.sequence)
        elif self.is_live:
            self._on_fact(fact, entry)
        else:
            self._replay(fact, entry.sequence)
        if not self.is_live and entry.sequence >= self._head:
            self._go_live()
        if entry.pending == 0 or entry.sequence >= self._head_wanted:
            self._at_head.set()

    def _on_fact(self, fact: Fact, entry: Entry) -> None:
        execution = self.mailbox.executions.get(fact.execution)
        if execution is not None and execution.plan.examines_nothing and self._contents.is_idle:
            # The short way of nearly all facts.
            if entry.sequence > execution.folded:
                effects = self.mailbox.receive(execution, fact, entry.sequence)
                if effects:
                    self._perform(execution, effects, fact.at)
        elif fact.execution.startswith(KEY_PREFIX):
            self.slots.on_fact(fact, entry.sequence, is_live=True)
        elif not self._contents.take(fact, entry.sequence):
            self._deliver(fact, entry.sequence)

    def _deliver(self, fact: Fact, sequence: int) -> None:
        effects = self.mailbox.deliver(fact, sequence)
        if effects:
            execution = self.mailbox.executions.get(fact.execution)
            if execution is not None:
                self._perform(execution, effects, fact.at)
        elif fact.execution in self.mailbox.parked:
            self._awaited.set()
        elif fact.execution in self.mailbox.reopening:
            self._reopening.set()

    def _on_complete(self, execution: str, facts: list[tuple[Fact, int]]) -> None:
        """The facts of an execution that waited for a content, or to be brought back; none when its timer called."""
        if len(facts) == 1:
            self._deliver(*facts[0])
            return
        for fact, sequence in facts:
            self.mailbox.deliver(fact, sequence)
        # The effects of earlier facts are stale once later ones are folded; what is open is derived from the state.
        self._resume(execution, is_taken_over=False)
        if execution in self.mailbox.parked:
            self._parked_by_replay.add(execution)
            self._awaited.set()
        if execution in self.mailbox.reopening:
            self._reopening.set()

    def _plan_of(self, fact: Fact) -> Plan | None:
        if isinstance(fact, Started):
            return self._plans.get(fact.definition)
        execution = self.mailbox.executions.get(fact.execution)
        return execution.plan if execution is not None else None

    def _replay(self, fact: Fact, sequence: int) -> None:
        """Collects the facts of executions that are open; those of a finished one are dropped unread by any actor."""
        if self.mailbox.is_folded(fact.execution, sequence):
            return
        if fact.execution.startswith(KEY_PREFIX):
            self.slots.on_fact(fact, sequence, is_live=False)
        elif isinstance(fact, Finished):
            self._replayed.pop(fact.execution, None)
            self.mailbox.forget(fact.execution)
        else:
            self._replayed.setdefault(fact.execution, []).append((sequence, fact))

    def _go_live(self) -> None:
        """The head is reached: fold what is open, and derive what is outstanding."""
        self.is_live = True
        self.performer.overdue_not_before = 0.0
        replayed, self._replayed = self._replayed, {}
        resumed = 0
        for facts in replayed.values():
            for sequence, fact in facts:
                if not self._contents.take(fact, sequence):
                    self.mailbox.deliver(fact, sequence)
            if facts[0][1].execution in self._contents:
                continue
            execution = self.mailbox.executions.get(facts[0][1].execution)
            if execution is not None:
                resumed += 1
                self._resume(execution.id)
        for execution_id in self._restored:
            if execution_id not in replayed and execution_id in self.mailbox.executions:
                resumed += 1
                self._resume(execution_id)
        for execution_id in self.checkpoints.postponed:
            self._contents.call(execution_id)
        self._set_timer()
        self.slots.resume()
        self._parked_by_replay = set(self.mailbox.parked)
        if self._parked_by_replay:
            self._awaited.set()
        if self.mailbox.reopening:
            self._reopening.set()
        self._at_head.set()
        log.debug("shard_live", shard=self.number, resumed=resumed, head=self._head)

    def _resume(self, execution_id: str, *, is_taken_over: bool = True) -> None:
        execution = self.mailbox.executions.get(execution_id)
        if execution is None:
            return
        self.performer.overdue_not_before = self.clock.now() + OVERDUE_WAIT_S if is_taken_over else 0.0
        try:
            self.performer.perform(execution, execution.outstanding(), is_fresh=False)
        except SessionLost:
            self._over.set()
        finally:
            self.performer.overdue_not_before = 0.0

    async def _load_definitions(self) -> None:
        """Opens parked executions as their definitions become readable."""
        while True:
            await self._awaited.wait()
            self._awaited.clear()
            while (awaited := self.mailbox.awaited_definitions()) and self.is_live:
                missing = 0
                for digest, executions in awaited.items():
                    plan = await self._load_plan(self._session, digest)
                    if plan is None:
                        missing += 1
                        continue
                    for execution in executions:
                        self._unpark(execution, plan)
                if missing:
                    await asyncio.sleep(DEFINITION_RETRY_S)

    async def _reopen(self) -> None:
        """Takes executions up again that had ended: their facts are read, all of them, and folded."""
        reads = GatheredReads(self._session)
        try:
            while True:
                await self._reopening.wait()
                self._reopening.clear()
                while self.mailbox.reopening and self.is_live:
                    for execution in list(self.mailbox.reopening):
                        await self._reopen_one(reads, execution)
        finally:
            reads.close()

    async def refold(self, execution: str) -> Quarantine | None:
        """Folds a quarantined execution again; answers why it stays where it is, or None when it goes on."""
        parts = (self._artifacts, self.mailbox, self.checkpoints, self.plan_of_digest, self._resume)
        return await Refolding(self._session, self._subjects, self._shards, *parts).refold(execution)

    async def _reopen_one(self, reads: GatheredReads, execution: str) -> None:
        try:
            # The command that asks for this is one of them: before it there is nothing to be taken up.
            newest = self.mailbox.reopening[execution].sequence
            facts = await read_facts(reads, self._subjects, self._shards, execution, newest=newest)
            started = next((fact for _, fact in facts if isinstance(fact, Started)), None)
            plan = await self._load_plan(self._session, started.definition) if started is not None else None
            if started is not None and plan is None:
                await asyncio.sleep(DEFINITION_RETRY_S)
                return
            whole = [(sequence, await with_content(fact, plan, self._artifacts)) for sequence, fact in facts]
            self.mailbox.reopen(execution, whole, plan)
            self._resume(execution)
        except SessionLost:
            self._over.set()
            await self._over.wait()
        except InfinityMatrixError as error:
            log.info("reopening_postponed", execution=execution, reason=str(error))
            await asyncio.sleep(DEFINITION_RETRY_S)

    def _unpark(self, execution_id: str, plan: Plan) -> None:
        was_replayed = execution_id in self._parked_by_replay
        self._parked_by_replay.discard(execution_id)
        answers = self.mailbox.unpark(execution_id, plan)
        if execution_id in self.mailbox.reopening:
            self._reopening.set()
        execution = self.mailbox.executions.get(execution_id)
        if execution is None:
            return
        if was_replayed or len(answers) > 1:
            # The effects of earlier facts are stale once later ones are folded; what is open is derived from the state.
            self._resume(execution_id)
            return
        for fact, effects in answers:
            self._perform(execution, effects, fact.at)

    def _perform(self, execution: ExecutionActor, effects: list[Effect], at: float) -> None:
        try:
            self.performer.perform(execution, effects, is_fresh=self.clock.now() - at < FRESH_S)
        except SessionLost:
            self._over.set()

    # What the repairs and the sweep need.

    def agent_of(self, attempt: Attempt) -> str | None:
        """The agent of an attempt that is open and not held back."""
        execution_id, task, number = attempt
        execution = self.mailbox.executions.get(execution_id)
        actor = execution.tasks.get(task) if execution is not None else None
        if execution is None or actor is None or not actor.is_open or actor.attempt != number or execution.is_decided:
            return None
        if actor.node.definition.child is not None:
            # The outbox carries its start; there is no work that could be lost.
            return None
        agent = actor.node.definition.agent
        return None if self.performer.backlog.is_held(agent, attempt) else agent

    def publish_repair(self, attempt: Attempt) -> None:
        if self.agent_of(attempt) is not None and not self._session.is_lost:
            self.performer.publish_repair(self.mailbox.executions[attempt[0]], attempt[1])

    async def look_at_log(self) -> None:
        """Ends this owner at once when its log is another one; raises JetStreamError, RequestTimeout, SessionLost."""
        self.heed(await self._api.stream_info(self._stream) or {})

    def heed(self, info: dict[str, Any]) -> None:
        """Learns the time from what the server says of the log, and ends this owner when it is another log."""
        self._learn_time(info)
        if self._identity is not None and info.get("created") != self._identity.created:
            log.error("log_was_replaced", shard=self.number)
            self._over.set()

    async def read_to_head(self) -> None:
        """Returns once everything that is in the log now is folded; raises RequestTimeout."""
        head = await self._api.last_sequence(self._stream)
        deadline = self._loop.time() + HEAD_TIMEOUT_S
        # A busy stream always has more pending: what counts is the head of now.
        self._head_wanted = head
        while self.next_sequence <= head:
            self._at_head.clear()
            remaining_s = deadline - self._loop.time()
            try:
                async with asyncio.timeout(max(0.0, remaining_s)):
                    await self._at_head.wait()
            except TimeoutError:
                raise RequestTimeout(f"{self._stream} was not read to {head} within {HEAD_TIMEOUT_S:g} s") from None

    def condemn(self, attempt: Attempt, error: TaskError) -> None:
        """Closes an attempt whose work kills agents."""
        if self.agent_of(attempt) is not None:
            _, task, number = attempt
            effects: list[Effect] = [CloseAttempt(task, number, error), Arm(task, self.clock.now() + CLOSE_AGAIN_S)]
            self._perform_now(self.mailbox.executions[attempt[0]], effects)

    def _on_heartbeat(self, attempt: Attempt, seen_at: float | None) -> None:
        execution = self.mailbox.executions.get(attempt[0])
        if execution is not None:
            self._perform_now(execution, execution.expire_heartbeat(*attempt[1:], self.clock.now(), seen_at))

    # Time.

    def _learn_time(self, info: dict[str, object]) -> None:
        text = info.get("ts")
        if isinstance(text, str):
            self.clock.learn(parse_server_time(text))
            if self._timer is not None:
                # It was set by the time as it was known before.
                self._timer.cancel()
                self._timer = None
                self._set_timer()

    def _set_timer(self) -> None:
        at = self.performer.timers.next_at()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - self.clock.now()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self.clock.now()
        for execution_id, task in self.performer.timers.due(now, TIMERS_A_TURN):
            execution = self.mailbox.executions.get(execution_id)
            if execution is None:
                self._contents.call(execution_id)
                continue
            try:
                self.performer.perform(execution, execution.expire(task, now), is_fresh=True)
            except SessionLost:
                self._over.set()
                return
        self._set_timer()

    def _ask_taken(self, execution: str, task: str, attempt: int) -> None:
        agent = self.agent_of((execution, task, attempt))
        if agent is not None:
            self._quiet.ask(agent, (execution, task, attempt))
        else:
            # Held back here, so nobody can have taken it.
            self._on_quiet((execution, task, attempt), True, None)

    def _sequence_of(self, agent: str, attempt: Attempt) -> int:
        return self.performer.backlog.sequence_of(agent, attempt)

    def _on_quiet(self, attempt: Attempt, is_queued: bool, seen_taken_at: float | None) -> None:
        execution = self.mailbox.executions.get(attempt[0])
        if execution is None:
            return
        effects = execution.expire_quiet(attempt[1], attempt[2], self.clock.now(), is_queued, seen_taken_at)
        self._perform_now(execution, effects)

    def _perform_now(self, execution: ExecutionActor, effects: list[Effect]) -> None:
        try:
            self.performer.perform(execution, effects, is_fresh=True)
        except SessionLost:
            self._over.set()

    async def _tick(self) -> None:
        """Notices that this process was away for too long: then it is a new owner."""
        while not self._over.is_set():
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if now - self._ticked_at > FRESH_S:
                log.warning("away_too_long", shard=self.number, away_s=round(now - self._ticked_at, 1))
                self._over.set()
            self._ticked_at = now
            self.read_on()
