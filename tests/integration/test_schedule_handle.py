"""`workflow.schedule(...)` as users call it: in plain code, in a loop, in a thread; and what it says when it cannot."""

import asyncio
import contextvars
import datetime
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.schedule import ScheduleHandle
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import UnknownSchedule
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

WAIT_S = 20.0
#: More than a schedule may hold: it is found when it is stored.
LARGE = "x" * (300 * 1024)


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("echo")

    @agent.handler
    async def handle(work: Work) -> Any:
        return work.input

    async with infinity_matrix.local(agents=[agent], sync="lazy") as client:
        yield client


def workflow(name: str = "report") -> Workflow:
    return Workflow(name, tasks=[Task("only", "echo")])


async def in_plain_code(call: Callable[[], Any]) -> Any:
    """Runs `call` where neither a loop runs nor a block surrounds it."""
    return await asyncio.get_running_loop().run_in_executor(None, contextvars.Context().run, call)


async def names(im: Client) -> list[str]:
    return [view.name for view in await ScheduleOperations(im.operations).list()]


async def test_plain_code_has_it_stored_when_the_call_returns(im: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM_URL", im.url)
    handle = await in_plain_code(lambda: workflow().schedule(cron="0 2 * * *", timezone="Europe/Berlin"))
    assert await names(im) == ["report"]
    assert await handle is handle
    assert [time.hour for time in handle.next_times(3)] == [2, 2, 2]
    assert (await handle.show()).upcoming == tuple(time.isoformat() for time in handle.next_times())


async def test_plain_code_is_told_at_once_when_nothing_was_stored(im: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM_URL", "nats://127.0.0.1:1")
    with pytest.raises(infinity_matrix.Unreachable):
        await in_plain_code(lambda: workflow().schedule(cron="@daily"))
    monkeypatch.setenv("IM_URL", im.url)
    with pytest.raises(infinity_matrix.PayloadTooLarge):
        await in_plain_code(lambda: workflow().schedule(cron="@daily", input=LARGE))


async def test_a_thread_of_a_surrounding_block_stores_it_there(im: Client) -> None:
    await asyncio.to_thread(workflow().schedule, cron="@daily")
    assert await names(im) == ["report"]


async def test_in_a_loop_the_next_await_on_the_workflow_finds_it_stored(im: Client) -> None:
    one = workflow()
    handle = one.schedule(cron="@daily")
    assert isinstance(handle, ScheduleHandle)
    await one.execute(1, timeout=WAIT_S)
    assert await names(im) == ["report"]
    await handle


async def test_in_a_loop_the_next_await_raises_what_kept_it_from_being_stored_once(im: Client) -> None:
    one = workflow()
    one.schedule(cron="@daily", input=LARGE)
    with pytest.raises(infinity_matrix.PayloadTooLarge):
        await one.execute(timeout=WAIT_S)
    assert (await one.execute(1, timeout=WAIT_S)).status == "completed"
    handle = one.schedule(cron="@daily", input=LARGE)
    with pytest.raises(infinity_matrix.PayloadTooLarge):
        await handle
    assert (await one.execute(1, timeout=WAIT_S)).status == "completed"
    assert await names(im) == []


async def test_a_loop_that_ends_first_leaves_a_word(im: Client, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        workflow().schedule(cron="@daily")

    with caplog.at_level(logging.ERROR, logger="infinity_matrix"):
        await in_plain_code(lambda: asyncio.run(main()))
    assert "schedule_not_stored" in caplog.text
    assert "await the handle" in caplog.text


async def test_what_is_due_runs_the_definition_that_was_scheduled(im: Client) -> None:
    at = datetime.datetime.fromtimestamp(time.time() + 1, datetime.UTC)
    one = Workflow("report", version="2", tasks=[Task("mine", "echo")])
    handle = await one.schedule(run_at=at, input={"n": 1})
    await workflow().deploy()

    async def is_over() -> bool:
        return bool(await im.list("report", "completed"))

    await until(is_over, WAIT_S, "its execution")
    (execution,) = await im.list("report")
    assert (await im.wait(execution.execution_id)).outputs == {"mine": {"n": 1}}
    view = await handle.show()
    assert (view.started, view.upcoming, handle.name) == (1, (), f"report-{at:%Y%m%dT%H%M%SZ}")


async def test_a_time_that_comes_while_it_is_being_stored_is_due_at_once(im: Client) -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.3)
    handle = workflow().schedule(run_at=at)
    # The loop is busy with something else: what stores it is not heard before the time has come.
    time.sleep(0.5)  # noqa: ASYNC251
    await handle

    async def has_started() -> bool:
        return (await handle.show()).started == 1

    await until(has_started, WAIT_S, "the start of what came due")


async def test_a_handle_controls_its_schedule(im: Client) -> None:
    handle = workflow().schedule(cron="@daily", name="nightly", paused=True)
    assert (await handle.show()).paused
    await handle.resume()
    await handle.pause("holidays")
    assert (await handle.show()).reason == "holidays"
    execution = await handle.trigger()
    filled = await handle.backfill("2026-01-01T00:00", "2026-01-02T00:00", overlap="allow_all")
    assert len(filled) == 2
    for one in (execution, *filled):
        assert one is not None

        async def is_over(one: str = one) -> bool:
            return one in {found.execution_id for found in await im.list("report", "completed")}

        await until(is_over, WAIT_S, "its end")
    with pytest.raises(infinity_matrix.InvalidDefinition, match="no overlap policy"):
        await handle.trigger(overlap="never")
    await handle.delete()
    with pytest.raises(UnknownSchedule):
        await handle.show()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"cron": "61 * * * *"}, "no cron expression"),
        ({"cron": "0 0 31 2 *"}, "never comes due"),
        ({"cron": "@daily", "timezone": "Mars/Base"}, "no time zone"),
        ({"run_at": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)}, "has passed"),
        ({"run_at": "soon"}, "no time"),
        ({}, "one of cron and run_at"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_sent(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(infinity_matrix.InvalidDefinition, match=problem):
        workflow().schedule(**fields)


async def test_a_time_without_zone_says_where_it_was_taken(im: Client, caplog: pytest.LogCaptureFixture) -> None:
    naive = datetime.datetime(2099, 1, 1, 12)
    handle = await workflow().schedule(run_at=naive)
    assert handle.assumed_timezone == "UTC"
    assert "time_without_zone" in caplog.text and "taken_in=UTC" in caplog.text
    assert handle.next_times() == [naive.replace(tzinfo=datetime.UTC)]
    in_tokyo = await workflow().schedule(run_at=naive, timezone="Asia/Tokyo", name="tokyo")
    assert in_tokyo.assumed_timezone == "Asia/Tokyo"
    assert in_tokyo.next_times()[0].utcoffset() == datetime.timedelta(hours=9)
    assert in_tokyo.schedule.run_at == naive.replace(tzinfo=datetime.UTC).timestamp() - 9 * 3600
    aware = await workflow().schedule(run_at=naive.replace(tzinfo=datetime.UTC), name="aware")
    assert aware.assumed_timezone is None


async def test_a_second_time_without_a_name_is_refused_rather_than_replacing_the_first(im: Client) -> None:
    one = workflow()
    await one.schedule(cron="0 2 * * *")
    with pytest.raises(infinity_matrix.InvalidDefinition, match="give the second one a name"):
        one.schedule(cron="0 14 * * *")
    await one.schedule(cron="0 14 * * *", name="report-again")
    await one.schedule(cron="0 2 * * *", overlap="allow_all")
    assert await names(im) == ["report", "report-again"]
    assert (await ScheduleOperations(im.operations).show("report")).overlap == "allow_all"


async def test_after_a_deletion_it_may_be_scheduled_at_other_times(im: Client) -> None:
    report = workflow()
    handle = await report.schedule(cron="0 2 * * *")
    await handle.delete()
    again = await report.schedule(cron="0 3 * * *")
    assert (await again.show()).cron == "0 3 * * *"


async def test_a_client_has_the_schedules_that_others_made(im: Client) -> None:
    await workflow().schedule(cron="0 2 * * *", name="nightly")
    await im.schedules.pause("nightly", "holidays")
    (view,) = await im.schedules.list()
    assert (view.name, view.paused, view.reason) == ("nightly", True, "holidays")
