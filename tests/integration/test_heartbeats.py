"""`heartbeat_timeout`: an agent that goes silent loses its attempt, one that goes on keeps it, whoever coordinates."""

import asyncio
import json
import time
from typing import Any

from harness import World, consumer_is_there, until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Workflow
from nats.aio.client import Client as Nats
from plain import connected, one_work

TIMEOUT_S = 1.0
RETRY = {"max_attempts": 2, "initial_delay": 0.1}


def beating(name: str, **fields: Any) -> Workflow:
    return Workflow(name, tasks=[Task("a", "worker", heartbeat_timeout=TIMEOUT_S, **fields)])


class Beating:
    """An agent that shows signs of life while it is told to, and gives its outcome when it is released."""

    def __init__(self) -> None:
        self.is_silent = False
        self.released = asyncio.Event()
        self.begun: list[int] = []
        self.agent = Agent("worker")
        self.agent.handler(self._handle)

    async def _handle(self, work: Work) -> int:
        self.begun.append(work.attempt)
        while not self.released.is_set():
            if not self.is_silent:
                await work.heartbeat()
            await asyncio.sleep(TIMEOUT_S / 10)
        return work.attempt


async def is_running(client: Client, execution: str) -> bool:
    return (await client.get_status(execution)).tasks["a"].state == "running"


async def test_an_agent_that_goes_silent_loses_its_attempt_to_the_next(world: World) -> None:
    await world.coordinator()
    beats = Beating()
    async with world.client() as client:
        await client.serve([beats.agent])
        execution = await beating("silent", retry_config=RETRY).start()
        await until(lambda: beats.begun == [1], 10.0, "the beginning")
        await asyncio.sleep(3 * TIMEOUT_S)
        assert beats.begun == [1]
        beats.is_silent = True
        silent_at = time.monotonic()
        await until(lambda: beats.begun == [1, 2], 10.0, "the second attempt")
        assert TIMEOUT_S / 2 < time.monotonic() - silent_at < 5 * TIMEOUT_S
        beats.is_silent = False
        beats.released.set()
        assert (await client.wait(execution, 10.0)).outputs == {"a": 2}


async def test_an_agent_that_goes_on_keeps_its_attempt_over_a_takeover(world: World) -> None:
    coordinator = await world.coordinator()
    beats = Beating()
    async with world.client() as client:
        await client.serve([beats.agent])
        execution = await beating("kept").start()
        await until(lambda: is_running(client, execution), 10.0, "the beginning")
        coordinator.kill()
        await world.coordinator()
        # Longer than overdue timers wait after a takeover.
        await asyncio.sleep(5.0 + 4 * TIMEOUT_S)
        assert await is_running(client, execution)
        beats.released.set()
        assert (await client.wait(execution, 10.0)).outputs == {"a": 1}
        assert beats.begun == [1]


async def test_an_agent_that_went_silent_while_nobody_coordinated_is_found_by_the_next(world: World) -> None:
    coordinator = await world.coordinator()
    beats = Beating()
    async with world.client() as client:
        await client.serve([beats.agent])
        execution = await beating("orphaned").start()
        await until(lambda: is_running(client, execution), 10.0, "the beginning")
        coordinator.kill()
        beats.is_silent = True
        await world.coordinator()
        result = await client.wait(execution, 30.0)
        assert result.error["type"] == "timed_out"
        assert "heartbeat_timeout" in result.error["message"]


async def test_a_plain_agent_shows_that_it_lives_with_one_message(world: World) -> None:
    await world.coordinator()
    async with world.client() as client, connected(world.server.connect_url) as nats:
        execution = await beating("plain").start()
        await consumer_is_there(nats, "worker")
        message = await one_work(nats.jetstream(), "worker")
        work = json.loads(message.data)
        assert work["heartbeat_timeout"] == TIMEOUT_S
        await nats.jetstream().publish(work["taken_to"], b"{}")
        for _ in range(30):
            await progress(nats, work)
            await asyncio.sleep(TIMEOUT_S / 10)
        assert await is_running(client, execution)
        result = await client.wait(execution, 10.0)
        assert "heartbeat_timeout" in result.error["message"]


async def progress(nats: Nats, work: dict[str, Any]) -> None:
    subject = f"im.status.{work['workflow']}.{work['execution']}.{work['task']}.progress.{work['attempt']}"
    await nats.publish(subject, b"{}")
