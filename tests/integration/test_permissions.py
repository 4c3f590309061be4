"""The permissions that the production guide gives an agent: they suffice, and no more than it says comes of them."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import infinity_matrix
import nats
import pytest
from harness import until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.server_binary import find_server
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator
from nats.aio.client import Client as Nats

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
INBOX = "_INBOX_counter"
LARGE = "x" * 600_000
DEADLINE_S = 20.0


def blocks() -> tuple[str, list[str], list[str]]:
    """The user of the guide, and the further subjects for `imx agent serve` and for large payloads."""
    text = (GUIDES / "production.md").read_text()
    user, installed, large = re.findall(r"```\n(.*?)```", text[text.index("### Permissions") :], re.DOTALL)[:3]
    assert user.startswith("{ user: counter")
    return user.replace("password: ...", "password: own"), installed.split(), large.split()


def snippets() -> dict[str, Any]:
    """The functions of the payloads guide for agents without the SDK."""
    found: dict[str, Any] = {}
    for code in re.findall(r"```python\n(import.*?)```", (GUIDES / "payloads.md").read_text(), re.DOTALL):
        exec(code, found)
    return found


@asynccontextmanager
async def serving(folder: Path, *more: str) -> AsyncIterator[str]:
    """A server with two users, an installation on it, and a workflow of two agents; yields host and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = blocks()[0].replace("publish: [", "publish: [" + "\n".join(["", *more]))
    config = f"authorization {{ users: [ {{ user: all, password: own }}, {user} ] }}"
    path = folder / "server.conf"
    path.write_text(f'listen: 127.0.0.1:{port}\njetstream {{ store_dir: "{folder}/store" }}\n{config}\n')
    with (folder / "server.log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(find_server().path, "-c", str(path), stdout=log, stderr=log)
    coordinator = Coordinator(Endpoint(f"nats://all:own@127.0.0.1:{port}"))

    async def started() -> bool:
        try:
            await coordinator.start()
        except infinity_matrix.Unreachable:
            return False
        return True

    try:
        await until(started, DEADLINE_S, "the start of the server")
        yield f"127.0.0.1:{port}"
    finally:
        await coordinator.stop()
        if server.returncode is None:
            server.kill()
        await server.wait()


@asynccontextmanager
async def admin(server: str) -> AsyncIterator[Client]:
    async with infinity_matrix.connect(f"nats://all:own@{server}") as client:
        yield client


@asynccontextmanager
async def counter(server: str) -> AsyncIterator[tuple[Nats, list[str]]]:
    """A plain client of the agent's user, and what it was denied."""
    denied: list[str] = []

    async def note(error: Exception) -> None:
        denied.append(str(error))

    url = f"nats://counter:own@{server}"
    connection = await nats.connect(url, inbox_prefix=INBOX, error_cb=note, allow_reconnect=False)
    try:
        yield connection, denied
    finally:
        await connection.close()


async def deployed(client: Client) -> None:
    tasks = [Task("count", "agent-counter"), Task("pay", "agent-pay", depends_on=["count"])]
    await client.deploy(Workflow("both", tasks=tasks).definition())
    api = JetStreamApi(await client.operations.session())

    async def has_consumer() -> bool:
        return await api.consumer_info("IM_WORK", "agent-counter") is not None

    await until(has_consumer, DEADLINE_S, "the consumer of the agent")


async def counted(client: Client, execution: str) -> Any:
    """The result of the first task, once it has one."""

    async def is_counted() -> bool:
        return (await client.get_status(execution)).tasks["count"].state == "completed"

    await until(is_counted, DEADLINE_S, "the end of the task")
    return (await client.get_status(execution)).tasks["count"].result


async def test_an_agent_of_the_sdk_does_its_work_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, *blocks()[1], *blocks()[2]) as server, admin(server) as client:
        await deployed(client)
        agent = Agent("agent-counter")

        @agent.handler
        async def count(work: Work) -> Any:
            await asyncio.sleep(0.3)
            await work.progress(50, "half")
            work.log.info("counting")
            return LARGE if work.input == "large" else work.input

        monkeypatch.setenv("IM_INBOX_PREFIX", INBOX)
        monkeypatch.setenv("IM_URL", f"nats://counter:own@{server}")
        task = asyncio.create_task(agent.serve())
        try:
            for input in (7, "large"):
                execution = await client.start("both", input)
                assert await counted(client, execution) == (LARGE if input == "large" else 7)
                await client.cancel(execution, grace=0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_plain_agent_does_its_work_with_them_and_large_payloads_with_the_further_ones(tmp_path: Path) -> None:
    functions = snippets()
    async with serving(tmp_path, *blocks()[2]) as server, admin(server) as client:
        await deployed(client)
        execution = await client.start("both", [LARGE])
        async with counter(server) as (plain, denied):
            js = plain.jetstream()
            [message] = await (await js.pull_subscribe_bind("agent-counter", "IM_WORK")).fetch(1, timeout=5.0)
            work = json.loads(message.data)
            assert await functions["value_of"](plain, work["input"]) == [LARGE]
            result = await functions["reference_to"](plain, [LARGE, LARGE])
            await js.publish(work["reply_to"], json.dumps({"result": result}).encode())
            await message.ack()
            await plain.flush()
            assert denied == []
        assert await counted(client, execution) == [LARGE, LARGE]


async def test_it_hears_nothing_of_others_and_can_say_nothing_for_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, admin(server) as client:
        await deployed(client)
        execution = await client.start("both", 1)
        async with counter(server) as (plain, denied):
            heard: list[bytes] = []

            async def hear(message: Any) -> None:
                heard.append(message.data)

            await plain.subscribe("_INBOX.>", cb=hear)
            await plain.subscribe("im.work.>", cb=hear)
            for subject in (
                "$JS.API.CONSUMER.MSG.NEXT.IM_WORK.agent-pay",
                "$O.IM_ARTIFACTS.C.x",
                "$JS.API.DIRECT.GET.OBJ_IM_ARTIFACTS",
                "$JS.API.STREAM.PURGE.IM_WORK",
                "im.api.cancel",
                f"im.fact.0.{execution}.command.cancel.x",
                f"im.fact.0.{execution}.outcome.agent-pay.pay.1.0000000000000000",
            ):
                await plain.publish(subject, b"{}")
            await plain.flush()
            await client.get_status(execution)
            await until(lambda: len(denied) == 9, DEADLINE_S)
            assert heard == []
            # It may be asked for an answer there; but nothing is answered on a subject of the system.
            await plain.publish("im.api.attempt", b"{}", reply=f"im.fact.0.{execution}.signal.go.x")
            await plain.publish("im.api.attempt", b"{}", reply="$KV.IM_INSTALLATION.secret")
            await plain.flush()
        await asyncio.sleep(0.5)
        facts = [type(fact).__name__ for _, fact in await client.operations.facts_of(execution)]
        assert facts == ["Started"]
