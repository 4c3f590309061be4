"""Payloads that no message holds, on a real system: whoever gives and takes values sees nothing of it."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import infinity_matrix
import pytest
from harness import World, consumer_is_there, until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_agents.cancels import POLITE_S
from infinity_matrix_agents.command import command_agent
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import OFFLOAD_BYTES, is_reference, target_of
from infinity_matrix_bus.history import read_all
from large_values import giver, taker, text
from plain import connected

WAIT_S = 30.0
STREAM = "OBJ_IM_ARTIFACTS"


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    """A whole system in this process, without agents."""
    async with infinity_matrix.local(sync="lazy") as client:
        yield client


async def largest_message(im: Client, stream: str) -> int:
    entries = await read_all(await im.operations.session(), stream, ())
    return max(len(entry.data) for entry in entries)


async def artifacts(im: Client) -> int:
    return len(await im.operations.artifacts.list())


async def test_a_large_result_goes_from_task_to_task_and_to_the_caller(im: Client) -> None:
    large = {"text": text(5_000_000), "rows": [1, None, "ü"]}
    first = giver("gives", {"a": large})
    echo = Agent("echoes")

    @echo.handler
    async def pass_on(work: Work) -> Any:
        return work.upstream["a"]

    last, works = taker("takes")
    await im.serve([first, echo, last])
    tasks = [
        Task("a", "gives"),
        Task("b", "echoes", depends_on=["a"]),
        Task("c", "takes", depends_on=["a", "b"]),
    ]
    result = await Workflow("large", tasks=tasks).execute(timeout=WAIT_S)
    assert result.outputs == {"a": large, "b": large, "c": "taken"}
    assert works[0].upstream == {"a": large, "b": large}
    assert is_reference(works[0].record["upstream"]["a"])
    # The same bytes are stored once, and no message is large.
    assert await artifacts(im) == 1
    for shard in range(4):
        info = await JetStreamApi(await im.operations.session()).stream_info(f"IM_FACTS_{shard}")
        if info and info["state"]["messages"]:
            assert await largest_message(im, f"IM_FACTS_{shard}") < 1000

    again = await im.wait(result.execution_id)
    assert again.outputs == result.outputs
    status = await im.get_status(result.execution_id)
    assert status.tasks["b"].result == large
    status = await im.get_status(result.execution_id, is_whole=False)
    assert is_reference(status.tasks["b"].result)


@pytest.mark.parametrize(("size_bytes", "stored"), [(OFFLOAD_BYTES - 1000, 0), (OFFLOAD_BYTES + 1000, 2)])
async def test_what_is_not_large_stays_in_the_messages(im: Client, size_bytes: int, stored: int) -> None:
    await im.serve([giver("gives", {"a": text(size_bytes)})])
    result = await Workflow("sizes", tasks=[Task("a", "gives")]).execute(text(size_bytes), timeout=WAIT_S)
    assert len(result.outputs["a"]) == size_bytes
    assert await artifacts(im) == stored


async def test_a_large_input_is_stored_and_compared_by_what_it_is(im: Client) -> None:
    agent, works = taker("takes")
    await im.serve([agent])
    workflow = Workflow("input", tasks=[Task("a", "takes")])
    large = {"text": text(1_000_000)}
    result = await workflow.execute(large, execution_id="once", timeout=WAIT_S)
    assert result.outputs == {"a": "taken"}
    assert works[0].input == large
    assert await workflow.start(large, execution_id="once") == "once"
    with pytest.raises(infinity_matrix.ExecutionExists):
        await workflow.start({"text": text(1_000_000)}, execution_id="once")
    assert len(works) == 1


async def test_what_is_above_the_hard_limit_is_refused_by_name(im: Client) -> None:
    sent = Agent("sends-too-much")

    @sent.handler
    async def give(work: Work) -> str:
        return "x" * (64 * 1024 * 1024)

    await im.serve([sent])
    workflow = Workflow("too-large", tasks=[Task("a", "sends-too-much")])
    with pytest.raises(infinity_matrix.PayloadTooLarge, match="the input is 67108866 bytes, the limit is 67108864"):
        await workflow.start("x" * (64 * 1024 * 1024))
    result = await workflow.execute(timeout=WAIT_S)
    assert result.error is not None
    assert result.error["type"] == "PayloadTooLarge"
    assert result.error["message"] == "the result is 67108866 bytes, the limit is 67108864"
    assert await artifacts(im) == 0
    assert im.connection.sessions == 1


async def test_a_compensation_is_told_the_large_result_it_undoes(im: Client) -> None:
    results = {"before": text(400_000), "book": {"ticket": text(400_000)}}
    failing = Agent("fails")

    @failing.handler
    async def fail(work: Work) -> None:
        raise ValueError("no")

    undo, works = taker("undoes")
    await im.serve([giver("gives", results), failing, undo])
    tasks = [
        Task("before", "gives"),
        Task("book", "gives", depends_on=["before"], compensation=Task("unbook", "undoes")),
        Task("pay", "fails", depends_on=["book"]),
    ]
    result = await Workflow("undone", tasks=tasks).execute(timeout=WAIT_S)
    assert result.compensated == ("book",)
    compensates = works[0].compensates
    assert compensates is not None
    assert compensates["result"] == results["book"]
    assert compensates["upstream"] == {"before": results["before"]}
    assert works[0].upstream == {"book": results["book"]}


async def test_a_missing_artifact_fails_the_attempt_and_may_be_tried_again(im: Client) -> None:
    remover = Agent("removes")

    @remover.handler
    async def remove(work: Work) -> Any:
        await JetStreamApi(await im.operations.session()).purge(STREAM, ">")
        return "gone"

    agent, works = taker("takes")
    await im.serve([giver("gives", {"a": text(400_000)}), remover, agent])
    tasks = [
        Task("a", "gives"),
        Task("b", "removes", depends_on=["a"]),
        Task("c", "takes", depends_on=["a", "b"], retry_config={"max_attempts": 2, "initial_delay": 0.01}),
    ]
    execution = await Workflow("missing", tasks=tasks).start()
    await until(lambda: has_ended(im, execution), WAIT_S)
    status = await im.get_status(execution)
    assert status.error is not None
    assert (status.error["type"], status.error["task"]) == ("ArtifactMissing", "c")
    assert status.tasks["c"].attempt == 2
    assert works == []
    # A status says where things stand, whatever is gone.
    assert is_reference(status.tasks["a"].result)


async def has_ended(im: Client, execution: str) -> bool:
    return (await im.get_status(execution, is_whole=False)).state != "running"


async def test_a_store_without_room_is_waited_for(im: Client) -> None:
    api = JetStreamApi(await im.operations.session())
    info = await api.stream_info(STREAM)
    assert info is not None
    begun = 0
    agent = Agent("patient")

    @agent.handler
    async def give(work: Work) -> str:
        nonlocal begun
        begun += 1
        return text(1_000_000)

    await im.serve([agent])
    await api.update_stream({**info["config"], "max_bytes": 300_000})
    workflow = Workflow("patient", tasks=[Task("a", "patient")])
    execution = await workflow.start()
    await until(lambda: begun == 1, WAIT_S)
    await asyncio.sleep(0.3)
    assert (await im.get_status(execution)).state == "running"
    await api.update_stream(info["config"])
    result = await im.wait(execution, timeout=WAIT_S)
    assert len(result.outputs["a"]) == 1_000_000
    assert begun == 1


async def test_a_server_that_dies_while_a_large_result_is_stored_gets_it_later(world: World) -> None:
    await world.coordinator()
    begun = 0
    agent = Agent("patient")
    large = text(1_000_000)

    @agent.handler
    async def give(work: Work) -> str:
        nonlocal begun
        begun += 1
        return large

    async with world.client() as client:
        await client.serve([agent])
        api = JetStreamApi(await client.operations.session())
        info = await api.stream_info(STREAM)
        assert info is not None
        await api.update_stream({**info["config"], "max_bytes": 300_000})
        execution = await Workflow("patient", tasks=[Task("a", "patient")]).start()
        await until(lambda: begun == 1, WAIT_S)
        await world.server.kill()
        await world.server.start()
        await JetStreamApi(await client.operations.session()).update_stream(info["config"])
        result = await client.wait(execution, timeout=WAIT_S)
    assert result.outputs == {"a": large}
    assert begun == 1


async def test_a_cancel_while_a_large_result_is_stored_finds_it_done(im: Client) -> None:
    api = JetStreamApi(await im.operations.session())
    info = await api.stream_info(STREAM)
    assert info is not None
    done = asyncio.Event()
    agent = Agent("done-late")

    @agent.handler
    async def give(work: Work) -> str:
        done.set()
        return text(1_000_000)

    undo, undone = taker("undoes")
    await im.serve([agent, undo])
    await api.update_stream({**info["config"], "max_bytes": 300_000})
    task = Task("a", "done-late", compensation=Task("undo-a", "undoes"))
    execution = await Workflow("done-late", tasks=[task]).start()
    await asyncio.wait_for(done.wait(), WAIT_S)
    await im.cancel(execution)
    # A handler that still ran would be cancelled by now.
    await asyncio.sleep(POLITE_S + 0.3)
    await api.update_stream(info["config"])
    result = await im.wait(execution, timeout=WAIT_S)
    assert result.status == "cancelled"
    # What was done is undone, and not taken for something that never was.
    assert result.compensated == ("a",)
    assert undone[0].compensates is not None
    assert "forward" not in undone[0].compensates


async def test_a_signal_may_be_large(im: Client) -> None:
    agent, works = taker("takes")
    await im.serve([agent])
    tasks = [Task("wait", wait_for="go"), Task("after", "takes", depends_on=["wait"])]
    execution = await Workflow("signalled", tasks=tasks).start()
    data = {"text": text(700_000)}
    await im.signal(execution, "go", data)
    result = await im.wait(execution, timeout=WAIT_S)
    assert result.outputs["wait"] == data
    assert works[0].upstream == {"wait": data}


async def test_a_program_is_given_large_values_and_gives_one(im: Client) -> None:
    program = "import json, sys; print(json.dumps({'got': json.load(sys.stdin)['upstream']['a']}))"
    large = text(2_000_000)
    await im.serve([giver("gives", {"a": large}), command_agent("program", [sys.executable, "-c", program])])
    tasks = [Task("a", "gives"), Task("b", "program", depends_on=["a"])]
    result = await Workflow("program", tasks=tasks).execute(timeout=WAIT_S)
    assert result.outputs["b"] == {"got": large}


def from_the_guide(name: str) -> Any:
    """A function as the guide for agents without the SDK shows it."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "payloads.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if f"async def {name}(" in code]
    names: dict[str, Any] = {}
    exec(code, names)
    return names[name]


