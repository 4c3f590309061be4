"""An agent in a process of its own, that keeps a journal of what it did, for tests that kill or freeze it.

The journal is a file opened with O_APPEND: one JSON line when a handler begins and one when it ends, each in one write,
so that several processes share it and a kill loses nothing that happened.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

from infinity_matrix.agents import Agent, Failure, Work, serve_agents


class Journal:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, work: Work) -> None:
        line = {
            "event": event,
            "execution": work.execution,
            "task": work.task,
            "attempt": work.attempt,
            "at": time.time(),
            "process": os.getpid(),
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")


def agent_of(name: str, concurrency: int, journal: Journal, versions: list[str] | None) -> Agent:
    agent = Agent(name, concurrency=concurrency, versions=versions)

    @agent.handler
    async def handle(work: Work) -> dict[str, object]:
        journal.write("began", work)
        try:
            await asyncio.sleep(work.config.get("seconds", 0.0))
        except asyncio.CancelledError:
            journal.write("cancelled", work)
            raise
        if work.attempt <= work.config.get("failures", 0):
            raise Failure("wanted", f"attempt {work.attempt} fails")
        if work.config.get("dies"):
            os.kill(os.getpid(), 9)
        journal.write("ended", work)
        return {"task": work.task, "upstream": sorted(work.upstream), "process": os.getpid()}

    return agent


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("ready", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("agents", nargs="+")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--versions", nargs="+")
    options = parser.parse_args()
    journal = Journal(options.journal)
    agents = [agent_of(name, options.concurrency, journal, options.versions) for name in options.agents]
    serving = asyncio.create_task(serve_agents(agents, options.url))
    # Its signal handlers are in place, and it has asked for work, moments after the connection is made.
    await asyncio.sleep(0.2)
    if not serving.done():
        options.ready.touch()
    await serving


asyncio.run(main())
