"""An agent in a process of its own whose tasks have effects outside, and faults as their config says.

The kinds of faults, for a task and for what undoes it alike:
`error` fails before the effect, `error-after` after it; `error-until` as long as the gate is closed;
`hang` goes on for ever after the effect, the next attempt of `hang-then-error` fails; `late` comes to the effect
when it is late, and cannot be interrupted;
`hold` waits at the gate after the effect, `hold-then-error` fails if it begins when the gate is open;
`die` kills the process after the effect, every time.
"""

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path

from effects import Journal, Outside
from infinity_matrix.agents import Agent, Failure, Work, serve_agents

POLL_S = 0.02
LATE_S = 2.0


class Handler:
    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "journal")
        self.outside = Outside(folder / "outside", self.journal)
        self.folder = folder

    async def __call__(self, work: Work) -> str:
        self.journal.write("began", work)
        config = work.config
        kind = config.get("fault", "")
        if work.attempt > config.get("attempts", 99):
            kind = ""
        gate = self.folder / config.get("gate", "gate")
        is_closed = not gate.exists()
        fails_now = kind == "hang-then-error" and work.attempt > 1
        if (
            fails_now
            or kind == "error"
            or (kind == "error-until" and is_closed)
            or (kind == "hold-then-error" and not is_closed)
        ):
            raise Failure("wanted", f"{work.task} fails", retryable=config.get("retryable", False))
        await asyncio.sleep(config.get("seconds", 0.0))
        if kind == "late":
            await stubbornly(LATE_S)
        if work.compensates is not None:
            self.outside.undo(work)
        else:
            self.outside.do(work)
        if kind == "error-after":
            raise Failure("wanted", f"{work.task} fails when it is done", retryable=False)
        if kind.startswith("hang"):
            await asyncio.Event().wait()
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind.startswith("hold"):
            self.journal.write("holds", work)
            while not gate.exists():  # noqa: ASYNC110 - another process opens it
                await asyncio.sleep(POLL_S)
        return work.task


async def stubbornly(seconds: float) -> None:
    """Waits, and is not to be interrupted."""
    ends_at = time.monotonic() + seconds
    while (left_s := ends_at - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left_s)
        except asyncio.CancelledError:
            continue


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("ready", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("agents", nargs="+")
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    handler = Handler(options.folder)
    agents = [Agent(name, concurrency=options.concurrency) for name in options.agents]
    for agent in agents:
        agent.handler(handler)
    serving = asyncio.create_task(serve_agents(agents, options.url))
    await asyncio.sleep(0.2)
    if not serving.done():
        options.ready.touch()
    await serving


asyncio.run(main())
