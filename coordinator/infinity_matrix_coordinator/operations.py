"""What anyone may do with an installation: deploy, start, cancel, and read by folding the log.

Clients do these themselves, with the same pure code as the coordinators and with no coordinator alive; the API service
does them for who has no such code.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import uuid_utils
from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.effect import Effect
from infinity_matrix_actors.errors import (
    ExecutionExists,
    ExecutionQuarantined,
    InvalidInput,
    LogFull,
    StorageUnavailable,
    UnknownExecution,
    UnknownWorkflow,
    WorkflowPaused,
)
from infinity_matrix_actors.fact import CommandKind, Fact, Priority, Started
from infinity_matrix_actors.names import check_name
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.schema import problem_of
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import ARTIFACT_BYTES_MAX, ArtifactStore, is_reference
from infinity_matrix_bus.codec import decode, decode_record, encode, parse_server_time
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.definitions import DefinitionStore, Deployment
from infinity_matrix_bus.facts import command_payload, decode_fact, started_payload
from infinity_matrix_bus.fill import Fills
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import follow_facts, read_facts
from infinity_matrix_bus.installation import Installation
from infinity_matrix_bus.publisher import Fate, Outbox, read_ack
from infinity_matrix_bus.session import NoResponders, RequestTimeout, Session
from infinity_matrix_bus.subjects import FactSubject, Subjects, shard_of

from infinity_matrix_coordinator.checkpoint_store import CheckpointStore
from infinity_matrix_coordinator.contents import with_content
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.listing import ExecutionSummary, Selection, list_shard
from infinity_matrix_coordinator.offload import fitting
from infinity_matrix_coordinator.patience import LOSSES, Patience, across_sessions, patiently
from infinity_matrix_coordinator.snapshot import read_started, restore
from infinity_matrix_coordinator.standing import Standing, standings
from infinity_matrix_coordinator.views import (
    ExecutionResult,
    StatusUpdate,
    result_of,
    result_of_finished,
    updates_of,
)
from infinity_matrix_coordinator.watches import Watch, Watches

WRITE_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10.0
#: Between two looks at the log while waiting; the status messages are quicker, but best effort.
POLL_MIN_S = 1.0
POLL_MAX_S = 5.0
PLANS_MAX = 1000


def new_execution_id() -> str:
    """A UUIDv7 as 32 hex digits: unique, and sorted by time."""
    return uuid_utils.uuid7().hex


class Operations:
    """Operations on one connection. Call `open` first and `close` at the end; the connection stays."""

    def __init__(self, connection: Connection, installation: Installation) -> None:
        self._connection = connection
        self.installation = installation
        self.subjects = installation.subjects()
        self._outbox = Outbox(connection)
        self._plans: dict[str, Plan] = {}
        self._reading_now: _Reading | None = None
        #: The inputs, results and signals that no message holds.
        self.artifacts = ArtifactStore(self.session, self.subjects)
        self._fills = Fills(self.session)

    async def open(self) -> "Operations":
        await self._connection.add_listener(self._outbox.on_session)
        return self

    def close(self) -> None:
        self._connection.remove_listener(self._outbox.on_session)
        self._outbox.close()
        self._fills.close()
        if self._reading_now is not None:
            self._reading_now.close()

    async def session(self) -> Session:
        return await self._connection.connected(CONNECT_TIMEOUT_S)

    async def deploy(self, definition: WorkflowDefinition) -> str:
        """Stores a definition and arms its triggers, in place of the earlier version's; answers its hash."""
        deployment = await (await self._store()).deploy(definition, is_armed=bool(definition.triggers))
        return deployment.definition

    async def undeploy(self, workflow: str) -> None:
        """Disarms a workflow's triggers; raises UnknownWorkflow."""
        if not await (await self._store()).disarm(workflow):
            raise UnknownWorkflow(workflow)

    async def store(self, definition: WorkflowDefinition) -> str:
        """Stores a definition by its hash; a name that is new stands for it, one that is deployed is left alone."""
        digest, _ = await self._stored(definition)
        return digest

    async def prepare(self, definition: WorkflowDefinition) -> str:
        """Like `store`, for a definition that is to be started now; raises WorkflowPaused."""
        digest, deployment = await self._stored(definition)
        if deployment.is_paused:
            raise WorkflowPaused(definition.name)
        return digest

    async def _stored(self, definition: WorkflowDefinition) -> tuple[str, Deployment]:
        store = await self._store()
        digest = await store.store(definition)
        self._remember(Plan.of(definition, digest))
        found = await store.deployment(definition.name)
        return digest, found if found is not None else await store.deploy(definition, is_armed=False)

    async def definition_of(self, workflow: str) -> str:
        """The hash a workflow's name stands for; raises UnknownWorkflow."""
        return (await self.deployment_of(workflow)).definition

    async def definition_to_start(self, workflow: str) -> str:
        """The hash a workflow's name stands for; raises UnknownWorkflow, WorkflowPaused."""
        found = await self.deployment_of(workflow)
        if found.is_paused:
            raise WorkflowPaused(workflow)
        return found.definition

    async def deployment_of(self, workflow: str) -> Deployment:
        """What a workflow's name stands for; raises UnknownWorkflow."""
        reading = self._reading(await self.session())
        found = await reading.definitions.deployed(reading.reads, workflow)
        if found is None:
            raise UnknownWorkflow(workflow)
        return found

    async def start(
        self,
        workflow: str,
        definition: str,
        input: Any = None,
        execution_id: str | None = None,
        cause: dict[str, Any] | None = None,
        *,
        priority: Priority = Priority.NORMAL,
        seed: dict[str, Any] | None = None,
        is_new: bool = False,
    ) -> str:
        """Starts an execution; answers its id once that is a fact.

        `is_new`: nobody else can have started that id. Raises ExecutionExists when the id is taken by another
        definition or input, InvalidInput, InvalidName, PayloadTooLarge, PayloadNotEncodable, StorageUnavailable.
        Starting the same again answers the same id.
        """
        execution = new_execution_id() if execution_id is None else check_name("execution id", execution_id)
        shard = shard_of(execution, self.installation.shards)
        started = Started(execution, 0.0, workflow, definition, input, cause or {}, priority=priority, seed=seed or {})
        payload = await self._encoded_start(started)
        if execution_id is not None and not is_new:
            there = await self._stored_start(execution)
            if there is not None:
                # Its start may be older than the log: a second one would be a fact, and hide how far it is.
                _check_same(execution, decode_record(started_payload(there)), decode_record(payload))
                return execution
        subject = self.subjects.started(shard, execution)
        try:
            await self._fills.check(self.subjects.facts_stream(shard))
        except LogFull:
            # What is there already is answered all the same: nothing is written for that.
            if execution_id is None or await self.started_of(execution) is None:
                raise
        ack = await self._outbox.publish(subject, payload, WRITE_TIMEOUT_S)
        if ack.fate is Fate.TAKEN and execution_id is not None:
            await self._compare(execution, subject, payload)
        return execution

    async def check_start(self, started: Started) -> None:
        """Raises what `start` would raise of a start of that content, and starts nothing."""
        await self._encoded_start(started)
        await self._fills.check(self.subjects.facts_stream(shard_of(started.execution, self.installation.shards)))

    async def _encoded_start(self, started: Started) -> bytes:
        """The payload of a start whose input is admitted, with a reference in its place where it is large."""
        known = self._plans.get(started.definition)
        if known is None or known.definition.input_schema is not None:
            await self.check_input(started.definition, started.input)

        def encoded(value: Any) -> bytes:
            return started_payload(started if value is started.input else replace(started, input=value))

        return await fitting(encoded, started.input, self.artifacts, "the input")

    async def check_input(self, definition: str, input: Any) -> None:
        """Raises InvalidInput for an input that is not as the workflow's `input_schema` says; nothing is stored.

        An execution that is started past this, by an event or a parent, fails with `invalid_input` instead.
        """
        try:
            workflow = (await self.plan(definition)).definition
        except StorageUnavailable:
            # Whether it is readable later is for the coordinators to wait for; they hold the input against it, too.
            return
        if workflow.input_schema is None or is_reference(input):
            return
        # As it will be in the log: a model or a date has another form there.
        problem = problem_of(workflow.input_schema, decode(encode(input, "the input", ARTIFACT_BYTES_MAX)))
        if problem is not None:
            raise InvalidInput(workflow.name, problem)

    async def command(self, execution: str, kind: CommandKind, reason: str = "", grace_s: float | None = None) -> None:
        """Writes a command to an execution's log; raises UnknownExecution. What follows from it the core decides."""
        await self._check_exists(execution)
        shard = shard_of(execution, self.installation.shards)
        subject = self.subjects.command(shard, execution, str(kind), new_execution_id())
        await self._outbox.publish(subject, command_payload(kind, reason, grace_s), WRITE_TIMEOUT_S)

    async def cancel(self, execution: str, reason: str = "") -> None:
        """Asks for an execution to be cancelled; raises UnknownExecution. Nothing happens to one that has ended."""
        await self.command(execution, CommandKind.CANCEL, reason)

    async def signal(self, execution: str, name: str, data: Any = None, signal_id: str | None = None) -> None:
        """Sends a signal to an execution; raises UnknownExecution, InvalidName, StorageUnavailable.

        It is kept until a task waits for it. The same `signal_id` counts once.
        """
        await self._check_exists(execution)
        id = new_execution_id() if signal_id is None else check_name("signal id", signal_id)
        await self.publish_signal(execution, check_name("signal", name), data, id)

    async def publish_signal(self, execution: str, name: str, data: Any, signal_id: str) -> None:
        """Writes a signal to the log of an execution that is there; `name` may be one of the system's own."""
        shard = shard_of(execution, self.installation.shards)
        subject = self.subjects.signal(shard, execution, name, signal_id)
        what = "the signal's data"
        payload = await fitting(lambda value: encode(value, what), data, self.artifacts, what)
        await self._outbox.publish(subject, payload, WRITE_TIMEOUT_S)

    async def publish_event(self, event: str, data: Any, event_id: str | None = None) -> None:
        """Publishes an event that may start executions; raises InvalidName, StorageUnavailable.

        The same `event_id` within ten minutes counts once.
        """
        for token in event.split("."):
            check_name("event", token)
        headers = b""
        if event_id is not None:
            headers = f"NATS/1.0\r\nNats-Msg-Id: {check_name('event id', event_id)}\r\n\r\n".encode()
        session = await self.session()
        try:
            reply = await session.request(
                self.subjects.trigger(event), encode(data, "the event"), WRITE_TIMEOUT_S, headers
            )
        except (NoResponders, RequestTimeout) as error:
            raise StorageUnavailable(f"the event was not confirmed: {error}") from error
        ack = read_ack(reply, None)
        if ack.fate not in (Fate.STORED, Fate.DUPLICATE):
            raise StorageUnavailable(f"the event was not stored: {ack.reason}")

    async def facts_of(self, execution: str) -> list[tuple[int, Fact]]:
        """All facts of an execution in log order, each with its sequence; none for an unknown one."""
        reads = self._reading(await self.session()).reads
        return await read_facts(reads, self.subjects, self.installation.shards, check_id(execution))

    async def fold(self, execution: str) -> ExecutionActor:
        """An execution's state as of now, from the log alone; raises UnknownExecution, ExecutionQuarantined."""
        facts = await self.facts_of(execution)
        started = next(((sequence, fact) for sequence, fact in facts if isinstance(fact, Started)), None)
        if started is None:
            return await self._fold_from_checkpoint(execution, facts)
        plan = await self.plan(started[1].definition)
        whole = await with_content(started[1], plan, self.artifacts)
        assert isinstance(whole, Started)
        actor = ExecutionActor(whole, plan, started[0])
        for sequence, fact in facts:
            known = whole if fact is started[1] else await with_content(fact, plan, self.artifacts)
            _receive(actor, known, sequence)
        return actor

    async def _fold_from_checkpoint(self, execution: str, facts: list[tuple[int, Fact]]) -> ExecutionActor:
        """The state of an execution that is open for longer than the log keeps facts."""
        store = await self._checkpoints(execution)
        checkpoint = await store.read(execution)
        if checkpoint is None:
            if await self.started_of(execution) is not None:
                # In a cluster the facts are read from any replica, and this one lags.
                raise StorageUnavailable(f"the replica that answered has not seen {execution} yet; try again")
            raise UnknownExecution(execution)
        plan = await self.plan(checkpoint.definition)
        try:
            actor = restore(await store.snapshot_of(checkpoint), plan, checkpoint.folded)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageUnavailable(f"the checkpoint of {execution} cannot be read: {error}") from error
        for sequence, fact in facts:
            if sequence > checkpoint.folded:
                _receive(actor, await with_content(fact, plan, self.artifacts), sequence)
        return actor

    async def _checkpoints(self, execution: str) -> CheckpointStore:
        shard = shard_of(execution, self.installation.shards)
        return CheckpointStore(await self.session(), self.subjects, shard, self.artifacts)

    async def run(
        self,
        workflow: str,
        definition: str,
        input: Any,
        execution: str,
        *,
        is_new: bool,
        priority: Priority = Priority.NORMAL,
    ) -> ExecutionResult:
        """Starts an execution and answers its result once it is decided; raises as `start` does.

        `is_new`: nobody else can have started that id, so the log is not read before the first hint.
        """
        check_name("execution id", execution)
        session = await self.session()
        actor: ExecutionActor | None = None
        try:
            # Listening first: a short execution may have ended before its start is confirmed here.
            async with self._reading(session).watches.watch(execution) as watch:
                await self.start(workflow, definition, input, execution, priority=priority, is_new=is_new)
                if is_new and await watch.hinted(POLL_MIN_S):
                    result = await self._completed(workflow, execution)
                    if result is not None:
                        return result
                actor = await self._watched(execution, watch)
        except LOSSES:
            # Whether it was started is unknown; starting the same again answers the same execution.
            await across_sessions(lambda: self.start(workflow, definition, input, execution, priority=priority))
        return result_of(actor if actor is not None else await self.wait(execution))

    async def wait(self, execution: str) -> ExecutionActor:
        """The state of an execution once it is decided, over any number of sessions; raises UnknownExecution."""
        check_id(execution)
        patience = Patience()
        while True:
            try:
                async with self._reading(await self.session()).watches.watch(execution) as watch:
                    actor = await self._watched(execution, watch)
            except LOSSES as loss:
                await patience.bear(loss)
            else:
                if actor is not None:
                    return actor

    async def _completed(self, workflow: str, execution: str) -> ExecutionResult | None:
        """The result, when it stands in the last fact: a third less for a client than folding all of them."""
        shard = shard_of(execution, self.installation.shards)
        reads = self._reading(await self.session()).reads
        found = await reads.read(self.subjects.facts_stream(shard), self.subjects.finished_of(shard, execution))
        # The end is announced before it is written, so it may not be there yet.
        return result_of_finished(execution, workflow, found[0].data) if found is not None and len(found) == 1 else None

    async def _watched(self, execution: str, watch: Watch) -> ExecutionActor | None:
        """The state once it is decided; None when the session is lost."""
        poll_s = POLL_MIN_S
        while not watch.session.is_lost:
            actor = await self.fold(execution)
            if actor.is_decided:
                return actor
            poll_s = POLL_MIN_S if await watch.hinted(poll_s) else min(poll_s * 1.5, POLL_MAX_S)
        return None

    async def follow(self, execution: str) -> AsyncIterator[StatusUpdate]:
        """Every transition from the beginning, as it comes; ends with the execution. Raises UnknownExecution."""
        actor: ExecutionActor | None = None
        early: list[Fact] = []
        await patiently(lambda: self._check_exists(execution))
        sequence = 0
        patience = Patience()
        while True:
            try:
                session = await self.session()
                facts = follow_facts(session, self.subjects, self.installation.shards, execution, sequence + 1)
                try:
                    async for number, fact in facts:
                        if actor is None:
                            if not isinstance(fact, Started):
                                early.append(fact)
                                continue
                            plan = await self.plan(fact.definition)
                            whole = await with_content(fact, plan, self.artifacts)
                            assert isinstance(whole, Started)
                            actor = ExecutionActor(whole, plan, number)
                            told = [*early, whole]
                        else:
                            told = [fact]
                        # Not before: what a loss kept from being taken in is read again.
                        sequence = number
                        for one in told:
                            known = await with_content(one, actor.plan, self.artifacts)
                            for update in updates_of(actor, _receive(actor, known, number)):
                                yield update
                        if actor.is_decided and (await self.fold(execution)).decided_at == actor.decided_at:
                            return
                finally:
                    await facts.aclose()  # type: ignore[attr-defined]
            except LOSSES as loss:
                if actor is None:
                    early.clear()
                await patience.bear(loss)

    async def executions(self, workflow: str | None = None, state: str | None = None) -> list[ExecutionSummary]:
        """All executions in the log, newest first, filtered."""
        return await self.select(Selection(workflow, state))

    async def select(self, selection: Selection) -> list[ExecutionSummary]:
        """The executions in the log that are meant, newest first."""
        session = await self.session()
        shards = range(self.installation.shards)
        found = [summary for shard in shards for summary in await list_shard(session, self.subjects, shard)]
        if selection.needs_attention:
            # Only the coordinators know what they cannot fold.
            stuck = {one.execution_id: one.reason for each in await self.standings() for one in each.quarantined}
            found = [replace(summary, problem=stuck.get(summary.execution_id)) for summary in found]
        return selection.select(found)

    async def standings(self) -> list[Standing]:
        """How every coordinator that answers within a second stands."""
        return await standings(await self.session(), self.subjects)

    async def started_of(self, execution: str) -> Started | None:
        """How an execution was started, by a leader read; None when it was not.

        One that is open for longer than the log keeps facts says so in its checkpoint.
        """
        shard = shard_of(check_id(execution), self.installation.shards)
        subject = self.subjects.started(shard, execution)
        stored = await JetStreamApi(await self.session()).last_message(self.subjects.facts_stream(shard), subject)
        if stored is None:
            return await self._stored_start(execution)
        fact = decode_fact(FactSubject(shard, execution, "started"), stored.data, parse_server_time(stored.at))
        return fact if isinstance(fact, Started) else None

    async def _stored_start(self, execution: str) -> Started | None:
        """How an execution was started, as its checkpoint says; None for one that has none."""
        store = await self._checkpoints(execution)
        checkpoint = await store.read(execution)
        return None if checkpoint is None else read_started(await store.snapshot_of(checkpoint))

    async def _compare(self, execution: str, subject: str, payload: bytes) -> None:
        shard = shard_of(execution, self.installation.shards)
        stored = await JetStreamApi(await self.session()).last_message(self.subjects.facts_stream(shard), subject)
        if stored is None:
            return
        there = decode(stored.data)
        _check_same(execution, there if isinstance(there, dict) else {}, decode_record(payload))

    async def _check_exists(self, execution: str) -> None:
        if await self.started_of(execution) is None:
            raise UnknownExecution(execution)

    async def plan(self, digest: str) -> Plan:
        """The plan of a stored definition; raises StorageUnavailable when it is not there."""
        plan = self._plans.get(digest)
        if plan is None:
            definition = await (await self._store()).load(digest)
            if definition is None:
                raise StorageUnavailable(f"the definition {digest[:16]} is not stored")
            plan = Plan.of(definition, digest)
            self._remember(plan)
        return plan

    def _remember(self, plan: Plan) -> None:
        self._plans[plan.digest] = plan
        if len(self._plans) > PLANS_MAX:
            self._plans.pop(next(iter(self._plans)))

    def _reading(self, session: Session) -> "_Reading":
        reading = self._reading_now
        if reading is None or reading.session is not session:
            if reading is not None:
                reading.close()
            reading = self._reading_now = _Reading(session, self.subjects)
        return reading

    async def _store(self) -> DefinitionStore:
        return self._reading(await self.session()).definitions


