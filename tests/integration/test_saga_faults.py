"""A fault at every task of a saga, forward and undoing: no effect remains that was not undone or reported.

Agents journal what they did outside and what they undid; that is held against the result, the log and the checker.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from effects import Effects, effects_of, unaccounted
from harness import Process, World, set_ack_wait, until
from history import history_of, lines_of, verify
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_coordinator.saga import LEASE_S
from infinity_matrix_coordinator.verification import partly_checked
from infinity_matrix_coordinator.views import ExecutionResult
from nats.aio.client import Client as Nats
from plain import connected

#: A chain with a parallel part; after it comes `close`, which fails, so that whatever survived its fault is undone too.
GRAPH = {"flight": [], "hotel": ["flight"], "car": ["flight"], "pay": ["hotel", "car"], "ticket": ["pay"]}
FORWARD = tuple(GRAPH)
UNDOING = tuple(f"undo-{task}" for task in FORWARD)
ACK_WAIT_S = 1.5
END_S = 40.0


@dataclass(frozen=True)
class Cell:
    """One fault at one task. `fields` are more of that task, `agent` who does it in the place of the usual one."""

    at: str
    fault: str
    config: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    agent: str = "desk"
    #: The task of which the effect remains, because its compensation cannot succeed.
    remaining: str | None = None

    @property
    def name(self) -> str:
        return f"{self.fault}-at-{self.at}"

    def workflow(self) -> Workflow:
        tasks = []
        for name, above in GRAPH.items():
            undo = Task(f"undo-{name}", self._agent(f"undo-{name}"), **self._fields(f"undo-{name}"))
            tasks.append(Task(name, self._agent(name), depends_on=above, compensation=undo, **self._fields(name)))
        tasks.append(Task("close", "desk", depends_on=["ticket"], config={"fault": "error"}))
        return Workflow(self.name, tasks=tasks, grace=1)

    def _agent(self, task: str) -> str:
        return self.agent if task == self.at else "desk"

    def _fields(self, task: str) -> dict[str, Any]:
        return {"config": {"fault": self.fault, **self.config}, **self.fields} if task == self.at else {}


async def start(cells: list[Cell]) -> dict[str, Cell]:
    """The executions, by id, all of them under way."""
    executions = await asyncio.gather(*(cell.workflow().start() for cell in cells))
    return dict(zip(executions, cells, strict=True))


async def desk(world: World, *names: str) -> Process:
    return await world.process("saga_agent.py", names[0], str(world.folder), *names).ready()


async def all_hold(world: World, executions: dict[str, Cell]) -> None:
    """Waits until each execution's fault has its task begun, its effect done, and held."""

    def hold() -> bool:
        held = {(line.execution, line.task) for line in lines_of(world.journal) if line.event == "holds"}
        return all((execution, cell.at) in held for execution, cell in executions.items())

    await until(hold, 20.0, "every execution coming to its fault")


async def ended(world: World, client: Client, executions: dict[str, Cell], state: str = "failed") -> dict[str, Effects]:
    """Waits for the ends, checks all that holds for every saga, and answers the effects."""
    results = await asyncio.gather(*(end_of(client, execution, cell) for execution, cell in executions.items()))
    history = await history_of(world.server.connect_url, world.journal)
    assert verify(history) == []
    assert partly_checked(history) == []
    assert unaccounted(history) == []
    effects = effects_of(history.journal or ())
    for result in results:
        assert result.status == state
        check(executions[result.execution_id], result, effects[result.execution_id])
    incomplete = {execution for execution, cell in executions.items() if cell.remaining is not None}
    listed = {summary.execution_id for summary in await client.list(needs_attention=True)}
    assert listed & executions.keys() == incomplete
    return effects


async def end_of(client: Client, execution: str, cell: Cell) -> ExecutionResult:
    try:
        return await client.wait(execution, END_S)
    except TimeoutError:
        raise AssertionError(f"{cell.name} has not ended: {await client.get_status(execution)}") from None


def check(cell: Cell, result: ExecutionResult, effects: Effects) -> None:
    said = f"{cell.name}: {result.status}, {result.compensation}, {result.compensated}; {effects}"
    assert effects.remaining == ({cell.remaining} if cell.remaining is not None else set()), said
    # What was undone and what is said to be is the same, but for an undoing that failed after it had undone.
    assert set(result.compensated) == set(effects.undone) - {cell.at.removeprefix("undo-")} or (
        set(result.compensated) == set(effects.undone) and cell.remaining is None
    ), said
    assert result.compensation == (
        "incomplete" if cell.remaining is not None else "complete" if result.compensated else None
    ), said
    assert_reverse(effects.undone)


def assert_reverse(undone: list[str]) -> None:
    """What came later is undone before."""
    for place, task in enumerate(undone):
        behind = set(undone[place + 1 :])
        assert not any(task in GRAPH[other] for other in behind), undone


