"""Schedules on a real server: coordinators that race for a tick, what was missed, overlaps, and what is asked for."""

import asyncio
import datetime
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from zlib import crc32

import infinity_matrix
import pytest
from harness import World, seeded, until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.document import define, parse_document
from infinity_matrix_actors.errors import InvalidDefinition, UnknownSchedule, WorkflowPaused
from infinity_matrix_actors.fact import Command, Priority, Started
from infinity_matrix_actors.schedule import Overlap, Schedule, new_schedule
from infinity_matrix_actors.schedule_state import ScheduleState, Tick, first_state
from infinity_matrix_bus.codec import parse_rfc3339
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import read_all, read_facts
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.schedules import ScheduleStore
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.members import owner_of
from infinity_matrix_coordinator.process import Coordinator
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations
from infinity_matrix_coordinator.schedule_ticks import Place, execution_of, write_tick
from infinity_matrix_coordinator.schedules import HELP_AFTER_S, Schedules
from plain import connected

WAIT_S = 20.0


class Gate:
    """An agent whose works stay open until they are let through; `open` holds those that have begun."""

    def __init__(self) -> None:
        self.agent = Agent("gate")
        self.open: dict[str, asyncio.Event] = {}
        self.begun = 0
        self.together_max = 0
        self.is_closed = True
        self.cancelled: list[str] = []
        self.agent.handler(self._handle)

    async def _handle(self, work: Work) -> Any:
        self.begun += 1
        event = self.open[work.execution] = asyncio.Event()
        self.together_max = max(self.together_max, len(self.open))
        try:
            if self.is_closed:
                await event.wait()
        except asyncio.CancelledError:
            self.cancelled.append(work.execution)
            raise
        finally:
            del self.open[work.execution]
        return work.input

    def let_through(self) -> None:
        for event in self.open.values():
            event.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def im(gate: Gate) -> AsyncIterator[Client]:
    async with infinity_matrix.local(agents=[gate.agent], sync="lazy") as client:
        await Workflow("w", tasks=[Task("only", "gate")], grace="30s").deploy()
        yield client


@pytest.fixture
def schedules(im: Client) -> ScheduleOperations:
    return ScheduleOperations(im.operations)


async def started_facts(im: Client) -> list[Started]:
    """What the log holds of every start, skipped ones too, by due time."""
    session, subjects = await im.operations.session(), im.operations.subjects
    found = []
    for shard in range(im.operations.installation.shards):
        for entry in await read_all(session, subjects.facts_stream(shard), (subjects.all_started(shard),)):
            subject = subjects.parse_fact(entry.subject)
            assert subject is not None
            fact = decode_fact(subject, entry.data, entry.at)
            assert isinstance(fact, Started)
            found.append(fact)
    return sorted(found, key=lambda fact: str(fact.cause.get("due")))


async def store_of(im: Client) -> ScheduleStore:
    return ScheduleStore(await im.operations.session(), im.operations.subjects)


async def missed(im: Client, count: int, **fields: Any) -> Schedule:
    """Stores a schedule of every minute whose last `count` due times nobody has seen; answers it."""
    schedule = new_schedule("s", "w", **{"cron": "* * * * *", **fields})
    now = await (await store_of(im)).now()
    first_at = now // 60 * 60 - (count - 1) * 60
    if now % 60 > 55:
        # Another minute would begin while the test runs.
        await asyncio.sleep(60.05 - now % 60)
        first_at += 60
    assert await (await store_of(im)).create(schedule, ScheduleState(first_at))
    return schedule


async def settled(im: Client, count: int) -> ScheduleState:
    """The state of the schedule `s` once so many ticks are started or skipped."""
    store = await store_of(im)
    state: ScheduleState | None = None

    async def is_settled() -> bool:
        nonlocal state
        stored = await store.read("s")
        assert stored is not None
        state = stored.state
        return state.started + state.skipped >= count

    await until(is_settled, WAIT_S, f"{count} ticks settled")
    assert state is not None
    return state


def dues(facts: list[Started], *, skipped: bool = False) -> list[float]:
    found = [parse_rfc3339(fact.cause["due"]) for fact in facts if fact.skipped is skipped]
    return [due for due in found if due is not None]


# Without a leader.


