"""TLS on the real server: what is said encrypted, what is not said at all, and that a failed handshake ends."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bus_world import eventually
from infinity_matrix_actors.errors import Unreachable
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.server_binary import find_server
from infinity_matrix_bus.session import Endpoint, Session

#: Made for these tests, valid for a hundred years: a server's certificate for localhost, and who signed it.
FOLDER = Path(__file__).parent / "tls"
TOKEN = "a-token-that-must-not-be-heard"
#: More than a session takes to connect, or to give up.
WITHIN_S = 20.0


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(FOLDER / "ca.pem"))


def settings(*more: str, certificate: str = "server") -> str:
    tls = [f'cert_file: "{FOLDER}/{certificate}.pem"', f'key_file: "{FOLDER}/{certificate}.key"', *more]
    return f'authorization {{ token: "{TOKEN}" }}\ntls {{ {", ".join(tls)} }}\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(folder: Path, config: str, port: int | None = None) -> AsyncIterator[str]:
    """A nats-server with this configuration; yields host and port."""
    port = port or free_port()
    path = folder / "server.conf"
    path.write_text(f"listen: 127.0.0.1:{port}\n{config}")
    process = await asyncio.create_subprocess_exec(
        find_server().path, "-c", str(path), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def says(url: str, **fields: object) -> None:
    """A whole round trip with that server."""
    session = await Session.connect(Endpoint(url, **fields))  # type: ignore[arg-type]
    await session.subscribe("echo", lambda subject, reply, data, headers: session.publish(reply, data))
    assert await session.request("echo", b"hello", 5.0) == b"hello"
    await session.close()


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_server_with_tls_is_spoken_to_encrypted(tmp_path: Path, scheme: str) -> None:
    async with serving(tmp_path, settings()) as server:
        await says(f"{scheme}://{TOKEN}@{server}", tls=trusting())


async def test_a_server_that_begins_with_the_handshake_is_spoken_to_so(tmp_path: Path) -> None:
    async with serving(tmp_path, settings("handshake_first: true")) as server:
        await says(f"tls://{TOKEN}@{server}", tls=trusting(), tls_first=True)


async def test_where_tls_is_only_offered_it_is_taken_by_who_asks_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path, settings() + "allow_non_tls: true\n") as server:
        session = await Session.connect(Endpoint(f"tls://{TOKEN}@{server}", tls=trusting()))
        assert session.client._socket is not None
        assert session.client._socket.get_extra_info("sslcontext") is not None
        await session.close()


@pytest.mark.parametrize("fields", [{}, {"tls": trusting()}])
async def test_nothing_is_said_in_the_clear_to_a_server_without_tls(fields: dict[str, ssl.SSLContext]) -> None:
    heard: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n')
        heard.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(Unreachable, match="offers no TLS"):
            await Session.connect(Endpoint(f"{'nats' if fields else 'tls'}://{TOKEN}@127.0.0.1:{port}", **fields))
    finally:
        server.close()
    assert not b"".join(heard)


async def test_a_certificate_that_is_not_trusted_ends_the_try_and_says_why(tmp_path: Path) -> None:
    async with serving(tmp_path, settings()) as server:
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            async with asyncio.timeout(WITHIN_S):
                await Session.connect(Endpoint(f"tls://{TOKEN}@{server}"))
        assert time.monotonic() - began < WITHIN_S


async def test_a_connection_comes_back_after_a_time_with_a_wrong_certificate(tmp_path: Path) -> None:
    port = free_port()
    async with serving(tmp_path, settings(), port):
        connection = await Connection(Endpoint(f"tls://{TOKEN}@127.0.0.1:{port}", tls=trusting())).open()
    async with serving(tmp_path, settings(certificate="stranger"), port):
        # A handshake or two.
        await asyncio.sleep(2.0)
        assert not connection.is_connected
    async with serving(tmp_path, settings(), port):
        await eventually(lambda: connection.is_connected, "the connection being there again", WITHIN_S)
    await connection.close()
