"""Maps, children, templates, schemas and slots on a real system: many instances, parents that die, two coordinators."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import infinity_matrix
import pytest
from harness import Process, World, all_finished, say, until
from infinity_matrix import InvalidInput
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Trigger, Workflow
from infinity_matrix_coordinator.children import CHILD_DEPTH_MAX

WAIT_S = 20.0
ITEMS = 10_000
#: What a map of so many items may cost a coordinator: its results and states, no instance but those at work.
GROWTH_MAX_MIB = 40


class Hands:
    """An agent that does what the config says, and what it did."""

    def __init__(self) -> None:
        self.agent = Agent("hands", concurrency=256)
        self.agent.handler(self.handle)
        self.begun: Counter[str] = Counter()
        self.undone: list[str] = []

    async def handle(self, work: Work) -> Any:
        if work.compensates is not None:
            self.undone.append(work.compensates["task"])
            return None
        self.begun[f"{work.workflow}/{work.task}"] += 1
        await asyncio.sleep(work.config.get("seconds", 0))
        if work.config.get("fails"):
            raise Failure("wanted", "as the config says", retryable=False)
        return work.config.get("result", {"input": work.input})


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def im(hands: Hands) -> AsyncIterator[Client]:
    async with infinity_matrix.local(agents=[hands.agent], sync="lazy") as client:
        yield client


def memory_mib(process: Process) -> float:
    """The resident memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def one(name: str, **config: Any) -> Workflow:
    return Workflow(name, tasks=[Task("do", "hands", config=config)])


# Maps.


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
async def test_ten_thousand_items_run_in_bounded_memory(world: World) -> None:
    coordinator = await world.coordinator()
    mapper = Agent("mapper", concurrency=256)
    seen: Counter[int] = Counter()

    @mapper.handler
    async def handle(work: Work) -> int:
        seen[work.config["n"]] += 1
        return int(work.config["n"]) * 2

    async with world.client() as client:
        await client.serve([mapper])
        workflow = Workflow(
            "wide", tasks=[Task("m", "mapper", for_each="input", config={"n": "${{ item }}"}, max_parallel=200)]
        )
        await workflow.execute(input=list(range(100)))
        before_mib = memory_mib(coordinator)
        most_mib = before_mib
        began = time.monotonic()
        execution = await workflow.start(input=list(range(ITEMS)))
        waiting = asyncio.create_task(workflow.wait(execution, timeout=120))
        while not waiting.done():
            most_mib = max(most_mib, memory_mib(coordinator))
            await asyncio.wait([waiting], timeout=0.1)
        result = await waiting
        took_s = time.monotonic() - began
        assert result.status == "completed", result.error
        assert result.outputs["m"] == [2 * number for number in range(ITEMS)]
        assert all(seen[number] == 2 for number in range(100))
        assert all(seen[number] == 1 for number in range(100, ITEMS))
        status = await workflow.get_status(execution)
        assert status.tasks["m"].instances == {"total": ITEMS, "running": 0, "completed": ITEMS}
        grown_mib = most_mib - before_mib
        say(f"{ITEMS} items in {took_s:.1f} s; the coordinator grew by {grown_mib:.1f} MiB from {before_mib:.0f}")
        assert grown_mib < GROWTH_MAX_MIB


async def test_a_map_over_a_large_result_looks_into_it(im: Client) -> None:
    items = [{"n": number, "text": "x" * 200} for number in range(2_000)]
    workflow = Workflow(
        "large",
        tasks=[
            Task("list", "hands", config={"result": {"items": items, "factor": 3}}),
            Task(
                "m",
                "hands",
                for_each="list.result.items",
                config={"result": "${{ item.n * list.result.factor }}"},
                depends_on=["list"],
            ),
        ],
    )
    result = await workflow.execute(timeout=90)
    assert result.status == "completed", result.error
    assert result.outputs["m"] == [3 * number for number in range(2_000)]


