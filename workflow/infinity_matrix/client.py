"""A client of one installation: start, follow, wait, list and cancel, by workflow name and execution id.

What it answers it folded from the log itself; only a start asks first whether a coordinator is there to carry it on.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.duration import parse_duration
from infinity_matrix_actors.errors import InfinityMatrixError, NoCoordinator, StorageUnavailable, UnknownExecution
from infinity_matrix_actors.fact import Priority
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_agents import Agent, AgentRunner
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.definitions import DefinitionStore, Deployment
from infinity_matrix_bus.installation import Installation, read_installation
from infinity_matrix_bus.session import Endpoint, NoResponders, RequestTimeout, SessionLost
from infinity_matrix_coordinator.agent_pauses import is_paused, pause_agent, resume_agent
from infinity_matrix_coordinator.approvals import APPROVE, REJECT, Approval, Approvals
from infinity_matrix_coordinator.choices import chosen
from infinity_matrix_coordinator.controls import Asked, Controls
from infinity_matrix_coordinator.dead_operations import DeadLetter, DeadOperations
from infinity_matrix_coordinator.forks import Forks
from infinity_matrix_coordinator.lineage import Lineage, lineage_of
from infinity_matrix_coordinator.listing import ExecutionSummary, Selection
from infinity_matrix_coordinator.log_lines import LogLine, lines_of
from infinity_matrix_coordinator.operations import Operations, new_execution_id
from infinity_matrix_coordinator.patience import across_sessions, patiently
from infinity_matrix_coordinator.purges import Purges
from infinity_matrix_coordinator.runs import IfExists, Runs
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations
from infinity_matrix_coordinator.standing import Standing
from infinity_matrix_coordinator.versions import Difference, Versions, VersionSummary
from infinity_matrix_coordinator.views import (
    ExecutionMetrics,
    ExecutionResult,
    ExecutionStatus,
    StatusUpdate,
    metrics_of,
    result_of,
    status_of,
)
from infinity_matrix_coordinator.whole import whole_approvals, whole_result, whole_status

COORDINATOR_TIMEOUT_S = 5.0
#: Who may not read the secret gets no answer.
SECRET_TIMEOUT_S = 2.0
COORDINATOR_RETRY_S = 0.2
#: A coordinator that answered is trusted for this long.
COORDINATOR_SEEN_S = 10.0
UNTAKEN_AFTER_S = 2.0
PING_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class _How:
    """How an execution is started."""

    if_exists: IfExists
    priority: Priority

    @classmethod
    def of(cls, if_exists: str, priority: str) -> "_How":
        """Raises InvalidDefinition for words that are none."""
        return cls(chosen(IfExists, if_exists, "if_exists"), chosen(Priority, priority, "priority"))


class Client:
    """A connected client. Made by `infinity_matrix.connect` and `local`; `url` is where others can connect to."""

    def __init__(self, endpoint: Endpoint, prefix: str = "im") -> None:
        self.url = endpoint.url
        self.prefix = prefix
        self._connection = Connection(endpoint)
        self._operations: Operations | None = None
        self._runners: list[AgentRunner] = []
        self._coordinator_seen_at = -COORDINATOR_SEEN_S
        #: Whether a task nobody takes is named on stderr: where agents are this user's own.
        self.names_untaken = False

    async def open(self) -> "Client":
        """Connects; raises Unreachable and NotInstalled."""
        await self._connection.open()
        try:
            installation = await self._read_installation()
            self._operations = await Operations(self._connection, installation).open()
        except BaseException:
            await self._connection.close()
            raise
        return self

    async def _read_installation(self) -> Installation:
        """With the secret where this client may read it: then it ignores forged facts as the coordinators do."""
        session = self._connection.session
        try:
            async with asyncio.timeout(SECRET_TIMEOUT_S):
                return await read_installation(session, self.prefix, with_secret=True)
        except (StorageUnavailable, TimeoutError):
            return await read_installation(session, self.prefix)

    async def close(self) -> None:
        """Hands back what its agents hold, and disconnects."""
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.close() for runner in runners))
        if self._operations is not None:
            self._operations.close()
        await self._connection.close()

    @property
    def operations(self) -> Operations:
        assert self._operations is not None, "open the client first"
        return self._operations

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def schedules(self) -> ScheduleOperations:
        """The schedules that are here: list, show, pause, resume, trigger, backfill, delete, by name."""
        return ScheduleOperations(self.operations)

    @property
    def artifacts(self) -> ArtifactStore:
        """The values too large for a message: list, and get."""
        return self.operations.artifacts

    async def serve(self, agents: Iterable[Agent]) -> None:
        """Serves agents on this client's connection until it is closed; those it serves already go on."""
        served = {runner.agent.name for runner in self._runners}
        for agent in agents:
            if agent.name not in served:
                self._runners.append(await AgentRunner(agent, self._connection, self.prefix).open())
                served.add(agent.name)

    # Definitions.

    async def deploy(self, definition: WorkflowDefinition) -> str:
        """Stores a definition with its schedules and arms its triggers; answers its hash."""
        return await patiently(lambda: self.schedules.deploy(definition))

    async def undeploy(self, workflow: str) -> None:
        await self.operations.undeploy(workflow)

    async def workflows(self) -> Sequence[Deployment]:
        """The workflows that have a name here."""
        return await DefinitionStore(await self.operations.session(), self.operations.subjects).deployments()

    # Executions.

    async def start(
        self,
        workflow: str,
        input: Any = None,
        execution_id: str | None = None,
        *,
        if_exists: str = IfExists.REJECT,
        priority: str = Priority.NORMAL,
    ) -> str:
        """Starts the deployed workflow of that name; answers the id of the run.

        `if_exists` says what to do when the id is there: `reject` (the same again is answered, other content refused),
        `return` its last run, `cancel` that and start `<id>-r2`, `rerun_failed`. Raises UnknownWorkflow,
        WorkflowPaused, ExecutionExists, NoCoordinator, InvalidDefinition for an unknown `if_exists` or `priority`.
        """
        how = _How.of(if_exists, priority)
        await self.find_coordinator()
        digest = await patiently(self.operations.definition_to_start, workflow)
        return await self._start(workflow, digest, input, execution_id, how)

    async def start_definition(
        self,
        definition: WorkflowDefinition,
        input: Any = None,
        execution_id: str | None = None,
        *,
        if_exists: str = IfExists.REJECT,
        priority: str = Priority.NORMAL,
    ) -> str:
        """Stores a definition if need be and starts it; else as `start`."""
        how = _How.of(if_exists, priority)
        await self.find_coordinator()
        digest = await patiently(lambda: self.operations.prepare(definition))
        return await self._start(definition.name, digest, input, execution_id, how)

    async def execute_definition(
        self,
        definition: WorkflowDefinition,
        input: Any = None,
        execution_id: str | None = None,
        *,
        timeout: float | None = None,
        if_exists: str = IfExists.REJECT,
        priority: str = Priority.NORMAL,
    ) -> ExecutionResult:
        """Starts a definition and waits for its result."""
        how = _How.of(if_exists, priority)
        await self.find_coordinator()
        digest = await patiently(lambda: self.operations.prepare(definition))
        return await self._run(definition.name, digest, input, execution_id, timeout, how)

    async def execute(
        self,
        workflow: str,
        input: Any = None,
        execution_id: str | None = None,
        *,
        timeout: float | None = None,
        if_exists: str = IfExists.REJECT,
        priority: str = Priority.NORMAL,
    ) -> ExecutionResult:
        """Starts the deployed workflow of that name and waits for its result."""
        how = _How.of(if_exists, priority)
        await self.find_coordinator()
        digest = await patiently(lambda: self.operations.definition_to_start(workflow))
        return await self._run(workflow, digest, input, execution_id, timeout, how)

    async def wait(self, execution_id: str, timeout: float | None = None) -> ExecutionResult:
        """The result of an execution once it has ended; if it did not complete and was run again, of its last run.

        Raises UnknownExecution, NoCoordinator, TimeoutError.
        """
        ends_at = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while True:
            result = await self._ended(execution_id, ends_at)
            if result.status == ExecutionState.COMPLETED:
                return result
            # Who waits for an id that was started again means what became of it in the end.
            latest = await self._latest_run_of_ended(execution_id)
            if latest == execution_id:
                return result
            execution_id = latest

    async def _ended(self, execution_id: str, ends_at: float | None) -> ExecutionResult:
        """The result of this very run."""
        actor = await patiently(lambda: self.operations.fold(execution_id))
        if actor.is_decided:
            return await self._whole(result_of(actor))
        await self.find_coordinator()
        return await self._wait(execution_id, ends_at)

    async def _latest_run_of_ended(self, execution_id: str) -> str:
        try:
            return await self.latest_run(execution_id)
        except UnknownExecution:
            # It began longer ago than the log reaches back, and has ended a moment ago: of that nothing more is kept.
            return execution_id

    async def get_status(self, execution_id: str, *, is_whole: bool = True) -> ExecutionStatus:
        """Where an execution stands; raises UnknownExecution. Unless `is_whole`, large results stay references."""
        status = status_of(await patiently(lambda: self.operations.fold(execution_id)))
        if status.state in (ExecutionState.FAILED, ExecutionState.CANCELLED):
            latest = await self._latest_run_of_ended(execution_id)
            status = replace(status, latest_run=latest if latest != execution_id else None)
        return await patiently(lambda: whole_status(status, self.operations.artifacts)) if is_whole else status

    async def get_metrics(self, execution_id: str) -> ExecutionMetrics:
        return metrics_of(await patiently(lambda: self.operations.fold(execution_id)))

    async def stream_status(self, execution_id: str) -> AsyncIterator[StatusUpdate]:
        """Every transition, from the beginning; ends with the execution."""
        async for update in self.operations.follow(execution_id):
            yield update

    async def get_logs(self, execution_id: str, task_id: str | None = None) -> Sequence[LogLine]:
        """The log lines of an execution's agents, oldest first; raises UnknownExecution."""
        return await patiently(lambda: lines_of(self.operations, execution_id, task_id))

    async def list(
        self,
        workflow: str | None = None,
        state: str | None = None,
        *,
        started_after: float | None = None,
        started_before: float | None = None,
        needs_attention: bool = False,
        limit: int | None = None,
    ) -> Sequence[ExecutionSummary]:
        """The executions in the log, newest first; times in seconds since the epoch.

        `needs_attention`: those that ended with something that could not be undone, and those that stand still
        because they cannot be folded (`problem`).
        """
        selection = Selection(workflow, state, started_after, started_before, needs_attention, limit)
        return await patiently(lambda: self.operations.select(selection))

    async def coordinators(self) -> Sequence[Standing]:
        """How every coordinator that answers within a second stands: its shards, its counts, what it holds still."""
        return await patiently(self.operations.standings)

    # Control.

    @property
    def controls(self) -> Controls:
        return Controls(self.operations)

    async def cancel(self, execution_id: str, reason: str = "", grace: float | str | None = None) -> None:
        """Asks for an execution to be cancelled; `grace` (seconds, or text) goes before the workflow's own.

        Raises UnknownExecution, InvalidDefinition for a grace that is none.
        """
        grace_s = None if grace is None else parse_duration(grace, "grace", zero_allowed=True)
        await patiently(lambda: self.controls.cancel(execution_id, reason, grace_s))

    async def pause(self, execution_id: str, reason: str = "") -> None:
        """Holds an execution: what runs goes on, nothing more is begun. Raises UnknownExecution, WrongState."""
        await self.controls.pause(execution_id, reason)

    async def resume(self, execution_id: str, reason: str = "") -> None:
        """Lets a paused execution go on, and one that is quarantined, once why is put right.

        Raises UnknownExecution, WrongState, ExecutionQuarantined.
        """
        await self.controls.resume(execution_id, reason)

    async def retry(self, execution_id: str, reason: str = "") -> None:
        """Reopens an execution that failed or was cancelled: what did not complete runs again, the rest is kept.

        Raises UnknownExecution, WrongState.
        """
        await self.controls.retry(execution_id, reason)

    async def compensate(self, execution_id: str, reason: str = "") -> None:
        """Takes an incomplete compensation up again. Raises UnknownExecution, WrongState."""
        await self.controls.compensate(execution_id, reason)

    async def bulk(
        self,
        command: str,
        *,
        workflow: str | None = None,
        state: str | None = None,
        older_than: float | str | None = None,
        reason: str = "",
        grace: float | str | None = None,
        dry_run: bool = False,
    ) -> Sequence[Asked]:
        """Gives a command (`cancel`, `pause`, `resume`, `retry`, `compensate`) to all executions it has a meaning for.

        `older_than` is how long ago they were started; with `dry_run` none is asked. Raises InvalidDefinition.
        """
        return await self.controls.bulk(
            command,
            workflow=workflow,
            state=state,
            older_than_s=None if older_than is None else parse_duration(older_than, "older_than"),
            reason=reason,
            grace_s=None if grace is None else parse_duration(grace, "grace", zero_allowed=True),
            dry_run=dry_run,
        )

    async def purge(
        self,
        execution_ids: Iterable[str] | None = None,
        *,
        workflow: str | None = None,
        state: str | None = None,
        older_than: float | str | None = None,
        dry_run: bool = False,
    ) -> Sequence[Asked]:
        """Takes executions that ended out of the log: those of these ids, or all that the filter means.

        `older_than` is how long ago they ended. Answers them, the oldest first; one that must stay has a `problem`, or,
        named by its id, is an error, and then none is purged. Raises UnknownExecution, WrongState, InvalidDefinition,
        PurgeRefused.
        """
        return await Purges(self.operations).purge(
            None if execution_ids is None else list(execution_ids),
            workflow=workflow,
            state=state,
            older_than_s=None if older_than is None else parse_duration(older_than, "older_than"),
            dry_run=dry_run,
        )

    async def fork(
        self,
        execution_id: str,
        from_task: str | None = None,
        changes: Mapping[str, Any] | None = None,
        new_id: str | None = None,
    ) -> str:
        """Starts an execution that does `from_task` and all after it again; the other results are brought along.

        `changes`: `input`, `results` (by task, in place of what they were), `config` (keys by task). `from_task` None
        does everything again. Answers the new id. Raises UnknownExecution, UnknownTask, InvalidDefinition,
        WorkflowPaused, NoCoordinator, ExecutionExists for a `new_id` that is there.
        """
        await self.find_coordinator()
        return await Forks(self.operations).fork(execution_id, from_task, changes, new_id)

    async def latest_run(self, execution_id: str) -> str:
        """The id of the last run of an execution id: itself, or `<id>-r<n>`. Raises UnknownExecution."""
        return (await patiently(lambda: Runs(self.operations).latest(execution_id))).execution

    async def lineage(self, execution_id: str) -> Lineage:
        """What an execution was started from, what was started from it, and its retries. Raises UnknownExecution."""
        return await patiently(lambda: lineage_of(self.operations, execution_id))

    async def approvals(self, workflow: str | None = None) -> Sequence[Approval]:
        """What waits for a decision now, the longest first; at most 1,000."""

        found = await patiently(lambda: Approvals(self.operations).pending(workflow))
        return await patiently(lambda: whole_approvals(found, self.operations.artifacts))

    async def approve(
        self, execution_id: str, task_id: str | None = None, *, by: str = "", comment: str = "", data: Any = None
    ) -> None:
        """Approves what a task waits for; `data` is edited data that goes on with the decision.

        `task_id` may be left out where only one waits. Raises UnknownExecution, UnknownTask, WrongState.
        """
        await Approvals(self.operations).decide(execution_id, task_id, APPROVE, by=by, comment=comment, data=data)

    async def reject(
        self, execution_id: str, task_id: str | None = None, *, by: str = "", comment: str = "", data: Any = None
    ) -> None:
        """Rejects what a task waits for; else as `approve`."""
        await Approvals(self.operations).decide(execution_id, task_id, REJECT, by=by, comment=comment, data=data)

    async def versions(self, workflow: str | None = None) -> Sequence[VersionSummary]:
        """The versions of a workflow, or of all, each with how many open executions run on it; the newest first.

        Raises UnknownWorkflow.
        """
        return await patiently(lambda: Versions(self.operations).summaries(workflow))

    async def diff(self, workflow: str, before: str, after: str) -> Sequence[Difference]:
        """What differs between two versions, each named by its version, its hash's beginning, or `deployed`.

        Raises UnknownWorkflow, UnknownVersion.
        """
        return await patiently(lambda: Versions(self.operations).diff(workflow, before, after))

    async def pause_workflow(self, workflow: str, *, running: bool = False) -> Sequence[Asked]:
        """Nothing starts a workflow any more; with `running` its open executions are paused, too.

        Raises UnknownWorkflow.
        """
        return await self.controls.pause_workflow(workflow, running=running)

    async def resume_workflow(self, workflow: str, *, running: bool = False) -> Sequence[Asked]:
        """Lets a workflow be started again; with `running` its paused executions go on, too. Raises UnknownWorkflow."""
        return await self.controls.resume_workflow(workflow, running=running)

    async def dead_letters(self, agent: str | None = None) -> Sequence[DeadLetter]:
        """The work that could not be done, of one agent or of all, the newest first."""
        return await patiently(lambda: DeadOperations(self.operations).letters(agent))

    async def dead_letter(self, id: str) -> Sequence[DeadLetter]:
        """The letters of an id as listed, or of an execution, or of `<execution>/<task>`. Raises UnknownDeadLetter."""
        return await patiently(lambda: DeadOperations(self.operations).find(id))

    async def replay_dead_letter(self, id: str, reason: str = "") -> Sequence[DeadLetter]:
        """Takes the execution of a letter up again, as `retry`; answers its letters, which are gone then.

        Raises UnknownDeadLetter, and WrongState for an execution that has not ended.
        """
        return await DeadOperations(self.operations).replay(id, reason)

    async def discard_dead_letter(self, id: str) -> Sequence[DeadLetter]:
        """Takes letters away; their executions stay as they are. Raises UnknownDeadLetter."""
        return await patiently(lambda: DeadOperations(self.operations).discard(id))

    async def pause_agent(self, agent: str, duration: float | str | None = None) -> float | None:
        """Gives an agent no more work, in whichever process, for `duration` or until it is resumed.

        Answers until when, in seconds since the epoch, None when that is open. Raises UnknownAgent, InvalidDefinition.
        """
        for_s = None if duration is None else parse_duration(duration, "duration")
        return await pause_agent(await self.operations.session(), self.operations.subjects, agent, for_s)

    async def resume_agent(self, agent: str) -> None:
        """Gives an agent work again. Raises UnknownAgent."""
        await resume_agent(await self.operations.session(), self.operations.subjects, agent)

    async def signal(self, execution_id: str, name: str, data: Any = None, signal_id: str | None = None) -> None:
        """Sends a signal to an execution, kept until a task waits for it; the same `signal_id` counts once."""
        id = new_execution_id() if signal_id is None else signal_id
        await across_sessions(lambda: self.operations.signal(execution_id, name, data, id))

    async def trigger(self, event: str, data: Any = None, event_id: str | None = None) -> None:
        """Publishes an event; the same `event_id` within ten minutes counts once. Raises StorageUnavailable."""
        await self.operations.publish_event(event, data, event_id)

    async def find_coordinator(self) -> None:
        """Raises NoCoordinator when none answers for 5 s."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + COORDINATOR_TIMEOUT_S
        if loop.time() - self._coordinator_seen_at < COORDINATOR_SEEN_S:
            return
        while True:
            try:
                session = await self.operations.session()
                await session.request(self.operations.subjects.api("ping"), b"", deadline - loop.time())
            except (NoResponders, RequestTimeout, SessionLost):
                if loop.time() + COORDINATOR_RETRY_S >= deadline:
                    raise NoCoordinator(COORDINATOR_TIMEOUT_S) from None
                await asyncio.sleep(COORDINATOR_RETRY_S)
            else:
                self._coordinator_seen_at = loop.time()
                return

    async def _start(self, workflow: str, digest: str, input: Any, execution_id: str | None, how: "_How") -> str:
        # Chosen once: whether a start arrived that the connection broke under, the next one tells.
        id = execution_id or new_execution_id()
        if execution_id is None:
            start = self.operations.start
            return await across_sessions(start, workflow, digest, input, id, priority=how.priority, is_new=True)
        start_run = Runs(self.operations).start
        return await across_sessions(start_run, workflow, digest, input, id, how.if_exists, how.priority)

    async def _run(
        self, workflow: str, digest: str, input: Any, execution_id: str | None, timeout_s: float | None, how: "_How"
    ) -> ExecutionResult:
        if execution_id is not None and how.if_exists is not IfExists.REJECT:
            async with asyncio.timeout(timeout_s):
                return await self._wait(await self._start(workflow, digest, input, execution_id, how), None)
        execution = execution_id or new_execution_id()
        async with self._naming_untaken(execution), asyncio.timeout(timeout_s):
            result = await self.operations.run(
                workflow, digest, input, execution, is_new=execution_id is None, priority=how.priority
            )
            return await self._whole(result)

    async def _wait(self, execution_id: str, ends_at: float | None) -> ExecutionResult:
        async with self._naming_untaken(execution_id), asyncio.timeout_at(ends_at):
            return await self._whole(result_of(await self.operations.wait(execution_id)))

    async def _whole(self, result: ExecutionResult) -> ExecutionResult:
        return await patiently(lambda: whole_result(result, self.operations.artifacts))

    @asynccontextmanager
    async def _naming_untaken(self, execution_id: str) -> AsyncIterator[None]:
        naming = asyncio.create_task(self._name_untaken(execution_id)) if self.names_untaken else None
        try:
            yield
        finally:
            if naming is not None:
                naming.cancel()
                await asyncio.gather(naming, return_exceptions=True)

    async def _name_untaken(self, execution_id: str) -> None:
        """Names on stderr each agent that nobody runs while a task waits for it."""
        named: set[str] = set()
        while True:
            await asyncio.sleep(UNTAKEN_AFTER_S)
            try:
                status = await self.get_status(execution_id, is_whole=False)
            except InfinityMatrixError:
                continue
            waiting: dict[str, str] = {}
            for task in status.tasks.values():
                if task.state == TaskState.QUEUED and task.agent not in named:
                    waiting.setdefault(task.agent, task.id)
            for agent, task_id in waiting.items():
                problem = await self._problem_of(agent)
                if problem is not None:
                    named.add(agent)
                    sys.stderr.write(f"infinity-matrix: task {task_id!r} waits: {problem} (execution {execution_id})\n")

    async def _problem_of(self, agent: str) -> str | None:
        """Why nobody takes the work of an agent; None when somebody may."""
        session = await self.operations.session()
        info = await JetStreamApi(session).consumer_info(self.operations.subjects.work_stream, agent)
        if info is not None and is_paused(info):
            return f"agent {agent!r} is paused"
        if info is not None and (info.get("num_waiting", 0) or info.get("num_ack_pending", 0)):
            return None
        try:
            # One that has a rate asks for no work while it may begin none.
            await session.request(f"$SRV.PING.{agent}", b"", PING_TIMEOUT_S)
        except NoResponders:
            return f"no agent {agent!r} is running"
        except (RequestTimeout, SessionLost):
            return None
        return None
