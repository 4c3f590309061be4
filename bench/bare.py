"""The bare limit of the benchmark: the engine's messages, streams and processes, by stock nats-py and nothing else.

    python -m bench.bare [--sync always|lazy|both] [--workload NAME ...]

This process is the client; nats-server, relay and agent are its children. Prints one JSON line for each measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from uuid_utils import uuid7

from bench import bare_wire as wire
from bench.bare_bus import PubAcks, Session
from bench.driver import measure
from bench.server import STORES, nats_server, stop
from bench.workloads import INPUT, WORKLOADS, Workload, workloads_named

BENCH = "bare"
READY_TIMEOUT_S = 15.0
SYNCS = ("always", "lazy")


class BareClient:
    """Starts executions by their `started` fact and learns of their end from the terminal status."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._acks = PubAcks(connection, self._on_started)
        self._starting: dict[str, asyncio.Future[None]] = {}
        self._running: dict[str, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Subscribe to PubAcks and to ends of executions."""
        await self._acks.open()
        await self._connection.subscribe(wire.TERMINAL_STATUS, cb=self._on_end)
        await self._connection.flush()

    async def execute(self, workload: Workload) -> None:
        """Run one execution and return at its end."""
        execution = uuid7().hex
        ended = self._running[execution] = self._loop.create_future()
        await self._publish(execution, workload, "")
        await ended

    async def start(self, workload: Workload) -> None:
        """Start one execution and return at the PubAck of its `started`."""
        execution = uuid7().hex
        self._running[execution] = self._loop.create_future()
        confirmed = self._starting[execution] = self._loop.create_future()
        await self._publish(execution, workload, execution)
        await confirmed

    async def settle(self) -> None:
        """Return when no execution is open."""
        await asyncio.gather(*self._running.values())

    async def _publish(self, execution: str, workload: Workload, note: str) -> None:
        subject = wire.fact(wire.shard_of(execution), execution, "started")
        await self._acks.publish(subject, wire.started(workload.name, INPUT), note)

    async def _on_started(self, execution: str) -> None:
        confirmed = self._starting.pop(execution)
        if not confirmed.cancelled():
            confirmed.set_result(None)

    async def _on_end(self, message: Msg) -> None:
        ended = self._running.pop(message.subject.split(".")[3])
        if not ended.cancelled():  # as it is while a stopped run ends
            ended.set_result(None)


@contextlib.asynccontextmanager
async def stage(role: str, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the relay or the agent as a process while the context is open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.bare_stage", role, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=STORES.parent,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the {role} did not start")
        yield process
    finally:
        await stop(process, process.stdin.close)


async def run_bare(sync: str, workloads: tuple[Workload, ...]) -> None:
    """Measure the workloads at one sync setting and print their lines.

    Raises RuntimeError when a process dies or a message is refused.
    """
    async with nats_server(sync) as url, session_to(url) as session:
        await wire.create_streams(session.connection)
        async with stage("relay", url) as relay, stage("agent", url) as agent:
            client = BareClient(session.connection)
            await client.open()
            async with asyncio.TaskGroup() as group:
                watches = [group.create_task(_watch("relay", relay)), group.create_task(_watch("agent", agent))]
                watches.append(group.create_task(_watch_session(session)))
                for workload in workloads:
                    print((await measure(BENCH, client, workload, sync)).line(), flush=True)
                for watch in watches:
                    watch.cancel()


@contextlib.asynccontextmanager
async def session_to(url: str) -> AsyncIterator[Session]:
    """Keep a session open while the context is."""
    session = Session()
    await session.open(url)
    try:
        yield session
    finally:
        await session.close()


async def _watch(role: str, process: asyncio.subprocess.Process) -> None:
    raise RuntimeError(f"the {role} ended with code {await process.wait()}")


async def _watch_session(session: Session) -> None:
    raise RuntimeError("the client failed") from await asyncio.shield(session.failed)


async def run(syncs: tuple[str, ...], workloads: tuple[Workload, ...]) -> None:
    """Measure at each sync setting in turn; SIGTERM and Ctrl-C stop it and every process it started."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    for sync in syncs:
        await run_bare(sync, workloads)


def main() -> int:
    """Read the command line, measure, and answer the exit code: 0, 1 when something broke, 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare", description="The limit that bare nats-py sets.")
    parser.add_argument("--sync", choices=[*SYNCS, "both"], default="both", help="when the server fsyncs")
    parser.add_argument(
        "--workload", action="append", choices=[workload.name for workload in WORKLOADS], help="all of them by default"
    )
    arguments = parser.parse_args()
    syncs = SYNCS if arguments.sync == "both" else (arguments.sync,)
    try:
        uvloop.run(run(syncs, workloads_named(arguments.workload)))
    except asyncio.CancelledError:
        return 130
    except ExceptionGroup as group:
        for error in group.exceptions:
            print(f"bench: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
