"""Agents and clients of bare nats-py: what the wire promises, without a line of this project."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
from infinity_matrix_bus.direct_client import ended
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

FETCH_S = 0.5


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Nats]:
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def ask(client: Nats, verb: str, **body: Any) -> dict[str, Any]:
    """The reply of `im.api.<verb>`."""
    reply = await client.request(f"im.api.{verb}", json.dumps(body).encode(), timeout=10)
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def one_work(stream: JetStreamContext, agent: str, timeout_s: float = 10.0) -> Msg:
    """The next work message of an agent."""
    subscription = await stream.pull_subscribe_bind(agent, stream="IM_WORK")
    try:
        return (await subscription.fetch(1, timeout=timeout_s))[0]
    finally:
        await subscription.unsubscribe()


async def serve(client: Nats, agent: str, handler: Callable[[dict[str, Any]], Any]) -> None:
    """A whole agent: pull, publish the result to `reply_to`, ack; until cancelled."""
    stream = client.jetstream()
    subscription = await stream.pull_subscribe_bind(agent, stream="IM_WORK")
    while True:
        try:
            messages = await subscription.fetch(16, timeout=FETCH_S)
        except TimeoutError:
            # nats-py has one of its own, which is one of these, and lets asyncio's through, too.
            continue
        for message in messages:
            work = json.loads(message.data)
            outcome = {"result": handler(work)}
            await stream.publish(work["reply_to"], json.dumps(outcome).encode())
            await message.ack()


@asynccontextmanager
async def serving(url: str, agent: str, handler: Callable[[dict[str, Any]], Any]) -> AsyncIterator[Nats]:
    """Serves a plain agent while the block runs."""
    async with connected(url) as client:
        task = asyncio.create_task(serve(client, agent, handler))
        try:
            yield client
        finally:
            await ended(task)