async def test_ten_coordinators_that_race_for_each_tick_start_it_once(world: World) -> None:
    connections = [await Connection(Endpoint(world.server.connect_url)).open() for _ in range(10)]
    try:
        installation = await install(connections[0].session, shards=2)
        subjects = installation.subjects()
        await DefinitionStore(connections[0].session, subjects).deploy(
            Workflow("w", tasks=[Task("only", "nobody")]).definition(), is_armed=False
        )
        store = ScheduleStore(connections[0].session, subjects)
        # Each believes that it is alone, so that none leaves a tick to another.
        runners = [
            Schedules(one.session, subjects, installation.shards, f"c-{number}", lambda number=number: {f"c-{number}"})  # type: ignore[misc]
            for number, one in enumerate(connections)
        ]
        tasks = [asyncio.create_task(runner.run()) for runner in runners]
        now = await store.now()
        # Ten schedules, each with minutes that all of them see at once, and one time that comes in a moment.
        for number in range(10):
            schedule = new_schedule(f"s-{number}", "w", cron="* * * * *", overlap="allow_all", end=_utc(now - 61))
            assert await store.create(schedule, ScheduleState(now // 60 * 60 - 20 * 60))
        once = new_schedule("once", "w", run_at=_utc(now + 1))
        assert await store.create(once, first_state(once, now))

        async def all_over() -> bool:
            return all(not one.state.waiting and one.state.next_at is None for one in await store.all())

        await until(all_over, WAIT_S, "all ticks")
        # Those that lost the race are done, too.
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        states = {one.schedule.name: one.state for one in await store.all()}
        facts = [
            entry.subject
            for shard in range(installation.shards)
            for entry in await read_all(
                connections[0].session, subjects.facts_stream(shard), (subjects.all_started(shard),)
            )
        ]
        expected = sum(state.started for state in states.values())
        assert states["once"].started == 1
        assert expected >= 10 * 18 + 1
        assert len(facts) == expected
    finally:
        for connection in connections:
            await connection.close()


async def test_several_coordinators_fire_one_time_once(world: World) -> None:
    coordinators = [await Coordinator(Endpoint(world.server.connect_url), owns_all=True).start() for _ in range(3)]
    try:
        async with world.client() as im:
            await Workflow("w", tasks=[Task("only", "nobody")]).deploy()
            operations = ScheduleOperations(im.operations)
            await operations.create(new_schedule("s", "w", run_at=_utc(time.time() + 1)))
            await settled(im, 1)
            facts = await started_facts(im)
            assert [fact.skipped for fact in facts] == [False]
            assert facts[0].input == {"schedule": "s", "due": facts[0].cause["due"]}
            assert facts[0].cause["by"] == "schedule"
    finally:
        await asyncio.gather(*(coordinator.stop() for coordinator in coordinators))


async def test_what_another_claimed_and_left_is_started_by_who_comes_after(im: Client, gate: Gate) -> None:
    gate.is_closed = False
    store = await store_of(im)
    schedule = new_schedule("s", "w", cron="@yearly", overlap="allow_all")
    now = await store.now()
    tick = Tick(now // 60 * 60)
    state = replace(first_state(schedule, now), waiting=(tick,))
    assert await store.create(schedule, state)
    assert (await settled(im, 1)).started == 1
    # It had started it already, and left before it could say so.
    stored = await store.read("s")
    assert stored is not None
    assert await store.write(replace(stored, state=state)) is not None
    assert (await settled(im, 1)).started == 1
    assert [fact.execution for fact in await started_facts(im)] == [execution_of(im.operations.subjects, "s", tick)]


async def test_a_tick_that_was_skipped_is_not_started_by_who_lags(im: Client, gate: Gate) -> None:
    schedule, tick = new_schedule("s", "w", cron="@daily"), Tick(1_700_000_000.0)
    digest = await im.operations.definition_of("w")
    place = (await im.operations.session(), im.operations.subjects, im.operations.installation.shards)
    assert await write_tick(*place, schedule, tick, digest, skips=True) == Place(is_skipped=True, is_new=True)
    assert await write_tick(*place, schedule, tick, digest, skips=False) == Place(is_skipped=True, is_new=False)
    gate.is_closed = False
    await im.execute("w", timeout=WAIT_S)
    assert gate.begun == 1


async def test_what_the_first_coordinator_of_a_schedule_does_not_do_the_others_do(world: World) -> None:
    connection = await Connection(Endpoint(world.server.connect_url)).open()
    try:
        installation = await install(connection.session, shards=2)
        subjects = installation.subjects()
        definition = Workflow("w", tasks=[Task("only", "nobody")]).definition()
        await DefinitionStore(connection.session, subjects).deploy(definition, is_armed=False)
        store = ScheduleStore(connection.session, subjects)
        members = {"here", "hung"}
        names = {owner_of(crc32(f"s-{number}".encode()), members): f"s-{number}" for number in range(20)}
        runner = Schedules(connection.session, subjects, installation.shards, "here", lambda: members)
        running = asyncio.create_task(runner.run())
        began = time.monotonic()
        for name in names.values():
            schedule = new_schedule(name, "w", run_at=_utc(time.time() - 1))
            assert await store.create(schedule, ScheduleState(schedule.run_at))

        async def is_started(owner: str) -> bool:
            stored = await store.read(names[owner])
            return stored is not None and stored.state.started == 1

        assert await until(lambda: is_started("here"), WAIT_S, "its own") < HELP_AFTER_S / 2
        await until(lambda: is_started("hung"), WAIT_S, "the other's")
        assert time.monotonic() - began >= HELP_AFTER_S
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        await connection.close()


# What was missed.


async def test_a_coordinator_that_was_down_for_a_day_catches_up_within_the_window(world: World) -> None:
    coordinator = await Coordinator(Endpoint(world.server.connect_url)).start()
    async with world.client() as im:
        await Workflow("w", tasks=[Task("only", "nobody")]).deploy()
        await coordinator.stop()
        store = await store_of(im)
        now = await store.now()
        schedule = new_schedule("s", "w", cron="0 * * * *", overlap="allow_all", catch_up="5h", end=_utc(now))
        assert await store.create(schedule, ScheduleState(now // 3600 * 3600 - 24 * 3600))
        coordinator = await Coordinator(Endpoint(world.server.connect_url)).start()
        try:
            await settled(im, 5)
            last = now // 3600 * 3600
            assert dues(await started_facts(im)) == [last - hours * 3600 for hours in (4, 3, 2, 1, 0)]
        finally:
            await coordinator.stop()


async def test_what_came_due_while_the_server_was_dead_is_started_once(world: World) -> None:
    coordinators = [await Coordinator(Endpoint(world.server.connect_url), owns_all=True).start() for _ in range(2)]
    try:
        async with world.client() as im:
            await Workflow("w", tasks=[Task("only", "nobody")]).deploy()
            operations = ScheduleOperations(im.operations)
            for number in range(8):
                at = _utc(time.time() + 0.5 + number * 0.25)
                await operations.create(new_schedule(f"s-{number}", "w", run_at=at))
            await world.server.kill()
            await asyncio.sleep(2)
            await world.server.start()

            async def all_started() -> bool:
                try:
                    views = await operations.list()
                except infinity_matrix.InfinityMatrixError:
                    return False
                return [(view.started, view.skipped) for view in views] == [(1, 0)] * 8

            await until(all_started, WAIT_S, "all eight")
            assert len(await started_facts(im)) == 8
    finally:
        await asyncio.gather(*(coordinator.stop() for coordinator in coordinators))


async def test_coordinators_killed_between_a_claim_and_a_start_lose_no_tick(world: World) -> None:
    seed = seeded()
    first = await world.coordinator()
    async with world.client() as im:
        await Workflow("w", tasks=[Task("only", "nobody")]).deploy()
        store = await store_of(im)
        now = await store.now()
        ends_at = now // 60 * 60
        for number in range(20):
            schedule = new_schedule(f"s-{number}", "w", cron="* * * * *", overlap="allow_all", end=_utc(ends_at))
            assert await store.create(schedule, ScheduleState(ends_at - 19 * 60))
        coordinator = first
        for _ in range(3):
            await asyncio.sleep(seed.random() * 0.3)
            coordinator.kill()
            coordinator = await world.coordinator()

        async def all_over() -> bool:
            return all(one.state.next_at is None and not one.state.waiting for one in await store.all())

        await until(all_over, 2 * WAIT_S, "all ticks")
        assert [one.state.started for one in await store.all()] == [20] * 20
        facts = await started_facts(im)
        assert len({(fact.cause["schedule"], fact.cause["due"]) for fact in facts}) == len(facts) == 400


# Overlaps.


async def test_skip_starts_nothing_beside_one_that_runs(im: Client, gate: Gate) -> None:
    await missed(im, 4, overlap="skip")
    state = await settled(im, 4)
    assert (state.started, state.skipped) == (1, 3)
    facts = await started_facts(im)
    assert [fact.skipped for fact in facts] == [False, True, True, True]
    await until(lambda: bool(gate.open), WAIT_S, "its begin")
    gate.let_through()
    assert (await im.wait(facts[0].execution, WAIT_S)).status == "completed"
    assert gate.begun == 1


async def test_buffer_all_runs_each_after_the_other(im: Client, gate: Gate) -> None:
    gate.is_closed = False
    await missed(im, 6, overlap="buffer_all")
    began = time.monotonic()
    state = await settled(im, 6)
    # They hear of each other's end, or each would wait for a look that comes once a second.
    assert time.monotonic() - began < 4
    assert (state.started, state.skipped) == (6, 0)
    await until(lambda: gate.begun == 6, WAIT_S, "six executions")
    assert gate.together_max == 1


async def test_buffer_one_keeps_one_and_skips_the_rest(im: Client, gate: Gate) -> None:
    await missed(im, 4, overlap="buffer_one")
    state = await settled(im, 3)
    assert (state.started, state.skipped, len(state.waiting)) == (1, 2, 1)
    await until(lambda: gate.begun == 1, WAIT_S, "the first")
    gate.let_through()
    await until(lambda: gate.begun == 2, WAIT_S, "the one that waited")
    facts = await started_facts(im)
    assert [fact.skipped for fact in facts] == [False, False, True, True]
    gate.let_through()


@pytest.mark.parametrize("overlap", [Overlap.CANCEL_OTHER, Overlap.TERMINATE_OTHER])
async def test_what_is_due_takes_the_place_of_what_runs(im: Client, gate: Gate, overlap: Overlap) -> None:
    schedules = ScheduleOperations(im.operations)
    await schedules.create(new_schedule("s", "w", cron="@yearly", overlap=str(overlap)))
    first = await schedules.trigger("s", overlap)
    await until(lambda: gate.begun == 1, WAIT_S, "the first")
    second = await schedules.trigger("s", overlap)
    await until(lambda: gate.begun == 2, WAIT_S, "the second")
    assert first is not None and second is not None
    assert (await im.wait(first, WAIT_S)).status == "cancelled"
    assert gate.cancelled == [first]
    reads = GatheredReads(await im.operations.session())
    facts = await read_facts(reads, im.operations.subjects, im.operations.installation.shards, first)
    reads.close()
    graces = [fact.grace for _, fact in facts if isinstance(fact, Command)]
    assert graces == [0.0 if overlap is Overlap.TERMINATE_OTHER else None]
    assert list(gate.open) == [second]
    gate.let_through()
    assert (await im.wait(second, WAIT_S)).status == "completed"


async def test_allow_all_runs_them_together(im: Client, gate: Gate) -> None:
    await missed(im, 3, overlap="allow_all")
    await until(lambda: len(gate.open) == 3, WAIT_S, "three at once")
    gate.let_through()


# Control.


async def test_a_pause_holds_what_is_due_and_a_trigger_still_runs(
    im: Client, gate: Gate, schedules: ScheduleOperations
) -> None:
    gate.is_closed = False
    await schedules.create(new_schedule("s", "w", run_at=_utc(time.time() + 1.5)))
    await schedules.create(new_schedule("other", "w", run_at=_utc(time.time() + 2)))
    await schedules.pause("s", "holidays")
    view = await schedules.show("s")
    assert (view.paused, view.reason, view.upcoming) == (True, "holidays", ())
    execution = await schedules.trigger("s", request="by-hand")
    assert await schedules.trigger("s", request="by-hand") in (execution,)
    store = await store_of(im)

    async def other_is_over() -> bool:
        stored = await store.read("other")
        return stored is not None and stored.state.started == 1

    # By then the first was due, too.
    await until(other_is_over, WAIT_S, "the other one's time")
    # The same request once more, after it has begun: an answer may have been lost.
    assert await schedules.trigger("s", request="by-hand") == execution
    await until(lambda: _has_settled(schedules, "s"), WAIT_S, "the request's place")
    await schedules.resume("s")
    view = await schedules.show("s")
    assert (view.paused, view.started, view.upcoming) == (False, 0, ())
    causes = sorted(fact.cause["schedule"] + " " + fact.cause["by"] for fact in await started_facts(im))
    assert causes == ["other schedule", "s trigger"]


async def _has_settled(schedules: ScheduleOperations, name: str) -> bool:
    return not (await schedules.show(name)).waiting


async def test_a_backfill_runs_each_due_time_of_a_range_once(
    im: Client, gate: Gate, schedules: ScheduleOperations
) -> None:
    gate.is_closed = False
    await schedules.create(new_schedule("s", "w", cron="@daily", timezone="Europe/Berlin"))
    begin = datetime.datetime(2026, 10, 24, tzinfo=datetime.UTC).timestamp()
    for _ in range(2):
        executions = await schedules.backfill("s", begin, begin + 3 * 86_400, request="again")
        assert len(executions) == 3
        for execution in executions:
            await until(lambda: _is_known(im, str(execution)), WAIT_S, "its start")  # noqa: B023
            assert (await im.wait(str(execution), WAIT_S)).status == "completed"
    inputs = [fact.input["due"] for fact in await started_facts(im)]
    # The night in which clocks are put back is 25 hours long.
    assert inputs == [f"2026-10-2{day}T{hour}:00:00.000000Z" for day, hour in ((4, 22), (5, 23), (6, 23))]
    with pytest.raises(InvalidDefinition, match="nothing comes due"):
        await schedules.backfill("s", begin, begin + 1)
    with pytest.raises(InvalidDefinition, match="more than 1000"):
        await schedules.backfill("s", begin - 5000 * 86_400, begin)


async def test_of_a_deleted_schedule_nothing_starts_any_more(
    im: Client, gate: Gate, schedules: ScheduleOperations
) -> None:
    await missed(im, 3, overlap="buffer_all")
    await until(lambda: gate.begun == 1, WAIT_S, "the first")
    await settled(im, 1)
    await schedules.delete("s")
    facts = await started_facts(im)
    assert [fact.skipped for fact in facts] == [False, True, True]
    assert (await im.get_status(facts[1].execution)).error == {
        "type": "skipped",
        "message": "this tick of the schedule was passed over",
    }
    assert await schedules.list() == []
    gate.is_closed = False
    gate.let_through()
    await im.execute("w", timeout=WAIT_S)
    assert gate.begun == 2
    for call in (schedules.delete("s"), schedules.show("s"), schedules.pause("s"), schedules.trigger("s")):
        with pytest.raises(UnknownSchedule):
            await call


async def test_a_schedule_made_again_is_left_alone_and_one_that_changed_takes_its_place(
    im: Client, schedules: ScheduleOperations
) -> None:
    schedule = new_schedule("s", "w", cron="@daily")
    first = await schedules.create(schedule)
    await schedules.pause("s")
    store = await store_of(im)
    stored = await store.read("s")
    assert (await schedules.create(schedule)).paused
    assert await store.read("s") == stored
    changed_schedule = replace(schedule, cron="0 5 * * *")
    assert (await schedules.create(changed_schedule)).paused
    await schedules.resume("s")
    assert (await schedules.show("s")).upcoming != first.upcoming
    assert (await schedules.create(changed_schedule, is_paused=True)).paused


async def test_nothing_of_a_paused_workflow_is_started(im: Client, schedules: ScheduleOperations) -> None:
    store = DefinitionStore(await im.operations.session(), im.operations.subjects)
    await store.pause("w", is_paused=True)
    await missed(im, 2, overlap="allow_all")
    state = await settled(im, 2)
    assert (state.started, state.skipped) == (0, 2)
    with pytest.raises(WorkflowPaused):
        await schedules.trigger("s")


async def test_a_schedule_for_a_workflow_nobody_deployed_is_refused(schedules: ScheduleOperations) -> None:
    with pytest.raises(infinity_matrix.UnknownWorkflow):
        await schedules.create(new_schedule("s", "nope", cron="@daily"))


async def test_any_nats_client_makes_and_controls_schedules_with_json(im: Client, gate: Gate) -> None:
    gate.is_closed = False
    async with connected(im.url) as nats:

        async def ask(verb: str, **body: Any) -> Any:
            reply = await nats.request(f"im.api.schedule.{verb}", json.dumps(body).encode(), timeout=5)
            return json.loads(reply.data)

        made = await ask("create", name="s", workflow="w", cron="0 2 * * *", timezone="Europe/Berlin", input={"n": 1})
        assert made["ok"]["upcoming"][0].endswith(("+01:00", "+02:00"))
        assert (await ask("list", workflow="w"))["ok"][0]["name"] == "s"
        assert (await ask("list", workflow="other"))["ok"] == []
        assert len((await ask("show", name="s", limit=7))["ok"]["upcoming"]) == 7
        assert (await ask("pause", name="s", reason="why"))["ok"] == {"name": "s"}
        assert (await ask("show", name="s"))["ok"]["reason"] == "why"
        assert (await ask("resume", name="s"))["ok"] == {"name": "s"}
        execution = (await ask("trigger", name="s", id="once"))["ok"]["execution"]
        await until(lambda: _is_known(im, execution), WAIT_S, "its start")
        assert (await im.wait(execution, WAIT_S)).outputs == {"only": {"n": 1}}
        filled = (await ask("backfill", name="s", **{"from": "2026-01-01T00:00", "to": "2026-01-03T00:00"}))["ok"]
        assert len(filled["executions"]) == 2
        for verb, body, problem in (
            ("create", {"name": "x", "workflow": "w", "cron": "61 * * * *"}, "InvalidDefinition"),
            ("create", {"name": "x", "workflow": "w", "cron": "@daily", "zone": "UTC"}, "BadRequest"),
            ("create", {"name": "x", "workflow": "nope", "cron": "@daily"}, "UnknownWorkflow"),
            ("trigger", {"name": "s", "overlap": "never"}, "BadRequest"),
            ("show", {"name": "nope"}, "UnknownSchedule"),
            ("show", {}, "BadRequest"),
        ):
            assert (await ask(verb, **body))["error"]["type"] == problem
        assert (await ask("delete", name="s"))["ok"] == {"name": "s"}
        assert (await ask("list"))["ok"] == []


async def _is_known(im: Client, execution: str) -> bool:
    try:
        await im.get_status(execution)
    except infinity_matrix.UnknownExecution:
        return False
    return True


def _utc(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at, datetime.UTC)


async def test_the_schedules_of_a_definition_are_stored_when_it_is_deployed(server: EmbeddedServer) -> None:
    coordinator = await Coordinator(Endpoint(server.url, token=server.token)).start()
    client = await Client(Endpoint(server.url, token=server.token)).open()
    document = {
        "name": "nightly",
        "tasks": [{"id": "nap", "sleep": "1s"}],
        "schedules": [{"cron": "0 2 * * *", "timezone": "Europe/Berlin"}, {"name": "noon", "cron": "0 12 * * *"}],
    }
    try:
        await client.deploy(define(parse_document(document)))
        found = await ScheduleOperations(client.operations).list()
        assert {(one.name, one.workflow, one.cron, one.timezone) for one in found} == {
            ("nightly", "nightly", "0 2 * * *", "Europe/Berlin"),
            ("noon", "nightly", "0 12 * * *", "UTC"),
        }
    finally:
        await client.close()
        await coordinator.stop()


async def test_the_executions_of_a_schedule_have_its_priority(
    im: Client, gate: Gate, schedules: ScheduleOperations
) -> None:
    gate.is_closed = False
    tasks = [{"id": "only", "agent": "gate"}]
    scheduled = {"name": "p", "run_at": "2099-01-01", "priority": "low"}
    await im.deploy(define(parse_document({"name": "nightly", "tasks": tasks, "schedules": [scheduled]})))
    assert (await schedules.show("p")).priority == "low"
    execution = await schedules.trigger("p")
    assert execution is not None
    await im.wait(execution, timeout=WAIT_S)
    assert [fact.priority for fact in await started_facts(im)] == [Priority.LOW]
    with pytest.raises(InvalidDefinition, match="no priority"):
        new_schedule("q", "w", cron="@daily", priority="urgent")