async def test_a_plain_agent_fetches_and_stores_values_as_the_guide_says(im: Client) -> None:
    large, made = {"text": text(1_000_000)}, {"rows": text(1_500_000)}
    agent, works = taker("takes")
    await im.serve([giver("gives", {"a": large}), agent])
    tasks = [
        Task("a", "gives"),
        Task("plain", "plain-agent", depends_on=["a"]),
        Task("last", "takes", depends_on=["plain"]),
    ]
    execution = await Workflow("plain", tasks=tasks).start()
    async with connected(im.url) as nats:
        await consumer_is_there(nats, "plain-agent")
        subscription = await nats.jetstream().pull_subscribe_bind("plain-agent", "IM_WORK")
        (message,) = await subscription.fetch(1, timeout=WAIT_S)
        work = json.loads(message.data)
        reference = work["upstream"]["a"]
        assert set(reference) == {"$artifact"}
        assert await from_the_guide("value_of")(nats, reference) == large
        # A reference passed on is its value, and so is one of its own.
        result = [reference, await from_the_guide("reference_to")(nats, made), "small"]
        await nats.jetstream().publish(work["reply_to"], json.dumps({"result": result}).encode())
        await message.ack()
    ended = await im.wait(execution, timeout=WAIT_S)
    assert ended.outputs["plain"] == [large, made, "small"]
    assert works[0].upstream == {"plain": [large, made, "small"]}


