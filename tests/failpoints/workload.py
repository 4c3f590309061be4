"""What the processes are given to do while one of them dies: every kind of thing that makes a message."""

import asyncio
import datetime
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from infinity_matrix_actors.definition import (
    CHILD_AGENT,
    ChildDefinition,
    ClosePolicy,
    RetryDefinition,
    SlotsDefinition,
    TaskDefinition,
    TriggerDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.errors import ExecutionExists, InfinityMatrixError
from infinity_matrix_actors.schedule import new_schedule
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

AGAIN_S = 0.25
AGENT = "worker"
#: Nobody serves it.
NOBODY = "nobody"
LARGE_INPUT = {"text": "y" * 400_000}
QUICK = RetryDefinition(3, initial_delay=0.1)
Answer = TypeVar("Answer")


def task(id: str, *depends_on: str, agent: str = AGENT, config: dict[str, Any] | None = None, **more: Any) -> Any:
    return TaskDefinition(id, agent, depends_on, config=config or {}, **more)


CHAIN = WorkflowDefinition(
    "chain",
    (
        task("a", config={"failures": 1}, retry=QUICK),
        task("b", "a", config={"seconds": 0.3, "says": True}),
        task("c", "b"),
    ),
    triggers=(TriggerDefinition("begin"),),
)
SAGA = WorkflowDefinition(
    "saga",
    (task("a"), task("b", "a"), task("c", "b", config={"failures": 9})),
    on_failure=(task("undo-a", compensates="a", retry=QUICK), task("undo-b", compensates="b", retry=QUICK)),
)
SLOW = WorkflowDefinition(
    "slow",
    (
        # Long enough to be told to end before it has ended, also where 40 worlds share two cores.
        task("a", config={"seconds": 2.0, "stubborn": True}, timeout=0.4),
        task("b", "a", agent=NOBODY, queue_timeout=0.5, run_when="all_settled"),
    ),
)
CHILD = WorkflowDefinition("child", (task("only"),))
PARENT = WorkflowDefinition("parent", (replace(task("a"), agent=CHILD_AGENT, child=ChildDefinition("child")),))
LONG_CHILD = WorkflowDefinition("long-child", (TaskDefinition("a", sleep=600.0),))
#: Its own deadline passes, and its child is told to end.
DEADLINE = WorkflowDefinition(
    "deadline",
    (replace(task("a"), agent=CHILD_AGENT, child=ChildDefinition("long-child", close=ClosePolicy.CANCEL)),),
    timeout=1.0,
    grace=0.2,
)
KEYED = WorkflowDefinition("keyed", (task("a"),), slots=SlotsDefinition(1))
WAITS = WorkflowDefinition(
    "waits", (TaskDefinition("a", sleep=0.3), TaskDefinition("b", depends_on=("a",), wait_for="go"))
)
#: The condition is about what stands in the store.
LARGE = WorkflowDefinition("large", (task("a", config={"large": True}), task("b", "a", condition="a.result != ''")))
#: Long enough for the sweep to look for it, and for its signs of life to be asked for.
LONG = WorkflowDefinition("long", (task("a", config={"seconds": 4.0, "says": True}, heartbeat_timeout=2.0),))
#: Its agent is served in another version at first, which passes it on.
WORN = WorkflowDefinition("worn", (task("a", agent="other"),), version="2")
CANCELLED = WorkflowDefinition("cancelled", (task("a", config={"seconds": 30.0}),), grace=0.5)
DEFINITIONS = (CHAIN, SAGA, SLOW, CHILD, PARENT, LONG_CHILD, DEADLINE, KEYED, WAITS, LARGE, LONG, WORN, CANCELLED)


def say(text: str) -> None:
    """Shown by pytest when the test fails."""
    sys.stdout.write(f"{text}\n")


async def again(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Until it is confirmed, as a client does."""
    while True:
        try:
            return await call()
        except ExecutionExists:
            raise
        except InfinityMatrixError:
            await asyncio.sleep(AGAIN_S)


class Workload:
    """Everything once, and what was started before the first coordinator is live a second time."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._digests: dict[str, str] = {}
        self.executions: list[str] = []

    async def prepare(self) -> None:
        """Stores the definitions, and starts what the first owner of the log has to find there."""
        for definition in DEFINITIONS:
            digest = await again(lambda d=definition: self._operations.deploy(d))  # type: ignore[misc]
            self._digests[definition.name] = digest
        for name in ("chain", "saga", "large"):
            await self._start(name, f"early-{name}")

    async def run(self) -> None:
        """Starts everything."""
        names = ("chain", "saga", "slow", "parent", "deadline", "keyed", "keyed", "waits", "long", "worn", "cancelled")
        for number, name in enumerate(names):
            await self._start(name, f"{name}-{number}")
        await self._start("large", "large", LARGE_INPUT)
        # Until somebody has it.
        await asyncio.sleep(0.2)
        await again(lambda: self._operations.cancel(self._of("cancelled"), "enough"))
        await again(lambda: self._operations.signal(self._of("waits"), "go", {"n": 1}, "one"))
        await again(lambda: self._operations.publish_event("begin", {"n": 1}, "event"))
        # What other programs may send: a definition, and work that is none.
        await again(lambda: self._ask("deploy", {"name": "deployed", "tasks": [{"id": "a", "agent": AGENT}]}))
        await again(lambda: self._request(self._operations.subjects.work(AGENT, "e", "a", 1), b"garbage"))
        # What operators may ask for, which changes nothing that lasts.
        await again(lambda: self._ask("agent.pause", {"agent": "other", "for": 0.2}))
        await again(lambda: self._ask("dead.show", {"id": "nothing"}))
        await again(self._schedule)

    async def _schedule(self) -> None:
        # In a moment, whenever it is that this succeeds.
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2.0)
        schedule = new_schedule("soon", "child", run_at=at, definition=self._digests["child"])
        await ScheduleOperations(self._operations).create(schedule)

    def _of(self, workflow: str) -> str:
        return next(execution for execution in self.executions if execution.startswith(f"{workflow}-"))

    async def _ask(self, verb: str, body: dict[str, Any]) -> bytes:
        return await self._request(self._operations.subjects.api(verb), json.dumps(body).encode())

    async def _request(self, subject: str, payload: bytes) -> bytes:
        return await (await self._operations.session()).request(subject, payload)

    async def _start(self, name: str, execution: str, input: Any = None) -> None:
        await again(lambda: self._operations.start(name, self._digests[name], input, execution))
        self.executions.append(execution)
