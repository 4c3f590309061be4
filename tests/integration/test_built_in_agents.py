"""The built-in agents beside a coordinator: there when there is work for them, and nothing before."""

import asyncio
import json
from pathlib import Path

import infinity_matrix
from harness import World, until
from infinity_matrix.built_in import BuiltInAgents, built_in_agents
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator
from nats.aio.msg import Msg
from plain import connected


async def connections(server: EmbeddedServer) -> int:
    """How many are connected to a server with monitoring."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.monitoring_url.rpartition(":")[2]))
    writer.write(b"GET /varz HTTP/1.0\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    return int(json.loads(body)["connections"])


def priced(name: str = "priced") -> Workflow:
    return Workflow(name, tasks=[Task("price", "service:prices.lookup", config={"item": "tea"})])


async def lookup(message: Msg) -> None:
    item = json.loads(message.data)["config"]["item"]
    await message.respond(json.dumps({"item": item, "price": 3}).encode())


async def test_a_service_does_a_task_of_a_workflow() -> None:
    async with infinity_matrix.local(sync="lazy") as client, connected(client.url) as services:
        await services.subscribe("prices.lookup", cb=lookup)
        await services.flush()
        result = await priced().execute(timeout=20.0)
    assert result.outputs == {"price": {"item": "tea", "price": 3}}


async def test_unused_they_make_no_connection_and_no_consumer(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "store", sync="lazy", monitoring=True) as server:
        coordinator = await Coordinator(Endpoint(server.connect_url)).start()
        async with built_in_agents(coordinator) as built_ins:
            assert (built_ins.connections, built_ins.served) == (0, [])
            assert await connections(server) == 1
            async with connected(server.connect_url) as client:
                assert await client.jetstream().consumers_info("IM_WORK") == []
        await coordinator.stop()


async def test_the_first_work_for_one_of_them_opens_that_one_only(server: EmbeddedServer) -> None:
    coordinator = await Coordinator(Endpoint(server.connect_url)).start()
    async with built_in_agents(coordinator) as built_ins, connected(server.connect_url) as services:
        await services.subscribe("prices.lookup", cb=lookup)
        await services.flush()
        async with infinity_matrix.connect(server.connect_url):
            results = await asyncio.gather(*(priced().execute(timeout=20.0) for _ in range(5)))
        assert [result.status for result in results] == ["completed"] * 5
        assert (built_ins.connections, built_ins.served) == (1, ["im-bridge"])
    await coordinator.stop()


async def test_work_that_lay_there_while_nobody_ran_is_done_at_the_next_start(server: EmbeddedServer) -> None:
    async with connected(server.connect_url) as services:
        # A coordinator without built-in agents: the work stays in the queue, as if all processes had ended.
        coordinator = await Coordinator(Endpoint(server.connect_url)).start()
        async with infinity_matrix.connect(server.connect_url):
            execution = await priced().start()
            jetstream = services.jetstream()

            async def is_queued() -> bool:
                return (await jetstream.stream_info("IM_WORK")).state.messages == 1

            await until(is_queued, 10.0, "the work being published")
            await coordinator.stop()
            await services.subscribe("prices.lookup", cb=lookup)
            await services.flush()
            coordinator = await Coordinator(Endpoint(server.connect_url)).start()
            async with built_in_agents(coordinator):
                result = await priced().wait(execution, timeout=30.0)
        await coordinator.stop()
    assert result.outputs == {"price": {"item": "tea", "price": 3}}


async def test_they_come_back_after_the_server_was_killed(world: World) -> None:
    coordinator = await Coordinator(Endpoint(world.server.connect_url)).start()
    built_ins = BuiltInAgents(coordinator.connection, coordinator.prefix)
    await built_ins.open()
    try:
        await world.server.kill()
        await world.server.start()
        await until(lambda: coordinator.connection.is_connected and coordinator.is_live, 30.0, "the coordinator")
        async with connected(world.server.connect_url) as services:
            await services.subscribe("prices.lookup", cb=lookup)
            await services.flush()
            async with world.client():
                result = await priced().execute(timeout=30.0)
    finally:
        await built_ins.close()
        await coordinator.stop()
    assert result.status == "completed"
