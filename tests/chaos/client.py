"""A client in a process of its own: starts executions of every kind, follows, signals and cancels some; has a journal.

A line is written before a call whose fate a kill would leave unknown, and another when it is known.
"""

import argparse
import asyncio
import json
import os
import random
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import infinity_matrix
from infinity_matrix.client import Client
from infinity_matrix_actors.errors import InfinityMatrixError

from .workloads import SIGNAL, WEIGHTS

START_TRIES = 6
CALL_S = 20.0
FOLLOW_S = 90.0
#: Shares of the executions that are waited for, and whose updates are followed.
WAITED, FOLLOWED = 0.15, 0.05


class Driver:
    def __init__(self, client: Client, folder: Path, randomness: random.Random) -> None:
        self._client = client
        self._journal = os.open(folder / "clients", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._randomness = randomness
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, per_second: float, stop: Path) -> None:
        """Starts executions until the file `stop` is there, and then only finishes what it is at."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while not stop.exists():  # noqa: ASYNC240 - a file is seen by all processes
            task = asyncio.create_task(self._drive())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            next_at += self._randomness.expovariate(per_second)
            # What a pause kept from being started is started late, but not all of a minute at once.
            next_at = max(next_at, loop.time() - 5.0)
            await asyncio.sleep(max(0.0, next_at - loop.time()))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drive(self) -> None:
        randomness = self._randomness
        kind = randomness.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        execution = uuid.UUID(int=randomness.getrandbits(128)).hex
        pause_s, is_waited, is_followed = randomness.uniform(0.2, 4.0), randomness.random(), randomness.random()
        if not await self._start(kind, execution, {"number": randomness.randrange(1000), "items": list(range(6))}):
            return
        acts = []
        if kind == "signals":
            id = f"s-{execution}"
            acts.append(self._later(pause_s, "signal", execution, lambda: self._signal(execution, id), id=id))
        if kind == "cancelled":
            acts.append(self._later(pause_s, "cancel", execution, lambda: self._client.cancel(execution, "chaos")))
        if is_waited < WAITED:
            acts.append(self._wait(execution))
        if is_followed < FOLLOWED:
            acts.append(self._follow(execution))
        await asyncio.gather(*acts)

    async def _start(self, kind: str, execution: str, input: dict[str, Any]) -> bool:
        self._write("start", execution, fate="unknown", data=input)
        for _ in range(START_TRIES):
            try:
                async with asyncio.timeout(CALL_S):
                    await self._client.start(kind, input, execution)
            except (InfinityMatrixError, TimeoutError, OSError) as error:
                self._write("trouble", execution, state=f"{type(error).__name__}: {error}"[:200])
                await asyncio.sleep(0.5)
            else:
                self._write("start", execution)
                return True
        return False

    async def _later(
        self, pause_s: float, event: str, execution: str, call: Callable[[], Awaitable[object]], **fields: Any
    ) -> None:
        await asyncio.sleep(pause_s)
        for _ in range(START_TRIES):
            try:
                async with asyncio.timeout(CALL_S):
                    await call()
            except (InfinityMatrixError, TimeoutError, OSError) as error:
                self._write("trouble", execution, state=f"{type(error).__name__}: {error}"[:200])
                await asyncio.sleep(0.5)
            else:
                self._write(event, execution, **fields)
                return

    async def _signal(self, execution: str, id: str) -> None:
        await self._client.signal(execution, SIGNAL, {"go": True}, signal_id=id)

    async def _wait(self, execution: str) -> None:
        try:
            result = await self._client.wait(execution, FOLLOW_S)
        except (InfinityMatrixError, TimeoutError, OSError) as error:
            self._write("trouble", execution, state=f"{type(error).__name__}: {error}"[:200])
            return
        self._write("ended", execution, state=result.status, data=result.outputs)

    async def _follow(self, execution: str) -> None:
        try:
            async with asyncio.timeout(FOLLOW_S):
                async for update in self._client.stream_status(execution):
                    self._write(
                        "update", execution, task=update.task_id, state=str(update.status), attempt=update.attempt
                    )
        except (InfinityMatrixError, TimeoutError, OSError) as error:
            self._write("trouble", execution, state=f"{type(error).__name__}: {error}"[:200])

    def _write(self, event: str, execution: str, **fields: Any) -> None:
        os.write(self._journal, json.dumps({"event": event, "execution": execution, **fields}).encode() + b"\n")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--per-second", type=float, required=True)
    options = parser.parse_args()
    stop = options.folder / "stop"
    async with infinity_matrix.connect(options.url) as client:
        await Driver(client, options.folder, random.Random(options.seed)).run(options.per_second, stop)


asyncio.run(main())
