"""An agent that speaks the bare protocol: it pulls, runs, publishes its outcome, acks, and never asks."""

import asyncio
import json
from typing import Any

from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.session import RequestTimeout, Session, SessionLost

from .workload import PLAIN, Behaviour
from .world import ENDPOINT, Line, World

EXPIRES_S = 2.0
OUTCOME_TIMEOUT_S = 2.0
RETRY_S = 0.3


class PlainAgent:
    """One process of the plain agent."""

    def __init__(self, world: World, behaviour: Behaviour) -> None:
        self._world = world
        self._behaviour = behaviour

    async def life(self) -> None:
        """Serves until it is killed."""
        connection = await Connection(ENDPOINT).open()
        while True:
            try:
                await self._serve(await connection.connected(60.0))
            except SessionLost:
                await asyncio.sleep(RETRY_S)

    async def _serve(self, session: Session) -> None:
        messages: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
        inbox = session.client.new_inbox()
        await session.subscribe(
            inbox, lambda subject, reply, data, headers: messages.put_nowait((reply, data) if reply else None)
        )
        while not session.is_lost:
            request = json.dumps({"batch": 1, "expires": int(EXPIRES_S * 1e9)}).encode()
            session.publish(f"$JS.API.CONSUMER.MSG.NEXT.IM_WORK.{PLAIN}", request, inbox)
            try:
                async with asyncio.timeout(EXPIRES_S + 1.0):
                    message = await messages.get()
            except TimeoutError:
                continue
            if message is not None:
                await self._run(session, *message)
            else:
                await asyncio.sleep(0.05)

    async def _run(self, session: Session, ack_reply: str, data: bytes) -> None:
        world = self._world
        work: dict[str, Any] = json.loads(data)
        key = (work["execution"], work["task"], work["attempt"])
        process = world.loop.current
        world.journal.append(Line("began", *key, world.loop.now, process, asks=False))
        way, took_s = self._behaviour.draw(*key)
        if way == "acks early" or (way == "dies" and world.random.random() < 0.5):
            # Worse than dying: it acks what it never did.
            world.faults.count("acked too early")
            session.publish(ack_reply, b"+ACK")
            return
        await asyncio.sleep(took_s)
        if way in ("dies", "hangs"):
            world.faults.count("agent dies of its work")
            world.loop.post(world.server_process, world.loop.now, world.loop.kill, process)
            await asyncio.Event().wait()
        outcome: dict[str, Any] = {"result": {"n": 1}}
        if way in ("fails", "later", "fatal"):
            outcome = {"error": {"type": way, "message": "it broke", "retryable": way != "fatal"}}
        else:
            world.journal.append(Line("done", *key, world.loop.now, process, asks=False))
        while not session.is_lost:
            try:
                payload = json.dumps(outcome).encode()
                answer = json.loads(await session.request(work["reply_to"], payload, OUTCOME_TIMEOUT_S))
            except RequestTimeout:
                continue
            error = answer.get("error")
            if error is None:
                world.note_stored(*key, payload, answer["seq"], process)
            if error is None or error["description"] == "maximum messages per subject exceeded":
                session.publish(ack_reply, b"+ACK")
                return
            await asyncio.sleep(RETRY_S)