async def test_a_service_is_given_values_as_far_as_they_fit_a_message(im: Client) -> None:
    small, large = text(400_000), text(600_000)
    await im.serve([giver("gives-small", {"a": small}), giver("gives-large", {"a": large})])
    asked: list[Any] = []
    async with connected(im.url) as nats:

        async def reply(message: Any) -> None:
            asked.append(json.loads(message.data))
            await message.respond(b'"done"')

        await nats.subscribe("large.service", cb=reply)
        await nats.flush()
        for giving in ("gives-small", "gives-large"):
            tasks = [Task("a", giving), Task("ask", "service:large.service", depends_on=["a"], config={"of": giving})]
            ended = await im.wait(await Workflow("asks", tasks=tasks).start(), timeout=WAIT_S)
            assert ended.outputs.get("ask") == "done", ended
        assert asked[0]["upstream"] == {"a": small}
        assert set(asked[1]["upstream"]["a"]) == {"$artifact"}
        assert asked[1]["config"] == {"of": "gives-large"}


async def test_a_failed_download_leaves_the_caller_with_an_error_that_names_it(im: Client) -> None:
    await im.serve([giver("gives", {"a": text(400_000)})])
    result = await Workflow("named", tasks=[Task("a", "gives")]).execute(timeout=WAIT_S)
    status = await im.get_status(result.execution_id, is_whole=False)
    name, _ = target_of(status.tasks["a"].result)
    await JetStreamApi(await im.operations.session()).purge(STREAM, ">")
    async with infinity_matrix.connect(im.url) as other:
        with pytest.raises(infinity_matrix.InfinityMatrixError, match=name):
            await other.wait(result.execution_id)
        left = await other.get_status(result.execution_id)
        assert left == replace(status)
