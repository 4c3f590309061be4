"""`imx dev`: a server and a coordinator in the foreground. While it runs, this user's scripts find it by themselves."""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from infinity_matrix_actors.errors import StoreInUse
from infinity_matrix_bus.endpoint import Endpoint
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.process import Coordinator

from infinity_matrix.built_in import built_in_agents
from infinity_matrix.cli import output
from infinity_matrix.cli.coordinator import ended, log_to_stderr, told_to_stop
from infinity_matrix.cli.failure import UsageProblem
from infinity_matrix.runtime import Runtime, RuntimeFolder, locked

PORT_DEFAULT = 4222
HOST = "127.0.0.1"
START_DEADLINE_S = 60.0
SERVER_LOOK_S = 0.5
log = get_logger("infinity_matrix.cli")


async def run_dev(
    *, port: int | None, store: str | None, sync: Literal["always", "lazy"], no_auth: bool, as_json: bool
) -> int:
    """Runs until a signal; answers the exit code. Raises StoreInUse, ServerDidNotStart, UsageProblem."""
    folder = RuntimeFolder.of_user()
    folder.make()
    place = Path(store) if store is not None else folder.store
    chosen, note = _choose_port(port)
    server = EmbeddedServer(
        place, port=chosen, token="" if no_auth else None, sync=sync, start_deadline_s=START_DEADLINE_S
    )
    async with told_to_stop() as stop, contextlib.AsyncExitStack() as stack:
        # A script that wants a runtime meanwhile waits for this one, and does not start another.
        async with locked(folder.start_lock):
            try:
                await stack.enter_async_context(server)
            except StoreInUse as error:
                hint = "'imx dev --stop' ends a background runtime; --store uses another folder"
                raise UsageProblem(str(error), hint) from error
            # That shards are taken is news for an operator, not for who develops a workflow.
            log_to_stderr(logging.WARNING, as_json=as_json)
            coordinator = Coordinator(Endpoint(server.connect_url, name="infinity-matrix-dev"))
            stack.push_async_callback(coordinator.stop)
            await coordinator.start()
            runtime = Runtime(server.url, server.token, os.getpid(), str(server.log_path))
            is_found = stack.enter_context(_published(folder, runtime))
        _announce(server, sync=sync, note=note, is_found=is_found, as_json=as_json)
        watching = asyncio.create_task(_keep_running(server))
        try:
            async with built_in_agents(coordinator):
                await ended(coordinator, stop)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if not as_json:
            output.note("stopping; what is open goes on at the next start")
    return 0


def _choose_port(port: int | None) -> tuple[int | None, str]:
    """The port to listen on, None for any; and what to say about it."""
    if _is_free(port or PORT_DEFAULT):
        return port or PORT_DEFAULT, ""
    if port is not None:
        raise UsageProblem(f"port {port} is taken", "choose another --port, or stop what listens there")
    return None, f"port {PORT_DEFAULT} is taken, so it is another one"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A port in TIME_WAIT is one the server can have.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _published(folder: RuntimeFolder, runtime: Runtime) -> Iterator[bool]:
    """Makes this the local runtime during the block; answers False where a background one is that already."""
    life = os.open(folder.life_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        folder.write(runtime)
        try:
            yield True
        finally:
            folder.endpoint.unlink(missing_ok=True)
    finally:
        os.close(life)


async def _keep_running(server: EmbeddedServer) -> None:
    """Brings the server back when it ends by itself: the coordinator and all clients connect again."""
    while True:
        await asyncio.sleep(SERVER_LOOK_S)
        if not server.running:
            log.warning("server_ended", log=str(server.log_path))
            await server.start()
            log.warning("server_started_again", url=server.url)


def _announce(server: EmbeddedServer, *, sync: str, note: str, is_found: bool, as_json: bool) -> None:
    if as_json:
        record = {
            "IM_URL": server.connect_url,
            "url": server.url,
            "token": server.token,
            "store": str(server.store),
            "sync": sync,
            "pid": os.getpid(),
        }
        output.write_json(record)
        return
    found = (
        "Scripts of yours on this machine find it by themselves."
        if is_found
        else (
            "A background runtime is running too, and scripts use that unless IM_URL is set; 'imx dev --stop' ends it."
        )
    )
    lines = [
        f"infinity-matrix is ready at {server.url}" + (f" ({note})" if note else ""),
        f"store {server.store}, sync {sync}",
        "",
        f"  export IM_URL='{server.connect_url}'",
        f"  nats --server '{server.connect_url}' sub '{Subjects().all_status}'",
        "",
        f"{found} Ctrl-C stops it.",
    ]
    for line in lines:
        output.write_line(line)