async def test_a_map_in_a_map_is_done_and_undone_line_by_line(im: Client, hands: Hands) -> None:
    lines = Task(
        "lines",
        "hands",
        for_each=["input.orders", "item.lines"],
        config={"result": {"line": "${{ item }}", "place": "${{ index }}"}},
        compensation=Task("undo-lines", "hands"),
    )
    last = Task("last", "hands", depends_on=["lines"], config={"fails": "${{ input.fails }}"})
    workflow = Workflow("nested", tasks=[lines, last])
    orders = [{"lines": ["a", "b"]}, {"lines": []}, {"lines": ["c"]}]
    result = await workflow.execute(input={"orders": orders, "fails": False}, timeout=WAIT_S)
    assert result.status == "completed", result.error
    assert result.outputs["lines"] == [
        [{"line": "a", "place": 0}, {"line": "b", "place": 1}],
        [],
        [{"line": "c", "place": 0}],
    ]
    instances = ["lines~0~0", "lines~0~1", "lines~2~0"]
    assert hands.begun == Counter({f"nested/{name}": 1 for name in (*instances, "last")})
    result = await workflow.execute(input={"orders": orders, "fails": True}, timeout=WAIT_S)
    assert (result.status, result.compensation) == ("failed", "complete")
    assert sorted(hands.undone) == instances


async def test_a_map_that_is_cancelled_ends_soon_and_goes_on_when_it_is_taken_up(im: Client, hands: Hands) -> None:
    task = Task("m", "hands", for_each="input", max_parallel=4, config={"seconds": "${{ item }}"})
    workflow = Workflow("cancelled-map", tasks=[task], grace="1s")
    execution = await workflow.start(input=[0, 0, 0, 0, 30, 30, 30, 30, 0.01])
    await until(lambda: hands.begun.total() == 8, WAIT_S)
    await workflow.cancel(execution)
    result = await workflow.wait(execution, timeout=WAIT_S)
    assert result.status == "cancelled"
    status = await workflow.get_status(execution)
    assert status.tasks["m"].state == "cancelled"
    assert status.tasks["m"].instances == {"total": 9, "running": 0, "completed": 4, "cancelled": 4}
    await workflow.retry(execution)
    await until(lambda: hands.begun.total() == 12, WAIT_S)
    assert max(hands.begun.values()) == 2
    await workflow.cancel(execution, grace=0)
    assert (await workflow.wait(execution, timeout=WAIT_S)).status == "cancelled"


# Loops.


async def test_a_loop_is_given_what_came_before_and_is_undone_from_its_last_turn(im: Client) -> None:
    turner = Agent("turner")
    turns: list[tuple[int | None, Any]] = []
    undone: list[tuple[int, Any]] = []

    @turner.handler
    async def turn(work: Work) -> int | None:
        if work.compensates is not None:
            undone.append((work.compensates["iteration"], work.compensates["result"]))
            return None
        turns.append((work.iteration, work.previous))
        return 1 if work.previous is None else int(work.previous) * 2

    await im.serve([turner])
    grow = Task(
        "grow",
        "turner",
        loop={"until": "result >= input.enough", "max_iterations": 4},
        compensation=Task("shrink", "turner"),
    )
    workflow = Workflow("looping", tasks=[grow])
    result = await workflow.execute(input={"enough": 8}, timeout=WAIT_S)
    assert result.status == "completed", result.error
    assert result.outputs == {"grow": 8}
    assert turns == [(0, None), (1, 1), (2, 2), (3, 4)]
    assert undone == []
    result = await workflow.execute(input={"enough": 9}, timeout=WAIT_S)
    assert result.status == "failed"
    assert result.error is not None
    assert result.error["type"] == "max_iterations"
    assert undone == [(3, 8), (2, 4), (1, 2), (0, 1)]


# Children.


async def test_a_child_that_fails_lets_its_parent_undo(im: Client, hands: Hands) -> None:
    await one("broken", fails=True).deploy()
    parent = Workflow(
        "parent",
        tasks=[
            Task("a", "hands", compensation=Task("undo-a", "hands")),
            Task("c", workflow="broken", depends_on=["a"]),
        ],
    )
    result = await parent.execute(timeout=WAIT_S)
    assert result.status == "failed"
    assert result.compensated == ("a",)
    assert result.error is not None
    assert result.error["type"] == "child_failed"
    assert "wanted: as the config says (task 'do')" in result.error["message"]
    child = (await parent.get_status(result.execution_id)).tasks["c"].child
    assert child is not None
    assert (await parent.get_status(child)).state == "failed"
    assert hands.undone == ["a"]


