"""Reading an execution by folding its log: from another process, with no coordinator alive, however long it is."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import infinity_matrix
import pytest
from harness import World, until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.server import EmbeddedServer

FAN = 1998

READER = """
import asyncio, json, sys
import infinity_matrix

async def main(url, execution):
    async with infinity_matrix.connect(url) as im:
        status = await im.get_status(execution)
        result = await im.wait(execution, 5)
        metrics = await im.get_metrics(execution)
        updates = [update async for update in im.stream_status(execution)]
        json.dump({
            "state": status.state, "progress": status.progress, "tasks": len(status.tasks),
            "result": result.status, "outputs": len(result.outputs),
            "completed": metrics.completed, "attempts": metrics.total_attempts,
            "updates": [[update.task_id, update.status] for update in updates],
        }, sys.stdout)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("echo", concurrency=64)

    @agent.handler
    async def handle(work: Work) -> str:
        await asyncio.sleep(work.config.get("seconds", 0))
        return work.task

    async with infinity_matrix.local(agents=[agent], sync="lazy") as client:
        yield client


async def test_two_thousand_tasks_are_read_in_another_process_with_the_coordinator_killed(world: World) -> None:
    coordinator = await world.coordinator()
    await world.agent("worker", concurrency=256)
    names = [f"t{number}" for number in range(FAN)]
    tasks = [Task("split", "worker"), *(Task(name, "worker", depends_on=["split"]) for name in names)]
    workflow = Workflow("wide", tasks=[*tasks, Task("join", "worker", depends_on=names)])
    async with world.client() as client:
        result = await workflow.execute(timeout=60.0)
        assert result.status == "completed"
        coordinator.kill()
        url = world.server.connect_url
        output = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", READER, url, result.execution_id], capture_output=True, timeout=60
        )
        assert output.returncode == 0, output.stderr.decode()
        read = json.loads(output.stdout)
        updates = read.pop("updates")
        assert read == {
            "state": "completed",
            "progress": 100.0,
            "tasks": FAN + 2,
            "result": "completed",
            "outputs": FAN + 2,
            "completed": FAN + 2,
            "attempts": FAN + 2,
        }
        assert updates[0] == [None, "running"]
        assert updates[-1] == [None, "completed"]
        for status in ("queued", "completed"):
            named = [name for name, what in updates if what == status and name is not None]
            assert sorted(named) == sorted([*names, "split", "join"])
        # Nobody could carry a new one on, and that is said.
        began = time.monotonic()
        fresh = infinity_matrix.connect(url)
        async with fresh:
            with pytest.raises(infinity_matrix.NoCoordinator):
                await workflow.start()
        assert 4.5 < time.monotonic() - began < 8.0
        assert client.connection.sessions == 1


async def test_updates_are_all_there_although_the_server_restarts_meanwhile(world: World) -> None:
    await world.coordinator()
    await world.agent("worker")
    names = [f"t{number}" for number in range(30)]
    tasks = [
        Task(name, "worker", config={"seconds": 0.05}, depends_on=names[:number][-1:])
        for number, name in enumerate(names)
    ]
    workflow = Workflow("followed", tasks=tasks)
    async with world.client() as client:
        execution = await workflow.start()
        seen: list[tuple[str | None, str]] = []
        async for update in workflow.stream_status(execution):
            seen.append((update.task_id, update.status))
            if seen[-1] in (("t5", "completed"), ("t15", "completed")):
                await world.server.kill()
                await world.server.start()
        assert client.connection.sessions == 3
        assert seen == [(update.task_id, update.status) async for update in workflow.stream_status(execution)]
    without_running = [entry for entry in seen if entry[1] != "running"]
    expected = [(name, status) for name in names for status in ("queued", "completed")]
    assert without_running == [*expected, (None, "completed")]


async def test_waiting_goes_on_over_a_restart_of_the_server(world: World) -> None:
    await world.coordinator()
    await world.agent("worker")
    workflow = Workflow("waited-for", tasks=[Task("only", "worker", config={"seconds": 1.0})])
    async with world.client():
        waiting = asyncio.create_task(workflow.execute(timeout=20.0))
        await until(lambda: world.journal.exists(), 5.0)
        await world.server.kill()
        await world.server.start()
        assert (await waiting).status == "completed"