async def test_an_error_at_every_task_leaves_nothing_behind(world: World) -> None:
    await world.coordinator()
    await desk(world, "desk")
    cells = [Cell(at, "error") for at in FORWARD]
    # It fails when it is done: who wants that undone says so.
    cells += [Cell(at, "error-after", fields={"compensate_when": "attempted"}) for at in FORWARD]
    twice = {"retry_config": {"max_attempts": 3, "initial_delay": 0.05}}
    cells += [Cell(at, "error", {"attempts": 2, "retryable": True}, twice) for at in (*FORWARD, *UNDOING)]
    cells += [Cell(at, "error", remaining=at.removeprefix("undo-")) for at in UNDOING]
    async with world.client() as client:
        effects = await ended(world, client, executions := await start(cells))
        for execution, cell in executions.items():
            if cell.at in FORWARD and cell.fault == "error" and not cell.config:
                assert cell.at not in effects[execution].done


async def test_a_timeout_at_every_task_leaves_nothing_behind(world: World) -> None:
    await world.coordinator()
    await desk(world, "desk")
    short = {"timeout": 0.4}
    cells = [Cell(at, "hang", fields=short) for at in FORWARD]
    # The effect comes after the attempt was closed; undone it is all the same.
    cells += [Cell(at, "late", fields=short) for at in FORWARD]
    again = {**short, "retry_config": {"max_attempts": 2, "initial_delay": 0.05}}
    # One attempt hangs when it is done, and the next says that it failed: the first was done.
    cells += [Cell(at, "hang-then-error", fields=again) for at in FORWARD]
    cells += [Cell(at, "hang", {"attempts": 1}, again) for at in (*FORWARD, *UNDOING)]
    async with world.client() as client:
        effects = await ended(world, client, executions := await start(cells))
        for execution, cell in executions.items():
            if cell.at in FORWARD:
                assert cell.at in effects[execution].done, cell.name
        # An undoing that is done, and never says so: reported, though nothing remains.
        hanging = await start([Cell(at, "hang", fields=short) for at in UNDOING])
        for execution, cell in hanging.items():
            result = await client.wait(execution, END_S)
            assert (result.status, result.compensation) == ("failed", "incomplete")
            assert set(result.compensated) == set(FORWARD) - {cell.at.removeprefix("undo-")}
    history = await history_of(world.server.connect_url, world.journal)
    assert (verify(history), unaccounted(history)) == ([], [])


async def test_agents_killed_at_every_task_leave_nothing_behind(world: World) -> None:
    """At once, because both wait for the lease of an agent that is dead."""
    await world.coordinator(sweep_interval_s=2.0)
    await desk(world, "desk")
    async with world.client() as client, connected(world.server.connect_url) as nats:
        killed, deadly = await asyncio.gather(killed_once(world, client, nats), killed_by_its_work(world, client, nats))
        effects = await ended(world, client, killed)
        for execution, cell in killed.items():
            assert cell.at in (*effects[execution].done, *UNDOING), cell.name
        for execution, cell in deadly.items():
            check_poison(cell, await client.wait(execution, END_S), effects[execution])


async def killed_once(world: World, client: Client, nats: Nats) -> dict[str, Cell]:
    """An agent that has the work of many executions in hand, all of it done, is killed."""
    victim = await desk(world, "victim")
    # Once it has ended, the coordinator has made the agent's consumer what it is to be, and leaves it alone.
    await Workflow("first", tasks=[Task("only", "victim")]).execute(timeout=END_S)
    await set_ack_wait(nats, "victim", ACK_WAIT_S)
    cells = [Cell(at, "hold", agent="victim") for at in (*FORWARD, *UNDOING)]
    # Whoever gets the work next knows nothing of what was done, and fails.
    cells += [Cell(at, "hold-then-error", agent="victim") for at in FORWARD]
    # It is over before anyone gets it again.
    cells += [Cell(at, "hold", fields={"timeout": 1.0}, agent="victim") for at in FORWARD]
    executions = await start(cells)
    await all_hold(world, {id: cell for id, cell in executions.items() if "timeout" not in cell.fields})
    victim.kill()
    (world.folder / "gate").touch()
    await desk(world, "victim")
    return executions


async def killed_by_its_work(world: World, client: Client, nats: Nats) -> dict[str, Cell]:
    """Works that kill every agent that begins them, until they are given up."""
    executions = await start([Cell(at, "die", agent="mortal") for at in (*FORWARD, *UNDOING)])
    await set_ack_wait(nats, "mortal", ACK_WAIT_S)
    supervising = asyncio.create_task(supervise(world, "mortal"))
    try:
        await asyncio.gather(*(client.wait(execution, 2 * END_S) for execution in executions))
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
    return executions


def check_poison(cell: Cell, result: ExecutionResult, effects: Effects) -> None:
    assert result.status == "failed"
    assert_reverse(effects.undone)
    if cell.at in FORWARD:
        assert effects.remaining == set(), cell.name
        assert result.error is not None
        assert (result.error["type"], result.error["task"]) == ("poison", cell.at)
        assert (result.compensation, cell.at in result.compensated) == ("complete", True)
    else:
        # Whether it was undone before its agent died depends on which work killed that first: it is reported.
        assert result.compensation == "incomplete"
        assert effects.remaining <= {cell.at.removeprefix("undo-")}


