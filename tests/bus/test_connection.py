"""The supervised connection on a real server that comes and goes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from bus_world import connected, eventually, freeze, open_sockets
from infinity_matrix_actors.errors import InfinityMatrixError, StorageUnavailable, Unreachable
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session, SessionLost


def recorder(heard: list[Session]) -> Callable[[Session], Awaitable[None]]:
    async def listen(session: Session) -> None:
        heard.append(session)

    return listen


async def crash(server: EmbeddedServer) -> None:
    """Kill -9, and the same server again on the same port."""
    await server.kill()
    await server.start()


async def test_after_a_crash_of_the_server_there_is_a_new_session_and_listeners_have_it(
    server: EmbeddedServer,
) -> None:
    async with connected(server) as connection:
        heard: list[Session] = []
        await connection.add_listener(recorder(heard))
        assert heard == [connection.session]
        for number in (2, 3):
            await crash(server)
            await eventually(lambda number=number: len(heard) == number, "the next session")  # type: ignore[misc]
            assert heard[-1] is connection.session
            assert heard[-2].is_lost
            await connection.session.subscribe(
                "echo", lambda _, reply, data, __: connection.session.publish(reply, data)
            )
            assert await connection.session.request("echo", b"a") == b"a"
        assert connection.sessions == 3


async def test_nothing_is_buffered_while_there_is_no_server(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await server.kill()
        await eventually(lambda: not connection.is_connected, "the loss")
        with pytest.raises(SessionLost):
            connection.session.publish("a", b"lost")
        await server.start()
        async with connected(server) as other:
            got: list[bytes] = []
            await other.session.subscribe("a", lambda subject, reply, data, headers: got.append(data))
            await other.session.client.flush()
            (await connection.connected(5)).publish("a", b"new")
            await eventually(lambda: got, "the message of the new session")
            assert got == [b"new"]


async def test_waiting_for_a_session_ends_with_it_or_at_the_deadline(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        assert await connection.connected(0) is connection.session
        await server.kill()
        await eventually(lambda: not connection.is_connected, "the loss")
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"no connection for 0\.2 s"):
            await connection.connected(0.2)
        assert 0.15 < time.monotonic() - began < 2
        waiting = asyncio.create_task(connection.connected(10))
        await server.start()
        assert await waiting is connection.session
    with pytest.raises(Unreachable, match="the connection is closed"):
        await connection.connected(10)


async def test_a_first_connect_that_fails_raises(server: EmbeddedServer) -> None:
    await server.kill()
    connection = Connection(Endpoint(server.connect_url))
    with pytest.raises(Unreachable):
        await connection.open()
    await connection.close()


async def test_a_wrong_token_after_a_restart_is_tried_again_until_it_is_right(
    server: EmbeddedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "infinity_matrix.bus")
    async with connected(server) as connection:
        await server.kill()
        port = int(server.url.rpartition(":")[2])
        stranger = EmbeddedServer(server.store, port=port, token="another", sync="lazy")
        await stranger.start()
        try:
            refusals = stranger.log_path
            await eventually(lambda: refusals.read_text().count("authentication error") >= 3, "three tries")
            assert not connection.is_connected
        finally:
            await stranger.kill()
        await server.start()
        await connection.connected(10)
        assert connection.sessions == 2
        assert caplog.text.count("refused the credentials") == 1
        assert server.token not in caplog.text


def test_a_connection_lives_in_each_of_several_event_loops(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store", sync="lazy")
    asyncio.run(server.start())

    async def once() -> bytes:
        async with connected(server) as connection:
            session = connection.session
            await session.subscribe("echo", lambda _, reply, data, __: session.publish(reply, data))
            return await session.request("echo", b"a")

    try:
        assert [asyncio.run(once()) for _ in range(3)] == [b"a"] * 3
    finally:
        asyncio.run(server.stop())


# Listeners.


async def test_a_listener_that_waits_for_ever_does_not_hide_the_next_loss(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        entered: list[Session] = []
        ended: list[Session] = []

        async def wait_for_ever(session: Session) -> None:
            entered.append(session)
            if len(entered) == 2:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(session)

        await connection.add_listener(wait_for_ever)
        await crash(server)
        await eventually(lambda: len(entered) == 2, "the second call")
        await crash(server)
        await eventually(lambda: len(entered) == 3, "the third call")
        assert ended == [entered[1]]


@pytest.mark.parametrize("error", [StorageUnavailable("no leader"), RuntimeError("a fault of its owner")])
async def test_when_a_listener_cannot_set_up_all_are_called_with_a_new_session(
    server: EmbeddedServer, error: Exception
) -> None:
    async with connected(server) as connection:
        heard: list[Session] = []
        later: list[Session] = []

        async def fail_once(session: Session) -> None:
            heard.append(session)
            if len(heard) == 2:
                raise error

        await connection.add_listener(fail_once)
        await connection.add_listener(recorder(later))
        await crash(server)
        await eventually(lambda: len(later) == 2, "a session with which all could set up")
        assert len(heard) == 3
        assert later == [heard[0], heard[2]]


async def test_a_listener_is_not_called_with_a_session_that_is_lost_already(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        first: list[Session] = []
        second: list[Session] = []

        async def end_the_second(session: Session) -> None:
            first.append(session)
            if len(first) == 2:
                session.give_up("of no use")

        await connection.add_listener(end_the_second)
        await connection.add_listener(recorder(second))
        await crash(server)
        await eventually(lambda: len(second) == 2, "the third session")
        assert second == [first[0], first[2]]


async def test_a_listener_whose_first_call_fails_is_not_added(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        heard: list[Session] = []

        async def fail(session: Session) -> None:
            heard.append(session)
            raise InfinityMatrixError("no")

        with pytest.raises(InfinityMatrixError, match="no"):
            await connection.add_listener(fail)
        other: list[Session] = []
        await connection.add_listener(recorder(other))
        await crash(server)
        await eventually(lambda: len(other) == 2, "the next session")
        assert len(heard) == 1


async def test_a_listener_whose_session_is_lost_in_the_first_call_has_the_next(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        heard: list[Session] = []

        async def lose_the_first(session: Session) -> None:
            heard.append(session)
            if len(heard) == 1:
                session.give_up("of no use")
                raise SessionLost("lost")

        await connection.add_listener(lose_the_first)
        await eventually(lambda: len(heard) == 2, "the next session")
        assert heard[1] is connection.session


async def test_a_removed_listener_is_called_no_more(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        removed: list[Session] = []
        stays: list[Session] = []
        listener = recorder(removed)
        await connection.add_listener(listener)
        await connection.add_listener(recorder(stays))
        connection.remove_listener(listener)
        connection.remove_listener(listener)
        await crash(server)
        await eventually(lambda: len(stays) == 2, "the next session")
        assert len(removed) == 1


# The end.


@pytest.mark.parametrize("state", ["connected", "killed", "frozen"])
async def test_closing_leaves_no_task_and_no_socket(server: EmbeddedServer, state: str) -> None:
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    connection = await Connection(Endpoint(server.connect_url)).open()
    if state != "connected":
        await server.kill()
        await eventually(lambda: not connection.is_connected, "the loss")
    if state == "frozen":
        await server.start()
        await freeze(server)
        await eventually(lambda: open_sockets() > sockets, "a connect that waits for the server's greeting")
    try:
        began = time.monotonic()
        await connection.close()
        await connection.close()
        assert time.monotonic() - began < 1
        assert asyncio.all_tasks() == tasks
        assert open_sockets() == sockets
    finally:
        if state == "frozen":
            server.resume()