async def test_reading_and_starting_go_on_over_restarts_of_the_server(world: World) -> None:
    await world.coordinator()
    await world.agent("worker")
    workflow = Workflow("read-on", tasks=[Task("only", "worker")])
    async with world.client() as client:
        first = (await workflow.execute(timeout=10.0)).execution_id
        stop = asyncio.Event()
        calls = 0

        async def read_on() -> None:
            nonlocal calls
            while not stop.is_set():
                assert (await client.get_status(first)).state == "completed"
                assert (await client.get_metrics(first)).completed == 1
                assert any(summary.execution_id == first for summary in await client.list())
                await client.get_logs(first)
                calls += 1

        async def start_on() -> None:
            while not stop.is_set():
                # Work that was on its way to an agent when the server died comes again after its lease of 30 s.
                assert (await workflow.execute(timeout=45.0)).status == "completed"

        tasks = [asyncio.create_task(work()) for work in (read_on, read_on, start_on, start_on)]
        for _ in range(4):
            wanted = calls + 5

            def goes_on(wanted: int = wanted) -> bool:
                return calls > wanted or any(task.done() for task in tasks)

            await until(goes_on, 10.0)
            await world.server.kill()
            await world.server.start()
        stop.set()
        await asyncio.gather(*tasks)
        assert client.connection.sessions == 5


async def test_who_stops_waiting_leaves_the_execution_running(im: Client) -> None:
    workflow = Workflow("left-alone", tasks=[Task("only", "echo", config={"seconds": 0.6})])
    execution = await workflow.start()
    with pytest.raises(TimeoutError):
        await workflow.wait(execution, timeout=0.1)
    waiting = asyncio.create_task(workflow.wait(execution))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    executing = asyncio.create_task(workflow.execute(execution_id="left-too"))
    await until(lambda: has_started(im, "left-too"), 5.0)
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing
    assert (await workflow.get_status(execution)).state == "running"
    assert (await workflow.wait(execution, 10.0)).status == "completed"
    assert (await workflow.wait("left-too", 10.0)).status == "completed"


async def has_started(im: Client, execution: str) -> bool:
    return any(summary.execution_id == execution for summary in await im.list())


async def test_status_follows_the_execution_while_it_runs(im: Client) -> None:
    tasks = [Task("a", "echo"), Task("b", "echo", depends_on=["a"], config={"seconds": 0.5}), Task("c", "nobody")]
    workflow = Workflow("watched", tasks=tasks, grace=0)
    execution = await workflow.start()

    async def b_runs() -> bool:
        return (await workflow.get_status(execution)).tasks["b"].state == "running"

    await until(b_runs, 5.0)
    status = await workflow.get_status(execution)
    assert (status.state, status.current_task) == ("running", "b")
    assert round(status.progress) == 33
    assert status.tasks["a"].result == "a"
    assert status.tasks["c"].state == "queued"
    assert (status.tasks["a"].attempt, status.tasks["a"].error) == (1, None)
    metrics = await workflow.get_metrics(execution)
    assert metrics.tasks["a"].queue_time is not None
    assert 0 <= metrics.tasks["a"].queue_time < 1.0
    assert metrics.tasks["b"].run_time is None
    await workflow.cancel(execution)
    await workflow.wait(execution, 15.0)


async def test_queue_time_is_that_of_the_queue(im: Client) -> None:
    workflow = Workflow("queued", tasks=[Task("only", "late")])
    execution = await workflow.start()
    await asyncio.sleep(0.8)
    late = Agent("late")

    @late.handler
    async def handle(work: Work) -> None:
        await asyncio.sleep(0.3)

    await im.serve([late])
    await workflow.wait(execution, 10.0)
    only = (await workflow.get_metrics(execution)).tasks["only"]
    assert only.queue_time is not None
    assert only.run_time is not None
    assert 0.75 < only.queue_time < 1.5
    assert 0.28 < only.run_time < 0.7