class _Reading:
    """How the log is read and listened to on one session."""

    def __init__(self, session: Session, subjects: Subjects) -> None:
        self.session = session
        self.reads = GatheredReads(session)
        self.definitions = DefinitionStore(session, subjects)
        self.watches = Watches(session, subjects)

    def close(self) -> None:
        self.reads.close()
        self.watches.close()


def _receive(actor: ExecutionActor, fact: Fact, sequence: int) -> list[Effect]:
    """Folds a fact; raises ExecutionQuarantined where the coordinators could not fold it either."""
    try:
        return actor.receive(fact)
    except Exception as error:
        raise ExecutionQuarantined(actor.id, sequence, f"{type(error).__name__}: {error}") from error


def check_id(execution: str) -> str:
    """Answers an execution's id that can be one; raises UnknownExecution for what never was."""
    if not isinstance(execution, str) or not execution or any(c in execution for c in ".*> \t\r\n"):
        raise UnknownExecution(str(execution))
    return execution


def _check_same(execution: str, there: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises ExecutionExists where the start that is there has other content: for a fork also another origin."""
    for field in ("definition", "input"):
        if there.get(field) != own.get(field):
            raise ExecutionExists(execution, field)
    if _origin(there) != _origin(own):
        raise ExecutionExists(execution, "origin")


def _origin(started: dict[str, Any]) -> tuple[Any, Any]:
    """Of a fork where it is from, and what it brings along."""
    cause = started.get("cause")
    return cause.get("fork") if isinstance(cause, dict) else None, started.get("seed") or {}
