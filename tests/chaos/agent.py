"""An agent of the SDK in a process of its own, with a journal and effects outside."""

import argparse
import asyncio
from pathlib import Path

from effects import Journal, Outside
from infinity_matrix.agents import Agent, Failure, Work, serve_agents

from .behaviour import fails, result, seconds
from .confirmed import Confirmed
from .workloads import CANARY, SDK


class Handler:
    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / "journal")
        self._outside = Outside(folder / "outside", self._journal)

    async def __call__(self, work: Work) -> str:
        self._journal.write("began", work)
        if fails(work.record):
            raise Failure("unlucky", f"attempt {work.attempt} fails", retryable=True)
        has_effect = work.config.get("effect", False)
        if has_effect and not self._outside.do(work):
            raise Failure("undone", "it was undone before it was done", retryable=False)
        await asyncio.sleep(seconds(work.record))
        return result(work.record)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    handler = Handler(options.folder)
    Confirmed(options.folder).listen()
    agents = [Agent(SDK, concurrency=128), Agent(CANARY, concurrency=8)]
    for agent in agents:
        agent.handler(handler)
    await serve_agents(agents, options.url)


asyncio.run(main())
