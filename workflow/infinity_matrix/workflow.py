"""A workflow as users write it: tasks, policies and triggers, and everything that can be done with it."""

import datetime
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from infinity_matrix_actors.definition import GRACE_S, WorkflowDefinition
from infinity_matrix_actors.document import (
    TaskDocument,
    TriggerDocument,
    WorkflowDocument,
    define,
    parse_document,
    parse_task,
    parse_trigger,
)
from infinity_matrix_actors.document_file import load_document
from infinity_matrix_actors.errors import InvalidDefinition, InvalidInput
from infinity_matrix_actors.fact import Priority
from infinity_matrix_actors.schedule import CATCH_UP_S, Overlap
from infinity_matrix_coordinator.log_lines import LogLine
from infinity_matrix_coordinator.runs import IfExists
from infinity_matrix_coordinator.views import (
    ExecutionMetrics,
    ExecutionResult,
    ExecutionStatus,
    StatusUpdate,
)
from pydantic import BaseModel, ValidationError

from infinity_matrix.agents import until_told_to_stop
from infinity_matrix.client import Client
from infinity_matrix.host import hosted
from infinity_matrix.policy import Policy, policy_data, policy_documents
from infinity_matrix.resolution import opened
from infinity_matrix.schedule import ScheduleHandle, schedule_workflow, settled

DOCUMENT_BYTES_MAX = 1024 * 1024


class Task:
    """A node of the graph: `agent` does the work once the tasks in `depends_on` are settled.

    With `wait_for`, `sleep` or `until` in place of `agent` it waits for a signal or for time.

    Takes the fields of a task in a definition file; durations are seconds or text such as "90s", "5m", "1h".
    Raises InvalidDefinition for what cannot be.
    """

    def __init__(self, id: str, agent: str | None = None, **fields: Any) -> None:
        compensation = fields.get("compensation")
        if isinstance(compensation, Task):
            fields["compensation"] = compensation.document
        self.document: TaskDocument = parse_task(id=id, **({"agent": agent} if agent is not None else {}), **fields)

    @classmethod
    def _of(cls, document: TaskDocument) -> "Task":
        task = cls.__new__(cls)
        task.document = document
        return task

    @property
    def id(self) -> str:
        return self.document.id

    def __repr__(self) -> str:
        return f"Task({self.document.id!r}, agent={self.document.agent!r})"


class Trigger:
    """An event that starts an execution: `event` is what follows `im.trigger.`, `filter` is CEL over `event`."""

    def __init__(self, event: str, filter: str | None = None) -> None:
        self.document: TriggerDocument = parse_trigger(event=event, filter=filter)

    def __repr__(self) -> str:
        return f"Trigger({self.document.event!r})"


