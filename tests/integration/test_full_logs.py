"""Full logs: nothing is started on one that is nearly full, what runs ends, and what ended makes room."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness import World, all_finished, consumer_is_there, say, started, until
from history import lines_of
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Trigger, Workflow
from infinity_matrix_actors.errors import LogFull, StorageUnavailable
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.fill import FILL_AGE_S, START_FILL_MAX, fill_of
from infinity_matrix_bus.session import Endpoint, Session
from infinity_matrix_coordinator.process import Coordinator
from infinity_matrix_coordinator.purging import LOOK_INTERVAL_S, PURGE_FILL_MIN, PURGE_FILL_TARGET
from plain import ask, connected, serving

#: Beyond what every fact of these tests takes together.
AMPLE_BYTES = 512 * 1024**2
FILLER = "x" * 2000


class Logs:
    """The logs of an installation, and how full they are made to be."""

    def __init__(self, session: Session) -> None:
        self._api = JetStreamApi(session)

    async def limit(self, max_bytes: int) -> None:
        """Gives every log this `max_bytes`."""
        for name in await self._names():
            info = await self._api.stream_info(name)
            assert info is not None
            await self._api.update_stream({**info["config"], "max_bytes": max_bytes})

    async def fill(self, share: float) -> None:
        """Makes every log that full, by its limit."""
        for name in await self._names():
            info = await self._api.stream_info(name)
            assert info is not None
            held = int(info["state"]["bytes"])
            await self._api.update_stream({**info["config"], "max_bytes": max(1, int(held / share))})

    async def filled(self) -> list[float]:
        infos = [await self._api.stream_info(name) for name in await self._names()]
        return [fill_of(info) for info in infos if info is not None]

    async def _names(self) -> list[str]:
        return [name for number in range(64) if await self._api.stream_info(name := f"IM_FACTS_{number}") is not None]


@asynccontextmanager
async def logs_of(world: World) -> AsyncIterator[Logs]:
    session = await Session.connect(Endpoint(world.server.connect_url))
    try:
        yield Logs(session)
    finally:
        await session.close()


@asynccontextmanager
async def coordinating(world: World, **options: Any) -> AsyncIterator[Coordinator]:
    coordinator = await Coordinator(Endpoint(world.server.connect_url), **options).start()
    try:
        yield coordinator
    finally:
        await coordinator.stop()


async def some_ended(client: Client, digest: str, workflow: str, count: int) -> list[str]:
    executions = await started(client, digest, workflow, count)
    await all_finished(client, executions, 30.0)
    return executions


def one_task(name: str, agent: str = "worker", **fields: Any) -> Workflow:
    return Workflow(name, tasks=[Task("a", agent, **fields)])


async def refused(client: Client, workflow: str) -> LogFull:
    """The error of a start on logs that are all nearly full, once this client knows."""
    found: LogFull | None = None

    async def is_refused() -> bool:
        nonlocal found
        try:
            await client.start(workflow)
        except LogFull as error:
            found = error
        else:
            # These logs are small: many starts would fill them to the brim.
            await asyncio.sleep(1.0)
        return found is not None

    await until(is_refused, FILL_AGE_S * 3, "the refusal")
    assert found is not None
    return found


async def test_a_start_is_refused_while_what_runs_ends(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, logs_of(world) as logs:
        await client.deploy(one_task("held").definition())
        running = [await client.start("held", {"filler": FILLER}) for _ in range(40)]
        known = await client.start("held", None, "known")
        await logs.fill(0.75)
        async with world.client() as other:
            with pytest.raises(LogFull, match=r"IM_FACTS_\d is 75% full.*--max-bytes"):
                # Of all four logs: whichever it falls on.
                await other.start("held")
            # What is there already is answered.
            assert await other.start("held", None, "known") == known
        async with connected(world.server.connect_url) as nats:
            answer = (await ask(nats, "start", workflow="held"))["error"]
            assert answer["type"] == "LogFull"
        # One that had started before learns of it, too.
        assert isinstance(await refused(client, "held"), StorageUnavailable)
        async with serving(world.server.connect_url, "worker", lambda work: work["task"]):
            states = await all_finished(client, [*running, known], 30.0)
        assert set(states.values()) == {"completed"}
        # The documented action.
        await logs.limit(AMPLE_BYTES)

        async def is_started() -> bool:
            try:
                return bool(await client.start("held", None, "after"))
            except LogFull:
                return False

        await until(is_started, FILL_AGE_S * 3, "a start")


async def test_events_wait_for_room(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, logs_of(world) as logs:
        waiting = Workflow("on-event", triggers=[Trigger("file.arrived")], tasks=[Task("a", "worker")])
        await client.deploy(waiting.definition())
        await client.deploy(one_task("filler").definition())
        for _ in range(40):
            await client.start("filler", {"filler": FILLER})
        await logs.fill(0.75)
        await client.trigger("file.arrived", {"name": "a"})
        async with connected(world.server.connect_url) as nats:

            async def is_given() -> bool:
                info = await nats.jetstream().consumer_info("IM_TRIGGERS", "im-triggers")
                return info.delivered.consumer_seq >= 1 and info.num_ack_pending == 1

            await until(is_given, 5.0, "the event being given out")
        assert await client.list("on-event") == []
        await logs.limit(AMPLE_BYTES)

        async def is_there() -> bool:
            return len(await client.list("on-event")) == 1

        await until(is_there, 20.0, "the execution of the event")


async def test_a_tick_of_a_schedule_waits_for_room(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, logs_of(world) as logs:
        nightly = one_task("nightly")
        await client.deploy(nightly.definition())
        for _ in range(40):
            await client.start("nightly", {"filler": FILLER})
        schedule = await nightly.schedule(cron="0 2 1 1 *", timezone="UTC")
        await logs.fill(0.75)
        execution = await schedule.trigger()
        # Long enough for a coordinator to have tried.
        await asyncio.sleep(2.0)
        assert execution not in {one.execution_id for one in await client.list()}
        await logs.limit(AMPLE_BYTES)

        async def is_there() -> bool:
            return execution in {one.execution_id for one in await client.list()}

        await until(is_there, 30.0, "the execution of the tick")


async def test_executions_that_ended_make_room_and_open_ones_stay(world: World) -> None:
    async with coordinating(world, checkpoint_after_s=1.0, purge_age_min_s=1.0), world.client() as client:
        digest = await client.operations.store(one_task("many").definition())
        held = [
            await client.start_definition(one_task("open", "nobody").definition(), {"filler": FILLER})
            for _ in range(20)
        ]
        async with connected(world.server.connect_url) as nats:
            await consumer_is_there(nats, "nobody")
        # It ended, and is open again: its old end must not be taken for its last.
        again = await client.start_definition(one_task("again", "nobody-else").definition(), {"filler": FILLER})
        await client.cancel(again, grace=0)
        await all_finished(client, [again], 10.0)
        await client.retry(again)
        held.append(again)
        await client.start("many")
        async with serving(world.server.connect_url, "worker", lambda work: FILLER), logs_of(world) as logs:
            ended = await some_ended(client, digest, "many", 400)
            # The mark must have passed their ends.
            await asyncio.sleep(3.0)
            before = await client.list()
            # Starts are refused from here on, until there is room again, which nobody has to make by hand.
            await logs.fill(0.72)
            assert min(await logs.filled()) > START_FILL_MAX

            async def is_purged() -> bool:
                return max(await logs.filled()) <= PURGE_FILL_TARGET

            took_s = await until(is_purged, LOOK_INTERVAL_S + 30.0, "the purge")
            async with world.client() as other:
                # It knows nothing of how full they were.
                admitted = await other.start("many")
                await other.wait(admitted, 10.0)
        there = {one.execution_id for one in await client.list()} - {admitted}
        gone = [execution for execution in ended if execution not in there]
        say(f"{len(gone)} of {len(before)} executions purged in {took_s:.1f} s")
        assert gone
        assert set(held) <= there
        # The oldest first: nothing that went began after the last that stayed, on the same log.
        by_age = sorted(one.started_at for one in before if one.execution_id in gone)
        assert by_age[0] <= min(one.started_at for one in before if one.execution_id in set(ended) & there)
        await logs_have_whole_executions(world, there | {admitted})
        # What stayed goes on.
        async with logs_of(world) as logs:
            await logs.limit(AMPLE_BYTES)
        nobody = serving(world.server.connect_url, "nobody", lambda work: work["task"])
        async with nobody, serving(world.server.connect_url, "nobody-else", lambda work: work["task"]):
            states = await all_finished(client, held, 30.0)
        assert set(states.values()) == {"completed"}


async def logs_have_whole_executions(world: World, executions: set[str]) -> None:
    """No execution was purged in part: of each there is at least its start, and of no other anything."""
    async with connected(world.server.connect_url) as nats:
        for shard in range(4):
            info = await nats.jetstream().stream_info(f"IM_FACTS_{shard}", subjects_filter=f"im.fact.{shard}.>")
            subjects = info.state.subjects or {}
            of = {subject.split(".")[3] for subject in subjects}
            assert of == {subject.split(".")[3] for subject in subjects if subject.endswith(".started")}
            assert of <= executions


def test_room_is_made_before_starts_are_refused() -> None:
    # The margin is what is started between two looks.
    assert PURGE_FILL_TARGET < PURGE_FILL_MIN <= START_FILL_MAX - 0.1


async def test_an_outcome_that_a_full_log_refuses_is_there_once_there_is_room(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, logs_of(world) as logs:
        execution = await client.start_definition(one_task("refused").definition())
        await logs.fill(1.0)
        async with connected(world.server.connect_url) as nats:
            await consumer_is_there(nats, "worker")
        await world.agent("worker")

        async def has_begun() -> bool:
            return "began" in world.journal.read_text()

        await until(has_begun, 10.0, "the work beginning")
        with pytest.raises(TimeoutError):
            # No false success: its outcome is in no log.
            await client.wait(execution, timeout=2.0)
        await logs.limit(AMPLE_BYTES)
        assert (await client.wait(execution, 15.0)).status == "completed"
        journal = [line.event for line in lines_of(world.journal)]
        assert journal.count("began") == 1
