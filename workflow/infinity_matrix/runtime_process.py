"""The process of the local runtime: `python -m infinity_matrix.runtime_process`. Started by `runtime.start_runtime`."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

from infinity_matrix_bus.log import get_logger, log_json
from infinity_matrix_bus.own_process import run_in_own_process
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator

from infinity_matrix.built_in import built_in_agents
from infinity_matrix.runtime import Runtime, RuntimeFolder, locked

IDLE_VARIABLE = "IM_RUNTIME_IDLE_S"
IDLE_S = 60.0
LOOK_S = 1.0
#: After the endpoint is withdrawn: a script that read it just before has connected by then.
WITHDRAWN_S = 0.5
SERVER_START_S = 60.0
HTTP_TIMEOUT_S = 2.0
LOG_BYTES_MAX = 16 * 1024 * 1024
#: This process's own: the coordinator. The built-in agents count theirs.
OWN_CONNECTIONS = 1
#: What is assumed when they cannot be counted: somebody is connected.
CONNECTIONS_MANY = 1_000_000
Count = Callable[[], Awaitable[int]]
log = get_logger("infinity_matrix.runtime")


async def run(folder: RuntimeFolder, idle_s: float) -> None:
    """Runs until told to stop, or until idle for `idle_s`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = EmbeddedServer(folder.store, monitoring=True, start_deadline_s=SERVER_START_S)
    async with server, contextlib.AsyncExitStack() as stack:
        coordinator = Coordinator(Endpoint(server.connect_url, name="infinity-matrix-runtime"))
        stack.push_async_callback(coordinator.stop)
        await coordinator.start()
        built_ins = await stack.enter_async_context(built_in_agents(coordinator))
        stack.callback(folder.endpoint.unlink, missing_ok=True)
        runtime = Runtime(server.url, server.token, os.getpid(), str(folder.log))
        folder.write(runtime)
        log.info("runtime_ready", url=server.url, pid=os.getpid())

        async def clients() -> int:
            return await _connections(server) - OWN_CONNECTIONS - built_ins.connections

        while not stop.is_set():
            if await _is_idle(clients, coordinator, stop, idle_s) and await _withdraw(folder, clients, runtime):
                log.info("runtime_idle", idle_s=idle_s)
                break
    log.info("runtime_ended")


async def _is_idle(clients: Count, coordinator: Coordinator, stop: asyncio.Event, idle_s: float) -> bool:
    """Returns True once nobody was connected and nothing open for `idle_s`, False when told to stop."""
    loop = asyncio.get_running_loop()
    idle_since = loop.time()
    while loop.time() - idle_since < idle_s:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(LOOK_S, idle_s)):
                await stop.wait()
            return False
        is_needed = coordinator.open_executions > 0 or coordinator.armed_schedules > 0
        if await clients() > 0 or is_needed or not coordinator.is_live:
            idle_since = loop.time()
    return True


async def _withdraw(folder: RuntimeFolder, clients: Count, runtime: Runtime) -> bool:
    """Takes the endpoint back; answers whether still nobody is connected, else it is published again."""
    async with locked(folder.start_lock):
        folder.endpoint.unlink(missing_ok=True)
        await asyncio.sleep(WITHDRAWN_S)
        if await clients() <= 0:
            return True
        folder.write(runtime)
        return False


async def _connections(server: EmbeddedServer) -> int:
    """How many are connected, this process included; a client that died is not among them."""

    def read() -> int:
        with urllib.request.urlopen(f"{server.monitoring_url}/varz", timeout=HTTP_TIMEOUT_S) as reply:
            return int(json.load(reply)["connections"])

    try:
        return await asyncio.to_thread(read)
    except (OSError, ValueError, KeyError) as error:
        log.warning("connections_not_counted", reason=str(error))
        return CONNECTIONS_MANY


def main() -> int:
    """Holds the runtime's lock for its whole life; answers 3 when another one holds it."""
    folder = RuntimeFolder.of_user()
    folder.make()
    life = os.open(folder.life_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write("another local runtime is running\n")
        return 3
    _trim(folder.log)
    log_json(sys.stderr)
    run_in_own_process(run(folder, float(os.environ.get(IDLE_VARIABLE, IDLE_S))))
    return 0


def _trim(path: Path) -> None:
    """Empties a log file that grew too large over many starts."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_BYTES_MAX:
            os.truncate(path, 0)


if __name__ == "__main__":
    sys.exit(main())
