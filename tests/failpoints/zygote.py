"""Forks coordinators and agents that are real processes of their own, without the second that importing all takes.

A line of JSON on stdin asks for one; the answer on stdout is its process id. They are children of this process, which
takes no notice of their ends, so a process that is gone has no entry left.
"""

import asyncio
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import cel  # noqa: F401 - imported once, for all: half of what a coordinator's life here would cost
import infinity_matrix.agents  # noqa: F401 - the same
from infinity_matrix_agents.agent import Agent
from infinity_matrix_agents.runner import AgentRunner
from infinity_matrix_agents.work import Work
from infinity_matrix_bus import failpoint, streams
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator

LARGE = "x" * 400_000
#: The lease of the agents: what a dead one held comes again after it.
ACK_WAIT_S = 1.5
POLL_S = 0.1


def main() -> None:
    streams.ACK_WAIT_S = ACK_WAIT_S
    streams.BUDGET_DEFAULT_BYTES = streams.BUDGET_MIN_BYTES
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # The collector would write to every page that the children share.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            live(order)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


def live(order: dict[str, Any]) -> NoReturn:
    """The life of a child; `order` has role, url, prefix, log, ready, counts, journal, passed_on, perhaps a failpoint.

    Told to end, it writes down how often it passed each place.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # They live for some seconds, and what they touch is copied.
    gc.disable()
    output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if order["failpoint"]:
        failpoint.arm(order["failpoint"])

    def count(number: int, frame: object) -> NoReturn:
        Path(order["counts"]).write_text(json.dumps(failpoint.passed()))
        os._exit(0)

    signal.signal(signal.SIGTERM, count)
    code = 1
    try:
        asyncio.run(coordinate(order) if order["role"] == "coordinator" else serve(order))
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


async def coordinate(order: dict[str, Any]) -> None:
    endpoint = Endpoint(order["url"])
    coordinator = Coordinator(endpoint, prefix=order["prefix"], shards=1, sweep_interval_s=1.0, checkpoint_after_s=1.0)
    await coordinator.start()
    _touch(order["ready"])
    await coordinator.run()


async def serve(order: dict[str, Any]) -> None:
    connection = await Connection(Endpoint(order["url"])).open()
    journal = os.open(order["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    await AgentRunner(_agent("worker", journal), connection, order["prefix"]).open()
    old = await AgentRunner(_agent("other", journal, "1"), connection, order["prefix"]).open()
    _touch(order["ready"])
    await _made(order["passed_on"])
    await old.close()
    await AgentRunner(_agent("other", journal, "2"), connection, order["prefix"]).open()
    await asyncio.Event().wait()


def _touch(path: str) -> None:
    Path(path).touch()


async def _made(path: str) -> None:
    """Once another process has made the file."""
    while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240, PTH110 - another process makes it
        await asyncio.sleep(POLL_S)


def _agent(name: str, journal: int, version: str | None = None) -> Agent:
    agent = Agent(name, concurrency=8, versions=None if version is None else [version])

    @agent.handler
    async def handle(work: Work) -> Any:
        line = {
            "event": "began",
            "execution": work.execution,
            "task": work.task,
            "attempt": work.attempt,
            "at": time.time(),
            "process": os.getpid(),
        }
        os.write(journal, json.dumps(line).encode() + b"\n")
        seconds = work.config.get("seconds", 0.0)
        while work.config.get("says") and seconds > 0:
            work.log.info("said")
            await work.progress(0.5)
            await asyncio.sleep(min(0.3, seconds))
            seconds -= 0.3
        if work.config.get("stubborn"):
            # It does not end when it is told to, but when it is done.
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                await asyncio.sleep(seconds)
        else:
            await asyncio.sleep(max(0.0, seconds))
        if work.attempt <= work.config.get("failures", 0):
            raise RuntimeError("wanted")
        return LARGE if work.config.get("large") else {"task": work.task}

    return agent


if __name__ == "__main__":
    main()
