"""Reads in a cluster, where any replica may answer and there may be no leader for some seconds.

One server stands for it: what a replica that lags would say is said in its place.
"""

import asyncio

import infinity_matrix
import pytest
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.errors import StorageUnavailable, UnknownExecution
from infinity_matrix_bus.api import API_PREFIX, JetStreamApi
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session

NO_LEADER = b'{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}'


async def say_first(session: Session, stream: str) -> None:
    """Answers the first read of last messages as a replica that has nothing yet; the server answers all others."""
    api = JetStreamApi(session)
    info = await api.stream_info(stream)
    assert info is not None
    await api.update_stream({**info["config"], "allow_direct": False})
    reading: list[asyncio.Task[None]] = []

    async def answer(reply: str) -> None:
        await api.update_stream({**info["config"], "allow_direct": True})
        await subscription.close()
        session.publish(reply, b"", headers=b"NATS/1.0 404 No Results\r\n\r\n")

    def on_read(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        reading.append(asyncio.create_task(answer(reply)))

    subscription = await session.subscribe(f"{API_PREFIX}.DIRECT.GET.{stream}", on_read)
    await api.stream_info(stream)


async def test_a_replica_that_has_not_seen_them_yet_makes_no_workflow_and_no_execution_unknown(
    server: EmbeddedServer,
) -> None:
    connection = await Connection(Endpoint(server.connect_url)).open()
    try:
        await install(connection.session, shards=1)
        async with infinity_matrix.connect(server.connect_url) as client:
            await client.deploy(Workflow("w", tasks=[Task("a", "agent-x")]).definition())
            await say_first(connection.session, "KV_IM_DEFINITIONS")
            digest = await client.operations.definition_to_start("w")
            execution = await client.operations.start("w", digest, None, "e1")
            await say_first(connection.session, "IM_FACTS_0")
            assert (await client.get_status(execution)).workflow == "w"
            with pytest.raises(UnknownExecution):
                await client.get_status("nobody")
    finally:
        await connection.close()


async def test_a_request_waits_for_the_leader_that_a_cluster_elects(server: EmbeddedServer) -> None:
    session = await Session.connect(Endpoint(server.connect_url))
    answers = [NO_LEADER, b'{"type":"done"}']

    def on_request(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        session.publish(reply, answers.pop(0) if len(answers) > 1 or subject.endswith("elected") else NO_LEADER)

    try:
        # No request of the server's own: it leaves such a one alone.
        await session.subscribe(f"{API_PREFIX}.test.*", on_request)
        assert await JetStreamApi(session).call("test.elected") == {"type": "done"}
        with pytest.raises(StorageUnavailable, match="temporarily unavailable"):
            await JetStreamApi(session).call("test.never", timeout_s=0.3)
    finally:
        await session.close()
