"""Children: executions that are a task of another. Starts them, cancels them, and gives a parent its outcome.

A child's id follows from (execution, task, attempt), so it is started once whoever does it, and nobody can guess it.
Its parent's outcome is in the log before its own end.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from infinity_matrix_actors.definition import CHILD_AGENT
from infinity_matrix_actors.errors import InfinityMatrixError, PayloadNotEncodable, PayloadTooLarge
from infinity_matrix_actors.fact import CommandKind, ErrorType, Started, TaskError
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.state import ExecutionState
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.codec import encode, parse_server_time, rfc3339
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.facts import command_payload, failed_payload, started_payload
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import read_facts
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.publisher import Ack, Fate, Outbox
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, shard_of

from infinity_matrix_coordinator.checkpoint_store import CheckpointStore
from infinity_matrix_coordinator.contents import with_content
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.offload import fitting
from infinity_matrix_coordinator.views import outputs_of

#: Children of children: what goes deeper is refused, because it is mostly a workflow that starts itself.
CHILD_DEPTH_MAX = 16
RETRY_DELAY_S = 0.5
#: Between two looks whether a workflow is paused still, whose children wait.
PAUSED_RETRY_S = 1.0
log = get_logger("infinity_matrix.coordinator")


class Children:
    """The children of one shard's executions, on one session."""

    def __init__(
        self, session: Session, subjects: Subjects, shards: int, outbox: Outbox, artifacts: ArtifactStore
    ) -> None:
        self._session = session
        self._subjects = subjects
        self._shards = shards
        self._outbox = outbox
        self._store = DefinitionStore(session, subjects)
        self._artifacts = artifacts
        #: Of workflows that are paused: when to look again whether they still are, on the loop's clock.
        self._look_at: dict[str, float] = {}

    def id_of(self, execution: str, begun: str, task: str, attempt: int) -> str:
        """The execution that is this attempt. `begun` is when its parent started: an id may be free again one day."""
        return self._subjects.derived_id("child", execution, begun, task, str(attempt))

    async def start(self, execution: ExecutionActor, task: str, attempt: int) -> None:
        """Starts the child of an open attempt; when the session is lost meanwhile the next owner does."""
        actor = execution.tasks.get(task)
        if actor is None or not actor.is_open or actor.attempt != attempt or actor.node.definition.child is None:
            return
        workflow = actor.node.definition.child.workflow
        depth = _depth(execution) + 1
        if depth > CHILD_DEPTH_MAX:
            message = f"children may be {CHILD_DEPTH_MAX} deep, this one would be the {depth}th"
            self._fail(execution, task, attempt, TaskError(ErrorType.TOO_DEEP, message, retryable=False))
            return
        digest = await self._digest(workflow, lambda: _may_wait(execution, task, attempt))
        if not actor.is_open or actor.attempt != attempt:
            return
        if digest is None:
            if not self._session.is_lost:
                message = f"no workflow {workflow!r} is deployed"
                self._fail(execution, task, attempt, TaskError(ErrorType.UNKNOWN_WORKFLOW, message, retryable=False))
            return
        begun = rfc3339(execution.started.at)
        child = self.id_of(execution.id, begun, task, attempt)
        parent = {"execution": execution.id, "begun": begun, "task": task, "attempt": attempt}
        cause = {"parent": parent, "depth": depth}

        def encoded(value: Any) -> bytes:
            return started_payload(
                Started(child, 0.0, workflow, digest, value, cause, priority=execution.started.priority)
            )

        try:
            payload = await self._fitting(encoded, actor.input, "the child's input")
        except (PayloadTooLarge, PayloadNotEncodable) as error:
            self._fail(execution, task, attempt, TaskError(ErrorType.UNDELIVERABLE, str(error), retryable=False))
            return
        if payload is None:
            return
        parent_shard = shard_of(execution.id, self._shards)
        taken = self._subjects.taken(parent_shard, execution.id, CHILD_AGENT, task, attempt)

        def on_started(ack: Ack) -> None:
            self._outbox.post(taken, encode({"instance": child}), _ignore)
            # The outbox outlives this owner, and whoever of it waited.
            if not started.done():
                started.set_result(ack)

        started: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._outbox.post(self._subjects.started(shard_of(child, self._shards), child), payload, on_started)
        if (await started).fate is Fate.TAKEN:
            await self._answer_for_ended(child)

    async def _answer_for_ended(self, child: str) -> None:
        """Gives the outcome of a child that has ended and whose parent has not heard of it.

        It was given before the end; but the parent's log may have lost it: logs are restored one by one.
        """
        while not self._session.is_lost:
            try:
                ended = await self._fold(child)
            except SessionLost:
                return
            except InfinityMatrixError as error:
                log.info("child_not_read", execution=child, reason=str(error))
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            if ended is not None and ended.finished is not None:
                await self.answer_parent(ended, lambda: None)
            return

    def cancel(self, execution: ExecutionActor, task: str, attempt: int, reason: str) -> None:
        """Cancels the child of an attempt, also one that has not started yet."""
        child = self.id_of(execution.id, rfc3339(execution.started.at), task, attempt)
        subject = self._subjects.command(shard_of(child, self._shards), child, str(CommandKind.CANCEL), "parent")
        self._outbox.post(subject, command_payload(CommandKind.CANCEL, f"its parent ended: {reason}"), _ignore)

    async def answer_parent(self, execution: ExecutionActor, then: Callable[[], None]) -> None:
        """Gives the parent of an execution that is decided its outcome, and calls `then` once that is there."""
        parent = self._parent_of(execution)
        if parent is None:
            then()
            return
        above, begun, task, attempt = parent
        stands = await self._stands(above, begun)
        if stands is None:
            return
        if not stands:
            # A backup may hold a child and not its parent, each being in a log of its own; and what was purged may be
            # started anew. In the place of its outcome nothing must stand then.
            log.warning("parent_is_gone", execution=execution.id, parent=above)
            then()
            return
        subject = self._subjects.outcome(shard_of(above, self._shards), above, CHILD_AGENT, task, attempt)
        payload = await self._outcome_payload(execution)
        if payload is not None:
            self._outbox.post(subject, payload, lambda ack: then())

    async def _stands(self, execution: str, begun: str) -> bool | None:
        """Whether a parent that was started then is there; None when the session is lost meanwhile."""
        shard = shard_of(execution, self._shards)
        while not self._session.is_lost:
            try:
                started = self._subjects.started(shard, execution)
                stored = await JetStreamApi(self._session).last_message(self._subjects.facts_stream(shard), started)
                if stored is not None:
                    return rfc3339(parse_server_time(stored.at)) == begun
                # Open for longer than the log keeps facts.
                store = CheckpointStore(self._session, self._subjects, shard, self._artifacts)
                checkpoint = await store.read(execution)
                return checkpoint is not None and rfc3339(checkpoint.started_at) == begun
            except SessionLost:
                return None
            except InfinityMatrixError as error:
                log.info("parent_not_read", execution=execution, reason=str(error))
                await asyncio.sleep(RETRY_DELAY_S)
        return None

    def _parent_of(self, execution: ExecutionActor) -> tuple[str, str, str, int] | None:
        """The attempt an execution is; None when it is nobody's child, or only says so."""
        parent = execution.started.cause.get("parent")
        if not isinstance(parent, dict):
            return None
        above, begun = parent.get("execution"), parent.get("begun")
        task, attempt = parent.get("task"), parent.get("attempt")
        if not isinstance(above, str) or not isinstance(begun, str):
            return None
        if not isinstance(task, str) or not isinstance(attempt, int):
            return None
        if self.id_of(above, begun, task, attempt) != execution.id:
            log.warning("no_child_of_its_parent", execution=execution.id, parent=above)
            return None
        return above, begun, task, attempt

    async def _outcome_payload(self, execution: ExecutionActor) -> bytes | None:
        """What its parent is told of an execution that is decided; None when the session is lost meanwhile."""
        if execution.state is not ExecutionState.COMPLETED:
            return _failed_payload(execution)
        what = "the child's outputs"
        try:
            return await self._fitting(
                lambda value: encode({"result": value, "instance": execution.id}, what), outputs_of(execution), what
            )
        except PayloadTooLarge as error:
            return failed_payload(TaskError(ErrorType.PAYLOAD_TOO_LARGE, str(error), retryable=False))

    async def _fitting(self, encoded: Callable[[Any], bytes], value: Any, what: str) -> bytes | None:
        """`fitting`, until there is room; None when the session is lost meanwhile."""
        while not self._session.is_lost:
            try:
                return await fitting(encoded, value, self._artifacts, what)
            except (PayloadTooLarge, PayloadNotEncodable):
                raise
            except InfinityMatrixError as error:
                log.info("child_postponed", what=what, reason=str(error))
                await asyncio.sleep(RETRY_DELAY_S)
        return None

    async def _digest(self, workflow: str, may_wait: Callable[[], bool]) -> str | None:
        """What is deployed by that name, None for nothing or when the session is lost. While it is paused it waits."""
        now = asyncio.get_running_loop().time
        while not self._session.is_lost:
            look_at = self._look_at.get(workflow)
            if look_at is not None and now() < look_at and may_wait():
                await asyncio.sleep(PAUSED_RETRY_S)
                continue
            if look_at is not None:
                # One looks for all that wait.
                self._look_at[workflow] = now() + PAUSED_RETRY_S
            try:
                deployment = await self._store.deployment(workflow)
            except SessionLost:
                return None
            except InfinityMatrixError as error:
                log.info("child_postponed", workflow=workflow, reason=str(error))
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            is_paused = deployment is not None and deployment.is_paused
            if is_paused:
                self._look_at[workflow] = now() + PAUSED_RETRY_S
            else:
                self._look_at.pop(workflow, None)
            if not is_paused or not may_wait():
                return None if deployment is None else deployment.definition
        return None

    async def _fold(self, child: str) -> ExecutionActor | None:
        """A child as its log tells it, None for one that is not there; raises StorageUnavailable, SessionLost."""
        reads = GatheredReads(self._session)
        try:
            facts = await read_facts(reads, self._subjects, self._shards, child)
        finally:
            reads.close()
        first = next((fact for _, fact in facts if isinstance(fact, Started)), None)
        definition = None if first is None else await self._store.load(first.definition)
        if first is None or definition is None:
            return None
        plan = Plan.of(definition, first.definition)
        started = await with_content(first, plan, self._artifacts)
        assert isinstance(started, Started)
        actor = ExecutionActor(started, plan)
        for _, fact in facts:
            actor.receive(started if fact is first else await with_content(fact, plan, self._artifacts))
        return actor

    def _fail(self, execution: ExecutionActor, task: str, attempt: int, error: TaskError) -> None:
        shard = shard_of(execution.id, self._shards)
        subject = self._subjects.outcome(shard, execution.id, CHILD_AGENT, task, attempt)
        self._outbox.post(subject, failed_payload(error), _ignore)


def _may_wait(execution: ExecutionActor, task: str, attempt: int) -> bool:
    """Whether a child need not begin yet. One that was cancelled before has to say so: its parent waits for that."""
    actor = execution.tasks[task]
    is_stopped = execution.stopped_at is not None and not execution.is_undoing(task)
    return actor.is_open and actor.attempt == attempt and not is_stopped


def _depth(execution: ExecutionActor) -> int:
    depth = execution.started.cause.get("depth", 0)
    return depth if isinstance(depth, int) else 0


def _failed_payload(execution: ExecutionActor) -> bytes:
    cause = execution.error or {}
    where = f" (task {cause['task']!r})" if cause.get("task") else ""
    undone = "; its compensation is incomplete" if execution.compensation == "incomplete" else ""
    kind = ErrorType.CANCELLED if execution.state is ExecutionState.CANCELLED else ErrorType.CHILD_FAILED
    message = f"{cause.get('type')}: {cause.get('message')}{where}{undone}"
    return failed_payload(TaskError(kind, message[:4096], retryable=kind is ErrorType.CHILD_FAILED))


def _ignore(ack: Ack) -> None:
    """The log itself is the answer: the fact comes back through it."""
