"""The clients of a run: they start executions, meddle with some, and try again until each thing is confirmed."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from random import Random
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.errors import ExecutionExists, InfinityMatrixError, InvalidDefinition, WrongState
from infinity_matrix_actors.fact import Priority
from infinity_matrix_actors.schedule import Overlap, Schedule
from infinity_matrix_actors.state import ExecutionState
from infinity_matrix_coordinator.controls import Controls
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations
from infinity_matrix_coordinator.verification import ClientLine

from .census import Census
from .jetstream import EPOCH_S
from .kinds import Definitions
from .workload import SIGNAL
from .world import World

AGAIN_S = 0.5
POLL_S = 0.5
#: So long an end is waited for, to take the execution up again; and a schedule, to be done.
END_WAIT_S = 60.0
SCHEDULE_POLL_S = 2.0
#: What trying again does not help against.
FINAL = (ExecutionExists, WrongState, InvalidDefinition)
SCHEDULES = (1, 2, 3)


class Client:
    """Starts executions, cancels some and signals others, and tries again until each is confirmed."""

    def __init__(
        self,
        world: World,
        census: Census,
        definitions: Definitions,
        executions: int,
        during_s: float,
        kinds: Collection[str],
    ) -> None:
        self._world = world
        self._census = census
        self._definitions = definitions
        self._executions = executions
        self._during_s = during_s
        self._kinds = kinds
        self.started: set[str] = set()
        #: What was confirmed to it of what it gave to executions.
        self.lines: list[ClientLine] = []
        #: By schedule how many ticks must have their place in the log.
        self.ticks: dict[str, int] = {}
        self.is_done = False
        self.digests: dict[str, WorkflowDefinition] = {}
        #: Of these, a pause may land later than it was given up.
        self._may_be_paused: set[str] = set()

    async def life(self) -> None:
        """Does all of it."""
        operations = await self._world.client()
        for definition in self._definitions.deployed:
            self.digests[await self._again(lambda d=definition: operations.deploy(d))] = definition
        begun = [self._one(operations, number) for number in range(self._executions)]
        if "schedules" in self._kinds:
            count = Random(f"{self._world.seed}/schedules").choice(SCHEDULES)
            begun += [self._schedule(operations, number) for number in range(count)]
        await asyncio.gather(*begun)
        self.is_done = True

    async def _one(self, operations: Operations, number: int) -> None:
        world = self._world
        random = Random(f"{world.seed}/client/{number}")
        await asyncio.sleep(random.random() * self._during_s)
        execution = f"e{number}-{random.getrandbits(32):08x}"
        digest, definition = self._choose(random)
        # What the other kinds of work draw is drawn beside it.
        also = Random(f"{world.seed}/client/{number}/also")
        more: dict[str, Any] = {}
        if "priorities" in self._kinds:
            more["priority"] = also.choice(list(Priority))

        async def start() -> None:
            await self._again(lambda: operations.start(definition.name, digest, None, execution, **more))

        if random.random() < 0.1:
            # A second client starts the same.
            world.faults.count("started twice")
            await asyncio.gather(start(), start())
        else:
            await start()
        self.started.add(execution)
        meddling = [self._meddle(operations, execution, definition, random)]
        if "pauses" in self._kinds and also.random() < 0.6:
            meddling.append(self._pause(operations, execution, also))
        await asyncio.gather(*meddling)
        if "retries" in self._kinds:
            await self._take_up(operations, execution, also)
        if execution in self._may_be_paused:
            await self._unpause(operations, execution)

    def _choose(self, random: Random) -> tuple[str, WorkflowDefinition]:
        started = [(digest, one) for digest, one in self.digests.items() if one in self._definitions.started]
        return random.choice(started)

    async def _meddle(
        self, operations: Operations, execution: str, definition: WorkflowDefinition, random: Random
    ) -> None:
        if any(task.wait_for for task in definition.tasks) and random.random() < 0.7:
            await asyncio.sleep(random.random() * 10.0)
            await self._again(lambda: operations.signal(execution, SIGNAL, {"n": 1}, "one"))
            self.lines.append(ClientLine("signal", execution, id="one"))
        if random.random() < 0.15:
            await asyncio.sleep(random.choice((0.0, 0.003, 0.2, 3.0)))
            self._world.faults.count("cancel")
            await self._again(lambda: operations.cancel(execution, "enough"))
            self.lines.append(ClientLine("cancel", execution))

    # Pauses.

    async def _pause(self, operations: Operations, execution: str, random: Random) -> None:
        controls = Controls(operations)
        try:
            for _ in range(random.choice((1, 1, 2))):
                await asyncio.sleep(random.choice((0.0, 0.01, 0.3, 2.0)))
                self._may_be_paused.add(execution)
                await self._again(lambda: controls.pause(execution))
                self.lines.append(ClientLine("pause", execution))
                self._world.faults.count("paused")
                await asyncio.sleep(random.choice((0.0, 0.01, 1.0, 6.0)))
                await self._again(lambda: controls.resume(execution))
        except WrongState:
            # It has ended meanwhile.
            return

    async def _unpause(self, operations: Operations, execution: str) -> None:
        """Lets it go on whatever came late: who gave a pause up does not know that it did not land."""
        controls = Controls(operations)
        while execution in self._census.open:
            actor = await self._again(lambda: operations.fold(execution))
            if actor.state is ExecutionState.PAUSED:
                try:
                    await self._again(lambda: controls.resume(execution))
                except WrongState:
                    return
            await asyncio.sleep(4 * POLL_S)

    # Taking up.

    async def _take_up(self, operations: Operations, execution: str, random: Random) -> None:
        controls = Controls(operations)
        for _ in range(random.choice((1, 1, 2))):
            waited_s = 0.0
            while execution in self._census.open:
                if waited_s > END_WAIT_S:
                    return
                await asyncio.sleep(POLL_S)
                waited_s += POLL_S
            end = self._census.ends[execution]
            if end["state"] == ExecutionState.COMPLETED or random.random() < 0.2:
                return
            is_undone_further = end.get("compensation") == "incomplete" and random.random() < 0.9
            call = controls.compensate if is_undone_further else controls.retry
            try:
                await self._again(lambda call=call: call(execution))
            except WrongState:
                return
            self.lines.append(ClientLine("compensate" if is_undone_further else "retry", execution))
            self._world.faults.count("undone further" if is_undone_further else "retried")

    # Schedules.

    async def _schedule(self, operations: Operations, number: int) -> None:
        """A schedule that comes due once by itself, and some times because it is asked to."""
        random = Random(f"{self._world.seed}/schedule/{number}")
        schedules = ScheduleOperations(operations)
        await asyncio.sleep(random.random() * self._during_s)
        _, definition = self._choose(random)
        name = f"s{number}"
        due_at = round(EPOCH_S + self._world.loop.now + random.uniform(1.0, 10.0), 3)
        schedule = Schedule(name, definition.name, run_at=due_at, overlap=random.choice(list(Overlap)))
        try:
            await self._again(lambda: schedules.create(schedule))
        except InvalidDefinition:
            # Its time had passed before it could be stored.
            return
        self.ticks[name] = 1
        for request in range(random.choice((0, 1, 2, 3))):
            await asyncio.sleep(random.choice((0.0, 0.1, 3.0)))
            overlap = random.choice((None, Overlap.SKIP, Overlap.BUFFER_ONE, *Overlap))
            self.ticks[name] += 1
            await self._again(lambda r=request, o=overlap: schedules.trigger(name, o, f"r{r}"))
        while True:
            view = await self._again(lambda: schedules.show(name))
            if not view.waiting and not view.upcoming:
                return
            await asyncio.sleep(SCHEDULE_POLL_S)

    @staticmethod
    async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await call()
            except FINAL:
                raise
            except InfinityMatrixError:
                await asyncio.sleep(AGAIN_S)