async def supervise(world: World, name: str) -> None:
    """Starts an agent again whenever it has died."""
    while True:
        # It may die before it is ready.
        process = world.process("saga_agent.py", name, str(world.folder), name)
        await process.ended(2 * END_S)


async def test_a_cancel_at_every_task_leaves_nothing_behind(world: World) -> None:
    await world.coordinator()
    await desk(world, "desk")
    cells = [Cell(at, "hold") for at in FORWARD]
    async with world.client() as client:
        executions = await start(cells)
        await all_hold(world, executions)
        await asyncio.gather(*(client.cancel(execution) for execution in executions))
        effects = await ended(world, client, executions, "cancelled")
        # What was interrupted had been done.
        assert all(cell.at in effects[execution].undone for execution, cell in executions.items())


async def test_coordinators_and_the_server_killed_at_every_task_leave_nothing_behind(world: World) -> None:
    coordinators = [await world.coordinator(), await world.coordinator()]
    await desk(world, "desk")
    places = (*FORWARD, *UNDOING)
    # The outcomes of some come while no coordinator is there, those of others when one is again.
    cells = [Cell(at, "hold", {"gate": gate}) for at in places for gate in ("alone", "gate")]
    async with world.client() as client:
        executions = await start(cells)
        await all_hold(world, executions)
        for coordinator in coordinators:
            coordinator.kill()
        (world.folder / "alone").touch()
        await asyncio.sleep(0.3)
        await world.server.kill()
        await world.server.start()
        await world.coordinator()
        (world.folder / "gate").touch()
        effects = await ended(world, client, executions)
        assert all(set(effects[execution].done) == set(FORWARD) for execution in executions)


async def test_what_a_map_did_is_undone_item_by_item(world: World) -> None:
    await world.coordinator()
    await desk(world, "desk")
    for_each = {"for_each": "input.rooms", "max_parallel": 2}

    def rooms(name: str, undo_fault: str, **config: Any) -> Workflow:
        undo = Task("undo-rooms", "desk", config={"fault": undo_fault})
        each = Task("rooms", "desk", config=config, compensation=undo, **for_each)
        return Workflow(name, tasks=[each, Task("close", "desk", config={"fault": "error"}, depends_on=["rooms"])])

    async with world.client() as client:
        workflows = [rooms("undone", ""), rooms("not-undone", "error-until")]
        workflows.append(rooms("fails", "", fault="error-after"))
        executions = [await workflow.start({"rooms": list(range(5))}) for workflow in workflows]
        undone, stuck, failing = [await client.wait(execution, END_S) for execution in executions]
        items = {f"rooms~{number}" for number in range(5)}
        effects = effects_of(lines_of(world.journal))
        assert (undone.compensation, set(undone.compensated)) == ("complete", items)
        assert effects[undone.execution_id].remaining == set()
        assert (stuck.compensation, stuck.compensated) == ("incomplete", ())
        assert effects[stuck.execution_id].remaining == items
        assert failing.status == "failed"

        # What stopped it is over: taken up again, nothing remains.
        (world.folder / "gate").touch()
        await client.compensate(stuck.execution_id)
        again = await client.wait(stuck.execution_id, END_S)
        assert (again.compensation, set(again.compensated)) == ("complete", items)
        assert effects_of(lines_of(world.journal))[stuck.execution_id].remaining == set()
    history = await history_of(world.server.connect_url, world.journal)
    assert verify(history) == []


async def test_an_exhausted_compensation_goes_on_where_it_stopped(world: World) -> None:
    await world.coordinator()
    await desk(world, "desk")
    async with world.client() as client:
        executions = await start([Cell(at, "error-until", remaining=at.removeprefix("undo-")) for at in UNDOING])
        before = await ended(world, client, executions)
        (world.folder / "gate").touch()
        await asyncio.gather(*(client.compensate(execution) for execution in executions))
        for execution, cell in executions.items():
            result = await client.wait(execution, END_S)
            task = cell.remaining
            assert (result.compensation, result.compensated[-1]) == ("complete", task)
            after = effects_of(lines_of(world.journal))[execution]
            assert after.remaining == set()
            # Nothing but what was left is undone again.
            assert after.undone == [*before[execution].undone, task]
            begun = [line.task for line in lines_of(world.journal) if line[:2] == ("began", execution)]
            assert begun.count(f"undo-{task}") == 2
            assert len(begun) == len(set(begun)) + 1
        assert await client.list(needs_attention=True) == []
    history = await history_of(world.server.connect_url, world.journal)
    assert (verify(history), unaccounted(history)) == ([], [])


def test_the_lease_of_a_closed_attempt_fits_the_time_to_end() -> None:
    assert LEASE_S < END_S
