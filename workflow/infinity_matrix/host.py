"""The host of a workflow: the process whose functions answer what is to be done about a failure.

The question comes as work for the agent `im-host-<definition>`, and the answer is its result; so a question waits for
the host, and of several hosts one is asked.
"""

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from infinity_matrix_actors.definition import host_agent
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_agents import Agent, AgentRunner, Failure, Work
from infinity_matrix_agents.calling import called

from infinity_matrix.client import Client
from infinity_matrix.policy import checked_actions

if TYPE_CHECKING:
    from infinity_matrix.workflow import Workflow

#: Questions to one workflow that are answered at once in a process.
HOST_CONCURRENCY = 16
HOST_DRAIN_S = 5.0
ON_ERROR = "on_error"
ON_TASK_FAILURE = "on_task_failure"
_WIRE_NAMES = {"task": "task_id", "execution": "execution_id"}


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """The error a function is asked about. Its fields can be had as `error["type"]`, too."""

    type: str
    message: str
    #: The task that failed; None when it is none's failure, such as a workflow's timeout.
    task_id: str | None
    execution_id: str
    workflow: str
    #: The attempts the task has had; None in `on_error`.
    attempt: int | None
    retryable: bool

    def __getitem__(self, key: str) -> Any:
        """The field of that name; raises KeyError."""
        return asdict(self)[_WIRE_NAMES.get(key, key)]

    def get(self, key: str, default: Any = None) -> Any:
        """The field of that name, `default` where there is none."""
        try:
            return self[key]
        except KeyError:
            return default


class Host:
    """Asks the functions of `workflow`. A later object with the same definition may take its place."""

    def __init__(self, workflow: "Workflow", digest: str) -> None:
        self.workflow = workflow
        self.agent = Agent.built_in(host_agent(digest), self.answer, concurrency=HOST_CONCURRENCY)

    async def answer(self, work: Work) -> list[dict[str, Any]]:
        """The actions for one question; raises a Failure when there is no function, or its answer is none."""
        callback = work.config.get("callback")
        function: Any = None
        if callback == ON_ERROR:
            function = self.workflow.on_error
        elif callback == ON_TASK_FAILURE:
            function = self.workflow.on_task_failure
        if not callable(function):
            raise Failure("NoCallback", f"{self.workflow!r} has no function {callback}", retryable=False)
        error = _report(work)
        if callback == ON_ERROR:
            answer = await _called(function, error)
        else:
            answer = await _called(function, self._task(error.task_id), error)
        try:
            return checked_actions(answer, f"the answer of {callback}")
        except InvalidDefinition as problem:
            raise Failure("InvalidAnswer", str(problem), retryable=False) from None

    def _task(self, task_id: str | None) -> Any:
        try:
            return self.workflow.task((task_id or "").partition("~")[0])
        except KeyError:
            raise Failure("UnknownTask", f"{self.workflow!r} has no task {task_id!r}", retryable=False) from None


def _report(work: Work) -> ErrorReport:
    config = work.config
    found = config.get("error")
    error: dict[str, Any] = found if isinstance(found, dict) else {}
    task = config.get("task") or error.get("task")
    attempt = config.get("attempt")
    return ErrorReport(
        type=str(error.get("type") or "error"),
        message=str(error.get("message") or ""),
        task_id=None if task is None else str(task),
        execution_id=work.execution,
        workflow=work.workflow,
        attempt=attempt if isinstance(attempt, int) else None,
        retryable=error.get("retryable") is not False,
    )


async def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function answers: an async one here, any other in a thread, where it may block."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    context = contextvars.copy_context()
    answer = await asyncio.to_thread(context.run, called, function, *arguments)
    # A lambda around an async function.
    return await answer if inspect.isawaitable(answer) else answer


@dataclass(slots=True)
class _Served:
    host: Host
    runner: AgentRunner
    users: int = 0


class _Hosts:
    """The hosts of one client. Overlapping calls with the same definition share one."""

    def __init__(self) -> None:
        self._served: dict[str, _Served] = {}
        self._lock = asyncio.Lock()

    async def acquire(self, workflow: "Workflow", client: Client, digest: str) -> None:
        async with self._lock:
            served = self._served.get(digest)
            if served is None:
                host = Host(workflow, digest)
                runner = await AgentRunner(host.agent, client.connection, client.prefix).open()
                served = self._served[digest] = _Served(host, runner)
            served.host.workflow = workflow
            served.users += 1

    async def release(self, digest: str) -> None:
        async with self._lock:
            served = self._served[digest]
            served.users -= 1
            if served.users == 0:
                del self._served[digest]
                await served.runner.close(HOST_DRAIN_S)


_hosts: WeakKeyDictionary[Client, _Hosts] = WeakKeyDictionary()


def has_functions(workflow: "Workflow") -> bool:
    """Whether a function of `workflow` is to be asked about failures."""
    return callable(workflow.on_error) or callable(workflow.on_task_failure)


@asynccontextmanager
async def hosted(workflow: "Workflow", client: Client) -> AsyncIterator[None]:
    """Answers for the functions of `workflow` during the block; does nothing for one without."""
    if not has_functions(workflow):
        yield
        return
    digest = workflow.definition().digest()
    hosts = _hosts.setdefault(client, _Hosts())
    await hosts.acquire(workflow, client, digest)
    try:
        yield
    finally:
        await hosts.release(digest)


@asynccontextmanager
async def all_hosted(workflows: "list[Workflow]", client: Client) -> AsyncIterator[None]:
    """Answers for all of these during the block."""
    async with AsyncExitStack() as stack:
        for workflow in workflows:
            await stack.enter_async_context(hosted(workflow, client))
        yield
