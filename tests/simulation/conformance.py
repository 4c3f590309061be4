"""Random operations on streams and consumers, done through the production's session against whatever server it has.

Done against the real server and against the model, the answers must be the same, but for times.
"""

import asyncio
import re
from dataclasses import dataclass
from random import Random
from typing import Any

from infinity_matrix_bus.api import JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.session import NoResponders, Session

SECOND_NS = 1_000_000_000
PULL_NS = SECOND_NS // 5
PULL_DEADLINE_S = 5.0
ACK_SETTLES_S = 0.02
WRITE_ONCE = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}
STREAMS: dict[str, dict[str, Any]] = {
    "LOG": {**WRITE_ONCE, "duplicate_window": SECOND_NS // 10},
    "WORK": {**WRITE_ONCE, "retention": "workqueue", "duplicate_window": 120 * SECOND_NS},
    "KEYS": {"max_msgs_per_subject": 1, "discard": "new"},
    "FEW": {**WRITE_ONCE, "max_msgs": 4},
    "SMALL": {"discard": "new", "max_bytes": 600},
    "OLD": {"discard": "old", "max_msgs": 5},
}
SUBJECTS = tuple(f"{first}.{second}" for first in "abc" for second in "123")
PATTERNS = (*SUBJECTS, "a.*", "*.1", ">", "none.here")
CONSUMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "workers-a": ("WORK", {"ack_policy": "explicit", "filter_subject": "WORK.a.>", "max_deliver": -1}),
    "workers-b": ("WORK", {"ack_policy": "explicit", "filter_subject": "WORK.b.>", "max_deliver": 2}),
    "workers-c": ("WORK", {"ack_policy": "explicit", "filter_subject": "WORK.c.>", "max_ack_pending": 2}),
    "reader": ("LOG", {"ack_policy": "none", "deliver_policy": "by_start_sequence", "opt_start_seq": 1}),
    "some": ("LOG", {"ack_policy": "none", "deliver_policy": "all", "filter_subjects": ["LOG.a.*", "LOG.b.2"]}),
    "new": ("OLD", {"ack_policy": "none", "deliver_policy": "new"}),
}
ACKS = (b"+ACK", b"+ACK", b"+ACK", b"-NAK", b"+WPI", b"+TERM", b"")


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to do, with all it needs."""

    kind: str
    stream: str = ""
    subject: str = ""
    data: bytes = b""
    message_id: str = ""
    expected: int | None = None
    number: int = 0


def random_operations(seed: int, count: int) -> list[Operation]:
    """So many operations; the same for a seed each time."""
    random = Random(f"operations/{seed}")
    kinds = (
        *("publish",) * 12,
        *("pull", "pull", "pull", "ack", "ack", "ack", "ack"),
        *("purge", "last", "get", "direct", "multi", "info", "consumer", "delete consumer"),
    )
    operations: list[Operation] = []
    for _ in range(count):
        kind = random.choice(kinds)
        stream = random.choice(("LOG", "WORK", "WORK", "WORK", "KEYS", "FEW", "SMALL", "OLD"))
        subject = random.choice(SUBJECTS if kind in ("publish", "direct") else PATTERNS)
        if kind == "delete consumer" and random.random() < 0.5:
            kind = "consumer"
        message_id = f"id{random.randrange(12)}" if stream == "WORK" and random.random() < 0.5 else ""
        expected = random.randrange(6) if stream == "KEYS" and random.random() < 0.5 else None
        data = random.randbytes(random.choice((0, 3, 40))).hex().encode()
        operations.append(Operation(kind, stream, subject, data, message_id, expected, random.randrange(1000)))
    return operations


class Driver:
    """Does operations on one session, and keeps what it was answered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._delivered: list[str] = []
        self.answers: list[str] = []

    async def prepare(self) -> None:
        for name, config in STREAMS.items():
            base = {"name": name, "subjects": [f"{name}.>"], "storage": "file", "allow_direct": True}
            await self._api.create_stream({**base, **config})
        for name in CONSUMERS:
            await self._make(name)

    async def do(self, operation: Operation) -> None:
        """Does one and notes the answer."""
        try:
            answer = await getattr(self, "_" + operation.kind.replace(" ", "_"))(operation)
        except (JetStreamError, NoResponders) as error:
            answer = str(error)
        self.answers.append(f"{operation.kind} {operation.stream}.{operation.subject}: {answer}")

    async def _make(self, name: str) -> None:
        stream, config = CONSUMERS[name]
        await self._api.create_consumer(stream, name, config)

    async def _publish(self, operation: Operation) -> object:
        headers = b""
        if operation.message_id:
            headers = f"NATS/1.0\r\nNats-Msg-Id: {operation.message_id}\r\n\r\n".encode()
        elif operation.expected is not None:
            headers = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {operation.expected}\r\n\r\n".encode()
        subject = f"{operation.stream}.{operation.subject}"
        return await self._session.request(subject, operation.data, 5.0, headers)

    async def _purge(self, operation: Operation) -> object:
        return await self._api.purge(operation.stream, f"{operation.stream}.{operation.subject}")

    async def _last(self, operation: Operation) -> object:
        found = await self._api.last_message(operation.stream, f"{operation.stream}.{operation.subject}")
        return found and (found.subject, found.data, found.sequence)

    async def _get(self, operation: Operation) -> object:
        record = await self._api.call(f"STREAM.MSG.GET.{operation.stream}", {"seq": operation.number % 12 + 1})
        record["message"].pop("time")
        return record["message"]

    async def _direct(self, operation: Operation) -> object:
        subject = f"{operation.stream}.{operation.subject}"
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._session.request_with(
            f"$JS.API.DIRECT.GET.{operation.stream}.{subject}", b"", lambda *both: reply.set_result(both)
        )
        return await asyncio.wait_for(reply, PULL_DEADLINE_S)

    async def _multi(self, operation: Operation) -> object:
        replies: asyncio.Queue[tuple[bytes | None, bytes | None]] = asyncio.Queue()
        patterns = [f"{operation.stream}.{operation.subject}", f"{operation.stream}.b.2"]
        token = self._session.request_many_with(
            f"$JS.API.DIRECT.GET.{operation.stream}",
            encode({"multi_last": patterns}),
            lambda *both: replies.put_nowait(both),
        )
        found = []
        while not found or not (found[-1][1] or b"").startswith(b"NATS/1.0 "):
            found.append(await asyncio.wait_for(replies.get(), PULL_DEADLINE_S))
        self._session.forget(token)
        return found

    async def _info(self, operation: Operation) -> object:
        body = {"subjects_filter": f"{operation.stream}.{operation.subject}"} if operation.number % 2 else None
        state = (await self._api.call(f"STREAM.INFO.{operation.stream}", body))["state"]
        return {key: state[key] for key in ("messages", "first_seq", "last_seq", "bytes", "consumer_count")} | {
            "num_subjects": state.get("num_subjects", 0),
            "subjects": sorted((state.get("subjects") or {}).items()),
        }

    async def _consumer(self, operation: Operation) -> object:
        name = _consumer_of(operation)
        info = await self._api.consumer_info(CONSUMERS[name][0], name)
        if info is None:
            await self._make(name)
            return "made"
        # How far it is shows in which of its messages it has delivered: what is none of its own moves it, too.
        stream, config = CONSUMERS[name]
        filters = config.get("filter_subjects") or [config.get("filter_subject", f"{stream}.>")]
        there = await self._api.multi_last(stream, filters)
        assert there is not None
        delivered = [message.sequence for message in there if message.sequence <= info["delivered"]["stream_seq"]]
        counts = {key: info[key] for key in ("num_redelivered", "num_pending")}
        return info["delivered"]["consumer_seq"], delivered, counts

    async def _delete_consumer(self, operation: Operation) -> object:
        name = _consumer_of(operation)
        await self._api.delete_consumer(CONSUMERS[name][0], name)
        return "deleted"

    async def _pull(self, operation: Operation) -> object:
        name = _consumer_of(operation)
        messages: asyncio.Queue[tuple[str, str, bytes, bytes | None]] = asyncio.Queue()
        inbox = self._session.client.new_inbox()
        subscription = await self._session.subscribe(inbox, lambda *message: messages.put_nowait(message))
        batch = operation.number % 3 + 1
        request = encode({"batch": batch, "expires": PULL_NS, "idle_heartbeat": PULL_NS * 2 // 5})
        self._session.publish(f"$JS.API.CONSUMER.MSG.NEXT.{CONSUMERS[name][0]}.{name}", request, inbox)
        found: list[object] = []
        beats = 0
        while len(found) < batch:
            subject, reply, data, headers = await asyncio.wait_for(messages.get(), PULL_DEADLINE_S)
            if subject != inbox:
                self._delivered.append(reply)
                found.append((subject, _without_time(reply), data, headers))
            elif headers is not None and headers.startswith(b"NATS/1.0 100"):
                beats += 1
            else:
                found.append(headers)
                break
        await subscription.close()
        return found, beats > 0

    async def _ack(self, operation: Operation) -> object:
        if not self._delivered:
            return "nothing"
        reply = self._delivered[-1 - operation.number % min(8, len(self._delivered))]
        self._session.publish(reply, ACKS[operation.number % len(ACKS)])
        # The server takes acks in beside all else.
        await asyncio.sleep(ACK_SETTLES_S)
        return _without_time(reply)


def _consumer_of(operation: Operation) -> str:
    return list(CONSUMERS)[operation.number % len(CONSUMERS)]


def _without_time(reply: str) -> str:
    tokens = reply.split(".")
    return ".".join((*tokens[:-2], tokens[-1]))


def without_times(answers: list[str]) -> list[str]:
    """The answers with all times taken out."""
    return [re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", answer) for answer in answers]