async def test_a_child_is_cancelled_with_its_parent_and_undoes_what_it_did(im: Client, hands: Hands) -> None:
    slow = Workflow(
        "slow",
        tasks=[
            Task("first", "hands", compensation=Task("undo-first", "hands")),
            Task("then", "hands", depends_on=["first"], config={"seconds": 60}),
        ],
        grace="1s",
    )
    await slow.deploy()
    parent = Workflow("cancelled-parent", tasks=[Task("c", workflow="slow")], grace="1s")
    execution = await parent.start()
    await until(lambda: hands.begun["slow/then"] == 1, WAIT_S)
    child = (await parent.get_status(execution)).tasks["c"].child
    assert child is not None
    await parent.cancel(execution, reason="enough")
    result = await parent.wait(execution, timeout=WAIT_S)
    assert result.status == "cancelled"
    # The parent waits for it, compensations included.
    assert hands.undone == ["first"]
    assert (await parent.get_status(child)).state == "cancelled"


async def test_a_child_that_has_not_started_yet_is_cancelled_all_the_same(world: World) -> None:
    first = await world.coordinator()
    hands = Hands()
    async with world.client() as client:
        await client.serve([hands.agent])
        undone = Task("do", "hands", config={"seconds": 60}, compensation=Task("undo", "hands"))
        await Workflow("late", tasks=[undone, Task("never", "hands", depends_on=["do"])], grace="1s").deploy()
        parent = Workflow("early", tasks=[Task("c", workflow="late")], grace="1s")
        digest = await client.deploy(parent.definition())
        # Nobody is there to start the child when the parent is cancelled.
        first.kill()
        execution = await client.operations.start("early", digest)
        await client.operations.cancel(execution)
        await world.coordinator()
        assert (await parent.wait(execution, timeout=WAIT_S)).status == "cancelled"
        (child,) = await client.list("late")
        assert (await client.wait(child.execution_id, WAIT_S)).status == "cancelled"
        assert hands.begun["late/never"] == 0


async def test_an_abandoned_child_outlives_its_parent(im: Client, hands: Hands) -> None:
    await one("lasting", seconds=1.5).deploy()
    parent = Workflow("leaving", tasks=[Task("c", workflow="lasting", close_policy="abandon")], grace="1s")
    execution = await parent.start()
    await until(lambda: hands.begun["lasting/do"] == 1, WAIT_S)
    child = (await parent.get_status(execution)).tasks["c"].child
    assert child is not None
    await parent.cancel(execution)
    assert (await parent.wait(execution, timeout=WAIT_S)).status == "cancelled"
    assert (await parent.get_status(child)).state == "running"
    assert (await im.wait(child, WAIT_S)).status == "completed"


async def test_a_child_that_takes_too_long_is_ended(im: Client, hands: Hands) -> None:
    await one("endless", seconds=60).deploy()
    parent = Workflow("impatient", tasks=[Task("c", workflow="endless", timeout="300ms")])
    result = await parent.execute(timeout=WAIT_S)
    assert result.error is not None
    assert result.error["type"] == "timed_out"
    child = (await parent.get_status(result.execution_id)).tasks["c"].child
    assert child is not None
    assert (await im.wait(child, WAIT_S)).status == "cancelled"


async def test_a_workflow_that_starts_itself_ends_at_the_depth_limit(im: Client) -> None:
    itself = Workflow("itself", tasks=[Task("again", workflow="itself")])
    await itself.deploy()
    result = await itself.execute(timeout=60)
    assert result.status == "failed"
    assert result.error is not None
    assert f"children may be {CHILD_DEPTH_MAX} deep" in result.error["message"]
    assert len(await im.list("itself")) == CHILD_DEPTH_MAX + 1


async def test_a_workflow_that_is_not_deployed_is_no_child(im: Client) -> None:
    result = await Workflow("lonely", tasks=[Task("c", workflow="nobody")]).execute(timeout=WAIT_S)
    assert result.error is not None
    assert result.error["type"] == "unknown_workflow"
    assert "'nobody'" in result.error["message"]


async def test_children_are_started_once_by_two_coordinators(world: World) -> None:
    await world.coordinator(owns_all=True)
    second = await world.coordinator(owns_all=True)
    hands = Hands()
    async with world.client() as client:
        await client.serve([hands.agent])
        await one("leaf").deploy()
        mapped = Task("c", workflow="leaf", for_each="input", max_parallel=8, input="item")
        parent = Workflow("twins", tasks=[mapped])
        execution = await parent.start(input=list(range(40)))
        await until(lambda: hands.begun.total() > 10, WAIT_S)
        second.kill()
        result = await parent.wait(execution, timeout=60)
        assert result.status == "completed", result.error
        assert [outputs["do"]["input"] for outputs in result.outputs["c"]] == list(range(40))
        assert len(await client.list("leaf")) == 40