class Workflow:
    """A definition under way: add tasks, then run it. Checked whole when it is stored, or by `validate`."""

    def __init__(
        self,
        name: str,
        version: str = "1",
        *,
        timeout: float | str | None = None,
        description: str = "",
        grace: float | str = GRACE_S,
        tasks: Iterable[Task] = (),
        triggers: Iterable[Trigger] = (),
        on_failure: Iterable[Task] = (),
        on_error: Policy = None,
        on_task_failure: Policy = None,
        **fields: Any,
    ) -> None:
        """Takes besides: `input_schema`, `max_running`, `key`, `callback_timeout`, and what else a document has."""
        fields |= {"name": name, "version": version, "description": description, "grace": grace}
        if timeout is not None:
            fields["timeout"] = timeout
        self._document: WorkflowDocument = parse_document(fields)
        schema = fields.get("input_schema")
        #: What only this process has of its input: the validators of its model.
        self._input_model = schema if isinstance(schema, type) and issubclass(schema, BaseModel) else None
        self._tasks: list[TaskDocument] = []
        self._triggers: list[TriggerDocument] = []
        self.add_tasks(tasks)
        for trigger in triggers:
            self.add_trigger(trigger)
        #: What runs when an execution fails or is cancelled: compensations, then the others in this order.
        self.on_failure: list[Task] = list(on_failure or ())
        #: What to do when an execution fails: an action, several, or a function of the error that answers with them.
        self.on_error: Policy = on_error
        #: The same for a task that has spent its retries; a function is given the task and the error.
        self.on_task_failure: Policy = on_task_failure

    @classmethod
    def from_file(cls, path: str | Path) -> "Workflow":
        """Reads a definition from YAML or JSON, at most 1 MiB; raises InvalidDefinition, saying where."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                text = file.read(DOCUMENT_BYTES_MAX + 1)
        except OSError as error:
            raise InvalidDefinition(f"cannot be read: {error.strerror}", where=str(path)) from error
        return cls._of(load_document(text, path.name))

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Workflow":
        """A workflow from the plain data a definition file holds."""
        return cls._of(parse_document(document))

    @classmethod
    def _of(cls, document: WorkflowDocument) -> "Workflow":
        workflow = cls.__new__(cls)
        workflow._document = document
        workflow._input_model = None
        workflow._tasks = list(document.tasks)
        workflow._triggers = list(document.triggers)
        workflow.on_failure = [Task._of(task) for task in document.on_failure]
        workflow.on_error = policy_data(document.on_error)
        workflow.on_task_failure = policy_data(document.on_task_failure)
        workflow.validate()
        return workflow

    @property
    def name(self) -> str:
        return self._document.name

    @property
    def version(self) -> str:
        return self._document.version

    @property
    def task_ids(self) -> list[str]:
        return [task.id for task in self._tasks]

    def task(self, id: str) -> Task:
        """The task of that id, also one of `on_failure`; raises KeyError."""
        for document in self._tasks:
            if document.id == id:
                return Task._of(document)
        for task in self.on_failure:
            if task.id == id:
                return task
        raise KeyError(id)

    def add_task(self, task: Task) -> "Workflow":
        """Adds a task; raises InvalidDefinition when its id is taken."""
        return self.add_tasks([task])

    def add_tasks(self, tasks: Iterable[Task]) -> "Workflow":
        """Adds tasks, all or none; raises InvalidDefinition when an id is taken."""
        added = list(tasks)
        known = set(self.task_ids)
        for task in added:
            if not isinstance(task, Task):
                raise InvalidDefinition(f"{task!r} is no Task", where=f"workflow {self.name!r}")
            if task.id in known:
                raise InvalidDefinition(f"the task id {task.id!r} is used twice", where=f"workflow {self.name!r}")
            known.add(task.id)
        self._tasks.extend(task.document for task in added)
        return self

    def add_trigger(self, trigger: Trigger) -> "Workflow":
        self._triggers.append(trigger.document)
        return self

    def definition(self) -> WorkflowDefinition:
        """The definition as it is stored; raises InvalidDefinition, naming what is wrong and where."""
        on_failure = [self._undoing(task) for task in self.on_failure or ()]
        parts = {"tasks": self._tasks, "triggers": self._triggers, "on_failure": on_failure}
        parts["on_error"] = policy_documents(self.on_error, "on_error")
        parts["on_task_failure"] = policy_documents(self.on_task_failure, "on_task_failure")
        return define(self._document.model_copy(update=parts))

    def _undoing(self, task: object) -> TaskDocument:
        if not isinstance(task, Task):
            hint = "Task(id=..., agent=...)"
            raise InvalidDefinition(f"{task!r:.100} is no Task", where=f"workflow {self.name!r}, on_failure", hint=hint)
        return task.document

    def validate(self) -> "Workflow":
        """Checks everything that can be checked without running; raises InvalidDefinition."""
        self.definition()
        return self

    def schedule(
        self,
        cron: str | None = None,
        run_at: datetime.datetime | str | None = None,
        timezone: str = "UTC",
        *,
        name: str | None = None,
        input: Any = None,
        overlap: str = Overlap.SKIP,
        catch_up: float | str | datetime.timedelta = CATCH_UP_S,
        jitter: float | str | datetime.timedelta = 0,
        start: datetime.datetime | str | None = None,
        end: datetime.datetime | str | None = None,
        limit: int | None = None,
        priority: str = Priority.NORMAL,
        paused: bool = False,
    ) -> ScheduleHandle:
        """Lets executions begin by themselves: at every time of `cron`, or once at `run_at`. Replaces one of that name.

        Raises InvalidDefinition at once. Where no event loop runs it returns when the schedule is stored, or raises
        within 10 s; in a running loop the next await on this workflow raises, or `await` of the handle.
        """
        fields = {"cron": cron, "run_at": run_at, "input": input, "overlap": overlap, "catch_up": catch_up}
        fields |= {"jitter": jitter, "start": start, "end": end, "limit": limit, "priority": priority}
        return schedule_workflow(self, name, timezone, is_paused=paused, **fields)

    async def deploy(self) -> str:
        """Stores the definition with its schedules and arms its triggers, in place of an earlier version's."""
        definition = self.definition()
        async with self._opened() as client:
            return await client.deploy(definition)

    async def undeploy(self) -> None:
        """Disarms the triggers; what runs goes on. Raises UnknownWorkflow when it was never deployed."""
        async with self._opened() as client:
            await client.undeploy(self.name)

    async def start(
        self,
        input: Any = None,
        execution_id: str | None = None,
        *,
        if_exists: str = IfExists.REJECT,
        priority: str = Priority.NORMAL,
    ) -> str:
        """Starts an execution and answers its id, as soon as that is a fact in the log.

        `if_exists` says what to do when the id is there: `reject` (the same again is answered, other content refused),
        `return` its last run, `cancel` that and start `<id>-r2`, `rerun_failed`. `priority`: high, normal or low.
        Raises ExecutionExists when the id is taken by other content, WorkflowPaused, NoCoordinator when none answers
        for 5 s, InvalidInput for one that is not as `input_schema` says.
        """
        definition = self.definition()
        self._check_input(input)
        async with self._opened() as client:
            return await client.start_definition(
                definition, input, execution_id, if_exists=if_exists, priority=priority
            )

    async def execute(
        self,
        input: Any = None,
        execution_id: str | None = None,
        *,
        timeout: float | None = None,
        if_exists: str = IfExists.REJECT,
        priority: str = Priority.NORMAL,
    ) -> ExecutionResult:
        """Starts an execution and waits for its result; a failed result is answered, not raised.

        Cancelling this call leaves the execution running; so does `timeout` (seconds), which raises TimeoutError.
        Raises besides what `start` raises.
        """
        definition = self.definition()
        self._check_input(input)
        async with self._opened(serves_agents=True) as client:
            return await client.execute_definition(
                definition, input, execution_id, timeout=timeout, if_exists=if_exists, priority=priority
            )

    def _check_input(self, input: Any) -> None:
        if self._input_model is None or isinstance(input, self._input_model):
            return
        try:
            self._input_model.model_validate(input)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(self.name, f"{where}: {first['msg']}" if where else first["msg"]) from None

    async def wait(self, execution_id: str, timeout: float | None = None) -> ExecutionResult:
        """The result of an execution once it has ended; raises UnknownExecution, and TimeoutError after `timeout` s."""
        async with self._opened(serves_agents=True) as client:
            return await client.wait(execution_id, timeout)

    async def serve(self) -> None:
        """Answers for the functions `on_error` and `on_task_failure` until cancelled, or until SIGTERM or SIGINT.

        For executions that others start; `execute` and `wait` do it by themselves. Raises Unreachable, NotInstalled.
        """
        async with self._opened(serves_agents=True):
            await until_told_to_stop()

    async def get_status(self, execution_id: str) -> ExecutionStatus:
        """Where an execution stands now, from the log; raises UnknownExecution."""
        async with self._opened() as client:
            return await client.get_status(execution_id)

    async def cancel(self, execution_id: str, reason: str = "", grace: float | str | None = None) -> None:
        """Asks for the execution to be cancelled: running agents are told, then it ends.

        `grace` is how long they have, in seconds or as text; the workflow's own unless given. Raises UnknownExecution.
        """
        async with self._opened() as client:
            await client.cancel(execution_id, reason, grace)

    async def pause(self, execution_id: str, reason: str = "") -> None:
        """Holds the execution: what runs goes on, nothing more is begun. Raises UnknownExecution, WrongState."""
        async with self._opened() as client:
            await client.pause(execution_id, reason)

    async def resume(self, execution_id: str, reason: str = "") -> None:
        """Lets a paused execution go on. Raises UnknownExecution, WrongState."""
        async with self._opened() as client:
            await client.resume(execution_id, reason)

    async def retry(self, execution_id: str, reason: str = "") -> None:
        """Reopens an execution that failed or was cancelled: what did not complete runs again, the rest is kept.

        Raises UnknownExecution, and WrongState for one that runs or completed.
        """
        async with self._opened() as client:
            await client.retry(execution_id, reason)

    async def compensate(self, execution_id: str, reason: str = "") -> None:
        """Takes an incomplete compensation up again. Raises UnknownExecution, WrongState."""
        async with self._opened() as client:
            await client.compensate(execution_id, reason)

    async def fork(
        self,
        execution_id: str,
        from_task: str | None = None,
        changes: Mapping[str, Any] | None = None,
        new_id: str | None = None,
    ) -> str:
        """Starts an execution that does `from_task` and all after it again; the other results are brought along.

        It runs on the definition of the earlier one, whatever this object says. `changes` has `input`, `results` (by
        task, in place of what they were) and `config` (keys by task). Answers the new id. Raises UnknownExecution,
        UnknownTask, InvalidDefinition for changes that cannot be, WorkflowPaused, NoCoordinator.
        """
        async with self._opened() as client:
            return await client.fork(execution_id, from_task, changes, new_id)

    async def signal(self, execution_id: str, name: str, data: Any = None, *, signal_id: str | None = None) -> None:
        """Sends a signal to an execution: the result of the task that waits for it, now or later.

        The same `signal_id` counts once.
        """
        async with self._opened() as client:
            await client.signal(execution_id, name, data, signal_id)

    async def stream_status(self, execution_id: str) -> AsyncIterator[StatusUpdate]:
        """Every transition of the execution, from the beginning, none left out; ends with the execution."""
        async with self._opened() as client:
            async for update in client.stream_status(execution_id):
                yield update

    async def get_metrics(self, execution_id: str) -> ExecutionMetrics:
        """Queue time, run time and attempts per task, and totals; times in seconds."""
        async with self._opened() as client:
            return await client.get_metrics(execution_id)

    async def get_logs(self, execution_id: str, task_id: str | None = None) -> Sequence[LogLine]:
        """The log lines of an execution's agents, oldest first; raises UnknownExecution."""
        async with self._opened() as client:
            return await client.get_logs(execution_id, task_id)

    @asynccontextmanager
    async def _opened(self, *, serves_agents: bool = False) -> AsyncIterator[Client]:
        async with opened(serves_agents=serves_agents) as client:
            await settled(self)
            async with AsyncExitStack() as stack:
                if serves_agents:
                    await stack.enter_async_context(hosted(self, client))
                yield client

    def __repr__(self) -> str:
        return f"Workflow({self.name!r}, version={self.version!r}, tasks={len(self._tasks)})"


__all__ = ["Task", "Trigger", "Workflow"]
