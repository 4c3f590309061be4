"""The checker on a real log: what ran is found to be clean, and what is wrong in a live installation is reported."""

import pytest
from harness import World, until
from history import History, history_of, verify
from infinity_matrix import UnknownExecution
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.fact import Finished
from infinity_matrix_bus.facts import finished_payload
from infinity_matrix_bus.subjects import shard_of
from infinity_matrix_coordinator.verification.reading import Report, verify_installation


async def run_one(world: World, client: Client) -> str:
    tasks = [Task("first", "worker"), Task("second", "worker", depends_on=["first"])]
    execution = (await Workflow("checked", tasks=tasks).execute(timeout=10.0)).execution_id

    async def is_finished() -> bool:
        return (await checked(client)).open == 0

    # A client knows the end as soon as the facts decide it.
    await until(is_finished, 5.0, "the end being written")
    return execution


async def checked(client: Client, execution: str | None = None) -> Report:
    return await verify_installation(await client.operations.session(), client.operations.installation, execution)


async def test_a_real_log_and_its_journal_are_clean_until_the_journal_is_doctored(world: World) -> None:
    await world.coordinator()
    await world.agent("worker")
    async with world.client() as client:
        execution = await run_one(world, client)
    history: History = await history_of(world.server.connect_url, world.journal)
    assert verify(history) == []
    assert len(history.begun) == len(history.outcomes()) == 2
    assert history.journal is not None
    first = history.begun[0]
    history.journal.append(first._replace(at=history.outcomes()[execution, "first", 1].at + 0.2))
    assert [(found.invariant, found.task) for found in verify(history)] == [("I3", "first")]


async def test_a_live_installation_is_checked_without_being_changed(world: World) -> None:
    await world.coordinator()
    await world.agent("worker")
    async with world.client() as client:
        execution = await run_one(world, client)
        session, subjects = await client.operations.session(), client.operations.subjects
        shard = shard_of(execution, client.operations.installation.shards)
        report = await checked(client)
        assert report == Report([], facts=4, executions=1)
        assert await checked(client, execution) == report
        with pytest.raises(UnknownExecution):
            await checked(client, "nobody")
        # Whoever has the secret can write a second end, and a forger without it only garbage.
        end = finished_payload(Finished(execution, 0.0, 2, "completed"), {})
        await session.request(subjects.finished(shard, execution, 2), end)
        await session.request(subjects.finished(shard, execution, 3)[:-1] + "x", end)
        await session.request("im.work.stray", b"{}")
        report = await checked(client)
        assert [found.invariant for found in report.violations] == ["I2"]
        assert (report.facts, report.garbage) == (5, 2)


async def test_what_is_left_in_the_queue_of_what_ended_long_ago_is_found(world: World) -> None:
    await world.coordinator()
    await world.agent("worker")
    async with world.client() as client:
        execution = await run_one(world, client)
        session, subjects = await client.operations.session(), client.operations.subjects
        await session.request(subjects.work("nobody", execution, "second", 9), b"{}")
    history = await history_of(world.server.connect_url, world.journal)
    assert verify(history) == []
    history.queue_read_at += 3600.0
    assert [(found.invariant, found.task) for found in verify(history)] == [("I14", "second")]
