"""`imx coordinator`: a coordinator in the foreground, that waits for its server and stops in order."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infinity_matrix_actors.errors import Unreachable
from infinity_matrix_bus.installation import SHARDS_DEFAULT
from infinity_matrix_bus.log import get_logger, log_json, log_lines
from infinity_matrix_coordinator.process import Coordinator

from infinity_matrix.built_in import built_in_agents
from infinity_matrix.resolution import Target

CONNECT_RETRY_S = 1.0
log = get_logger("infinity_matrix.cli")


def log_to_stderr(level: int = logging.INFO, *, as_json: bool) -> None:
    """Sends this process's log to stderr: lines for a terminal, JSON for whatever collects them."""
    if as_json or not sys.stderr.isatty():
        log_json(sys.stderr, level)
    else:
        log_lines(sys.stderr, level)


@asynccontextmanager
async def told_to_stop() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set during the block."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def run_coordinator(target: Target, *, shards: int | None, as_json: bool) -> int:
    """Runs a coordinator of `target` until a signal; answers the exit code."""
    log_to_stderr(as_json=as_json)
    async with told_to_stop() as stop:
        coordinator = await _started(target, shards or SHARDS_DEFAULT, stop)
        if coordinator is None:
            return 0
        try:
            log.info("coordinator_ready", instance=coordinator.instance, shards=len(coordinator.shards))
            async with built_in_agents(coordinator):
                await ended(coordinator, stop)
        finally:
            await coordinator.stop()
        log.info("coordinator_stopped", instance=coordinator.instance)
    return 0


async def ended(coordinator: Coordinator, stop: asyncio.Event) -> None:
    """Returns when told to stop; raises what ended the coordinator if that comes first."""
    running = asyncio.create_task(coordinator.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            running.result()
    finally:
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)


async def _started(target: Target, shards: int, stop: asyncio.Event) -> Coordinator | None:
    """A coordinator that runs, however long its server takes to come; None when told to stop before."""
    while not stop.is_set():
        coordinator = Coordinator(target.endpoint, prefix=target.prefix, shards=shards)
        starting = asyncio.create_task(coordinator.start())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                return starting.result()
        except Unreachable as error:
            log.warning("server_not_reached", reason=str(error), retry_s=CONNECT_RETRY_S)
            await coordinator.stop()
        finally:
            stopping.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await coordinator.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_RETRY_S):
                await stop.wait()
    return None
