"""An agent of bare nats-py, without a line of the SDK: pull, ask when in doubt, journal, publish, ack."""

import argparse
import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nats
from effects import Journal, Outside
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import Error as JsError

from .behaviour import fails, seconds
from .confirmed import Confirmed
from .workloads import PLAIN

CONCURRENCY = 64
FETCH_S = 1.0
ASK_S = 2.0
RETRY_S = 0.25
LEASE_S = 8.0
#: A process that did not run for this long slept, and may hold what is another's by now.
AWAY_S, TICK_S = 0.5, 0.1


class Given:
    """A work as the journal and the world outside know it."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.execution: str = record["execution"]
        self.task: str = record["task"]
        self.attempt: int = record["attempt"]
        self.idempotency_key: str = record["idempotency_key"]
        self.compensates: dict[str, Any] | None = record.get("compensates")


class PlainAgent:
    def __init__(self, client: Nats, folder: Path) -> None:
        self._client = client
        self._journal = Journal(folder / "journal")
        self._confirmed = Confirmed(folder)
        self._outside = Outside(folder / "outside", self._journal)
        self._works: set[asyncio.Task[None]] = set()
        #: What was stored before this is asked about.
        self.trusted_from = time.time()
        self._ticked_at = time.monotonic()
        self._ticking: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        stream = self._client.jetstream(timeout=5.0)
        subscription = None
        self._ticking = asyncio.create_task(self._tick())
        while True:
            try:
                if subscription is None:
                    self.trusted_from = time.time()
                    subscription = await stream.pull_subscribe_bind(PLAIN, stream="IM_WORK")
                messages = await subscription.fetch(max(1, CONCURRENCY - len(self._works)), timeout=FETCH_S)
            except TimeoutError:
                # A consumer that is gone looks like one that has nothing: it is bound anew, which tells.
                continue
            except (NatsError, JsError, OSError):
                await asyncio.sleep(RETRY_S)
                subscription = None
                continue
            self.notice_sleep()
            for message in messages:
                task = asyncio.create_task(self._work(message))
                self._works.add(task)
                task.add_done_callback(self._works.discard)
            while len(self._works) >= CONCURRENCY:
                await asyncio.wait(self._works, return_when=asyncio.FIRST_COMPLETED)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.notice_sleep()

    def notice_sleep(self) -> None:
        if time.monotonic() - self._ticked_at > AWAY_S:
            self.trusted_from = time.time()
        self._ticked_at = time.monotonic()

    async def _work(self, message: Msg) -> None:
        given = Given(json.loads(message.data))
        stored_at = message.metadata.timestamp.timestamp()
        is_repeated = message.metadata.num_delivered > 1 or given.record.get("repair") is True
        if (is_repeated or stored_at < self.trusted_from) and await self._is_settled(given):
            await self._reply(message, b"+ACK")
            return
        leasing = asyncio.create_task(self._keep_lease(message))
        try:
            outcome = await self._outcome(given)
            if is_repeated and "error" in outcome:
                # Who had it before may have done it.
                outcome["closed"] = True
            await self._publish(given, outcome)
            await self._reply(message, b"+ACK")
        finally:
            leasing.cancel()

    async def _outcome(self, given: Given) -> dict[str, Any]:
        self._journal.write("began", given)  # type: ignore[arg-type]
        if fails(given.record):
            return {"error": {"type": "unlucky", "message": f"attempt {given.attempt} fails", "retryable": True}}
        if given.record["config"].get("effect", False):
            self._outside.undo(given)  # type: ignore[arg-type]
        await asyncio.sleep(seconds(given.record))
        return {"result": given.task, "instance": f"plain-{os.getpid()}"}

    async def _is_settled(self, given: Given) -> bool:
        question = {key: given.record[key] for key in ("execution", "task", "attempt", "agent")}
        while True:
            asked_at = time.monotonic()
            try:
                reply = await self._client.request("im.api.attempt", json.dumps(question).encode(), timeout=ASK_S)
                answer = json.loads(reply.data)
                # An answer that took long may be about what was before.
                if "ok" in answer and (answer["ok"]["settled"] or time.monotonic() - asked_at < ASK_S / 4):
                    return bool(answer["ok"]["settled"])
            except (NatsError, OSError, ValueError, TimeoutError):
                pass
            await asyncio.sleep(RETRY_S)

    async def _publish(self, given: Given, outcome: dict[str, Any]) -> None:
        """Until it is confirmed; "already there" is success."""
        stream = self._client.jetstream(timeout=3.0)
        while True:
            try:
                payload = json.dumps(outcome).encode()
                ack = await stream.publish(given.record["reply_to"], payload)
                if not ack.duplicate:
                    self._confirmed.write(given.execution, given.task, given.attempt, payload, ack.seq)
                return
            except JsError as error:
                if "maximum messages per subject" in str(error):
                    return
            except (NatsError, OSError, TimeoutError):
                pass
            await asyncio.sleep(RETRY_S)

    async def _keep_lease(self, message: Msg) -> None:
        while True:
            await asyncio.sleep(LEASE_S)
            await self._reply(message, b"+WPI")

    async def _reply(self, message: Msg, body: bytes) -> None:
        with contextlib.suppress(NatsError, OSError):
            await self._client.publish(message.reply, body)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    agent: PlainAgent | None = None

    async def reconnected() -> None:
        if agent is not None:
            agent.trusted_from = time.time()

    async def ignore(_: Exception) -> None:
        pass

    client = await nats.connect(
        options.url.split(","),
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.25,
        ping_interval=2,
        max_outstanding_pings=2,
        reconnected_cb=reconnected,
        error_cb=ignore,
    )
    agent = PlainAgent(client, options.folder)
    await agent.serve()


asyncio.run(main())
