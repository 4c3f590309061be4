"""The processes of a run beside nats-server: started here, watched while they are needed, ended through their stdin."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import uvloop

from bench.server import STORES, stop

READY_TIMEOUT_S = 15.0
READY = b"ready\n"

Serve = Callable[[str, str], Coroutine[Any, Any, int]]
"""Takes the role and the server's URL, and answers the exit code when stdin has ended."""


@contextlib.asynccontextmanager
async def stage(module: str, role: str, url: str) -> AsyncIterator[int]:
    """Run `python -m module role url` while the context is open and answer its process id.

    When the process dies first the block is cancelled and RuntimeError raised, within an ExceptionGroup.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, role, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=STORES.parent,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            if await process.stdout.readline() != READY:
                raise RuntimeError(f"the {role} did not start")
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(role, process))
            yield process.pid
            watch.cancel()
    finally:
        await stop(process, process.stdin.close)


async def _watch(role: str, process: asyncio.subprocess.Process) -> None:
    raise RuntimeError(f"the {role} ended with code {await process.wait()}")


def say_ready() -> None:
    """Tell the process that started this one that it serves."""
    print(READY.decode().strip(), flush=True)


def run_stage(serve: Serve) -> int:
    """Be the process of a role, with the command line's role and URL, under uvloop; answer the exit code.

    Ctrl-C in a terminal reaches every process; the one that started this one ends it in order, so it is ignored here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spare_collector()
    return uvloop.run(serve(sys.argv[1], sys.argv[2]))


def spare_collector() -> None:
    """Let the garbage collector look rarely, as the engine's own processes do, and the limit's so too."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def end_of_stdin() -> None:
    """Return when the process that started this one ends it, or has died."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        await reader.read()
    finally:
        transport.close()
