"""Schedules: executions that begin by themselves, and what is done with them by hand.

Run: python examples/schedule.py
"""

import asyncio
from datetime import UTC, datetime, timedelta

import infinity_matrix
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

reporter = Agent("agent-reporter")
days: asyncio.Queue[str] = asyncio.Queue()


@reporter.handler
async def report(work: Work) -> str:
    # A schedule without an input of its own gives the time that was due.
    await days.put(work.input["due"])
    return f"the report of {work.input['due']}"


workflow = Workflow(name="daily-report")
workflow.add_task(Task(id="report", agent="agent-reporter"))


async def main() -> None:
    async with infinity_matrix.local(agents=[reporter]) as im, asyncio.timeout(30):
        # Every night at two, in a zone with summer time.
        nightly = await workflow.schedule(cron="0 2 * * *", timezone="Europe/Berlin", overlap="buffer_one")
        print("the next three:", ", ".join(f"{time:%a %H:%M %Z}" for time in nightly.next_times(3)))
        assert [time.hour for time in nightly.next_times(3)] == [2, 2, 2]

        # Once, in a second.
        soon = datetime.now(UTC) + timedelta(seconds=1)
        once = await workflow.schedule(run_at=soon)
        due = await days.get()
        print(f"{once.name} came due, {(datetime.now(UTC) - soon).total_seconds() * 1000:.0f} ms ago")
        assert datetime.fromisoformat(due) == soon

        # The nights that were missed before there was a schedule, one after another.
        await nightly.backfill("2026-10-24T00:00", "2026-10-26T23:00")
        nights = [await days.get() for _ in range(3)]
        print("backfilled", nights)
        assert nights == [f"2026-10-{night}:00:00.000000Z" for night in ("24T00", "25T00", "26T01")]

        # Now, though nothing comes due while it is paused.
        await nightly.pause("holidays")
        await nightly.trigger()
        await days.get()
        stands = await nightly.show()
        assert (stands.paused, stands.upcoming, stands.started) == (True, (), 0)
        await nightly.delete()
        executions = await im.list(workflow="daily-report")
        results = [await im.wait(execution.execution_id) for execution in executions]
    print(f"{len(results)} executions began by themselves")
    assert [result.status for result in results] == ["completed"] * 5


if __name__ == "__main__":
    asyncio.run(main())
