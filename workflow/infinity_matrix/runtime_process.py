"""The process of the local runtime: `python -m infinity_matrix.runtime_process`. Started by `runtime.start_runtime`."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import urllib.request
from pathlib import Path

from infinity_matrix_bus.log import get_logger, log_json
from infinity_matrix_bus.own_process import run_in_own_process
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator

from infinity_matrix.runtime import Runtime, RuntimeFolder, locked

IDLE_VARIABLE = "IM_RUNTIME_IDLE_S"
IDLE_S = 60.0
LOOK_S = 1.0
#: After the endpoint is withdrawn: a script that read it just before has connected by then.
WITHDRAWN_S = 0.5
SERVER_START_S = 60.0
HTTP_TIMEOUT_S = 2.0
LOG_BYTES_MAX = 16 * 1024 * 1024
#: This process's own: the coordinator.
OWN_CONNECTIONS = 1
log = get_logger("infinity_matrix.runtime")


async def run(folder: RuntimeFolder, idle_s: float) -> None:
    """Runs until told to stop, or until idle for `idle_s`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = EmbeddedServer(folder.store, monitoring=True, start_deadline_s=SERVER_START_S)
    async with server:
        coordinator = Coordinator(Endpoint(server.connect_url, name="infinity-matrix-runtime"))
        try:
            await coordinator.start()
            runtime = Runtime(server.url, server.token, os.getpid(), str(folder.log))
            folder.write(runtime)
            log.info("runtime_ready", url=server.url, pid=os.getpid())
            while not stop.is_set():
                if await _is_idle(server, coordinator, stop, idle_s) and await _withdraw(folder, server, runtime):
                    log.info("runtime_idle", idle_s=idle_s)
                    break
        finally:
            folder.endpoint.unlink(missing_ok=True)
            await coordinator.stop()
    log.info("runtime_ended")


async def _is_idle(server: EmbeddedServer, coordinator: Coordinator, stop: asyncio.Event, idle_s: float) -> bool:
    """Returns True once nobody was connected and nothing open for `idle_s`, False when told to stop."""
    loop = asyncio.get_running_loop()
    idle_since = loop.time()
    while loop.time() - idle_since < idle_s:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), min(LOOK_S, idle_s))
            return False
        is_needed = coordinator.open_executions > 0 or coordinator.armed_schedules > 0
        if await _clients(server) > 0 or is_needed or not coordinator.is_live:
            idle_since = loop.time()
    return True


async def _withdraw(folder: RuntimeFolder, server: EmbeddedServer, runtime: Runtime) -> bool:
    """Takes the endpoint back; answers whether still nobody is connected, else it is published again."""
    async with locked(folder.start_lock):
        folder.endpoint.unlink(missing_ok=True)
        await asyncio.sleep(WITHDRAWN_S)
        if await _clients(server) == 0:
            return True
        folder.write(runtime)
        return False


async def _clients(server: EmbeddedServer) -> int:
    """Connections that are not this process's own; a client that died is not among them."""

    def read() -> int:
        with urllib.request.urlopen(f"{server.monitoring_url}/varz", timeout=HTTP_TIMEOUT_S) as reply:
            return int(json.load(reply)["connections"])

    try:
        return max(0, await asyncio.to_thread(read) - OWN_CONNECTIONS)
    except (OSError, ValueError, KeyError) as error:
        log.warning("clients_not_counted", reason=str(error))
        return 1


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