# Templates and schemas.


async def test_a_template_with_a_missing_path_fails_its_task_and_says_which(im: Client, hands: Hands) -> None:
    task = Task("use", "hands", depends_on=["a"], config={"deep": [{"x": "${{ a.result.input.missing.path }}"}]})
    workflow = Workflow("hole", tasks=[Task("a", "hands"), task])
    result = await workflow.execute(input={}, timeout=WAIT_S)
    assert result.status == "failed"
    assert result.error is not None
    assert (result.error["type"], result.error["task"]) == ("expression_error", "use")
    assert "a.result.input.missing.path" in result.error["message"]
    assert hands.begun == {"hole/a": 1}


SCHEMA = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}


async def test_an_input_that_does_not_fit_its_schema_starts_nothing_whoever_starts_it(im: Client) -> None:
    workflow = Workflow("checked", input_schema=SCHEMA, tasks=[Task("do", "hands")])
    await workflow.deploy()
    with pytest.raises(InvalidInput, match="'id' is a required property"):
        await workflow.start(input={})
    with pytest.raises(InvalidInput, match="id: 'x' is not of type 'integer'"):
        await workflow.execute(input={"id": "x"})
    with pytest.raises(InvalidInput):
        await im.start("checked", {"id": None})
    with pytest.raises(InvalidInput):
        await workflow.schedule(cron="0 2 * * *", input={"no": "id"})
    session = await im.operations.session()
    request = json.dumps({"workflow": "checked", "input": {}}).encode()
    reply = json.loads(await session.request(im.operations.subjects.api("start"), request, WAIT_S))
    assert reply["error"]["type"] == "InvalidInput"
    assert await im.list("checked") == []
    assert (await workflow.execute(input={"id": 1}, timeout=WAIT_S)).status == "completed"


async def test_an_event_that_does_not_fit_the_schema_is_an_execution_that_failed(im: Client) -> None:
    workflow = Workflow("on-event", input_schema=SCHEMA, tasks=[Task("do", "hands")], triggers=[Trigger("things.made")])
    await workflow.deploy()
    await im.trigger("things.made", {"no": "id"})

    async def has_started() -> bool:
        return bool(await im.list("on-event"))

    await until(has_started, WAIT_S)
    (summary,) = await im.list("on-event")
    result = await im.wait(summary.execution_id, WAIT_S)
    assert result.error is not None
    assert result.error["type"] == "invalid_input"


async def test_a_child_whose_input_does_not_fit_fails_its_parent(im: Client) -> None:
    await Workflow("strict", input_schema=SCHEMA, tasks=[Task("do", "hands")]).deploy()
    result = await Workflow("loose", tasks=[Task("c", workflow="strict", input={"id": "x"})]).execute(timeout=WAIT_S)
    assert result.error is not None
    assert result.error["type"] == "child_failed"
    assert "invalid_input" in result.error["message"]


# Slots.


async def test_no_more_run_than_have_a_slot_though_a_coordinator_is_killed(world: World) -> None:
    await world.coordinator(sweep_interval_s=1.0)
    second = await world.coordinator(sweep_interval_s=1.0)
    keeper = Agent("keeper", concurrency=64)
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    attempts: Counter[str] = Counter()

    @keeper.handler
    async def handle(work: Work) -> None:
        key = work.input["key"]
        attempts[work.execution] += 1
        running[key] += 1
        most[key] = max(most[key], running[key])
        await asyncio.sleep(0.05)
        running[key] -= 1

    async with world.client() as client:
        await client.serve([keeper])
        workflow = Workflow("kept", tasks=[Task("do", "keeper")], max_running=3, key="input.key")
        digest = await client.deploy(workflow.definition())
        executions = [await client.operations.start("kept", digest, {"key": key}) for _ in range(30) for key in "xy"]
        await until(lambda: attempts.total() > 12, WAIT_S)
        second.kill()
        states = await all_finished(client, executions, 60.0)
        assert set(states.values()) == {"completed"}
        assert most == {"x": 3, "y": 3}
        # And those that end without having run give their place back, too.
        late = [await client.operations.start("kept", digest, {"key": "x"}) for _ in range(6)]
        for execution in late[1::2]:
            await client.cancel(execution)
        states = await all_finished(client, late, 60.0)
        assert set(states.values()) <= {"completed", "cancelled"}
        assert most["x"] == 3