async def test_listing_shows_every_execution_newest_first(im: Client) -> None:
    first, second = (Workflow(name, tasks=[Task("only", "echo")]) for name in ("first", "second"))
    for number in range(3):
        await first.execute(execution_id=f"first-{number}", timeout=10.0)
    await second.execute(execution_id="second-0", timeout=10.0)
    waiting = await Workflow("waiting", tasks=[Task("only", "nobody")]).start()
    found = [(summary.execution_id, summary.state) for summary in await im.list()]
    assert found[0] == (waiting, "running")
    assert found[1:] == [(name, "completed") for name in ("second-0", "first-2", "first-1", "first-0")]
    assert [summary.execution_id for summary in await im.list("first")] == ["first-2", "first-1", "first-0"]
    assert [summary.execution_id for summary in await im.list(state="running")] == [waiting]


async def test_an_url_without_a_server_is_unreachable() -> None:
    with pytest.raises(infinity_matrix.Unreachable):
        async with infinity_matrix.connect("nats://127.0.0.1:9"):
            pass


async def test_a_server_without_an_installation_says_so(server: EmbeddedServer) -> None:
    with pytest.raises(infinity_matrix.NotInstalled):
        async with infinity_matrix.connect(server.connect_url):
            pass
    agent = Agent("too-early")
    agent.handler(lambda work: None)
    with pytest.raises(infinity_matrix.NotInstalled):
        await agent.serve(server.connect_url)


async def test_a_store_keeps_what_ran_in_it(tmp_path: Path) -> None:
    workflow = Workflow("kept", tasks=[Task("only", "keeper")])

    def keeper() -> Agent:
        agent = Agent("keeper")
        agent.handler(lambda work: "kept")
        return agent

    async with infinity_matrix.local(store=tmp_path / "kept"):
        # Nobody serves it here: it is open when the system ends.
        open_execution = await workflow.start()
    async with infinity_matrix.local(agents=[keeper()], store=tmp_path / "kept") as client:
        assert (await client.wait(open_execution, 15.0)).outputs == {"only": "kept"}


def test_several_loops_in_one_process_use_one_system(tmp_path: Path) -> None:
    workflow = Workflow("loops", tasks=[Task("only", "looped")])

    async def once() -> str:
        agent = Agent("looped")
        agent.handler(lambda work: "done")
        async with infinity_matrix.local(agents=[agent], store=tmp_path / "loops", sync="lazy"):
            return (await workflow.execute(timeout=15.0)).execution_id

    first, second = asyncio.run(once()), asyncio.run(once())
    assert first != second


async def test_the_innermost_system_is_meant_then_the_environment(
    world: World, monkeypatch: pytest.MonkeyPatch, im: Client
) -> None:
    await world.coordinator()
    await world.agent("echo")
    workflow = Workflow("where", tasks=[Task("only", "echo")])
    monkeypatch.setenv("IM_URL", "nats://127.0.0.1:9")

    async def count(client: Client) -> int:
        return len(await client.list("where"))

    await workflow.execute(timeout=10.0)
    assert await count(im) == 1
    async with infinity_matrix.connect(world.server.connect_url) as inner:
        await workflow.execute(timeout=10.0)
        assert (await count(inner), await count(im)) == (1, 1)
    await workflow.execute(timeout=10.0)
    assert await count(im) == 2


async def test_the_environment_names_the_system(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.coordinator()
    await world.agent("worker")
    monkeypatch.setenv("IM_URL", world.server.connect_url)
    workflow = Workflow("environment", tasks=[Task("only", "worker")])
    executions = await asyncio.gather(*(workflow.execute(timeout=10.0) for _ in range(10)))
    assert {result.status for result in executions} == {"completed"}
    served = Agent("environment-agent")
    served.handler(lambda work: "served")
    serving = asyncio.create_task(served.serve())
    result = await Workflow("served", tasks=[Task("only", "environment-agent")]).execute(timeout=10.0)
    assert result.outputs == {"only": "served"}
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    monkeypatch.setenv("IM_URL", "nats://127.0.0.1:9")
    with pytest.raises(infinity_matrix.Unreachable):
        await workflow.execute()
