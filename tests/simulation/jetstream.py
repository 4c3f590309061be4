"""The model of JetStream behind the server's front: the streams, their API, acks, and what a crash does to them."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from random import Random
from typing import Any

from .consumer import Consumer
from .loop import Handle, Process, SimulatedLoop
from .server import Server, matches
from .stream import Message, Stored, Stream

API = "$JS.API."
ACK = "$JS.ACK."
#: The simulated time 0, in seconds since the epoch.
EPOCH_S = 1_767_225_600
MULTI_LAST_MAX = 1024
#: What of the last moments a crash may forget.
FORGOTTEN_NS = 1_000_000_000

Json = dict[str, Any]


class ApiError(Exception):
    """An error as the API answers it."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.record = {"code": code, "err_code": err_code, "description": description}


NO_STREAM = (404, 10059, "stream not found")
NO_CONSUMER = (404, 10014, "consumer not found")


@lru_cache(maxsize=4096)
def _rfc3339(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def rfc3339_ns(at_ns: int) -> str:
    """As the server writes times: nanoseconds without trailing zeros."""
    whole = _rfc3339(at_ns // 1_000_000_000)
    fraction = f"{at_ns % 1_000_000_000:09d}".rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"


class Faults:
    """What the server does wrong at the moment; set by the run, counted here."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.counts: dict[str, int] = {}
        self.lost_acks = 0.0
        self.lost_replies = 0.0
        #: How likely it is that a crash forgets the removal of what was acked, and not the ack.
        self.kept_acks = 0.3
        #: Bulk reads show the streams as they were this long ago.
        self.read_lag_ns = 0
        #: These consumers, or all of these streams, deliver nothing until then.
        self.held_until_ns: dict[str, int] = {}

    def strikes(self, kind: str, chance: float) -> bool:
        if chance and self.random.random() < chance:
            self.count(kind)
            return True
        return False

    def count(self, kind: str, by: int = 1) -> None:
        if by:
            self.counts[kind] = self.counts.get(kind, 0) + by


class JetStream:
    """All streams and consumers of the one server."""

    def __init__(self, loop: SimulatedLoop, server: Server, process: Process, random: Random) -> None:
        self._loop = loop
        self._server = server
        self._process = process
        self.faults = Faults(random)
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self._of_stream: dict[str, dict[str, Consumer]] = {}
        #: How long logs keep facts, in nanoseconds, in place of what they are made with.
        self.log_age_ns = 0
        #: Called with (operation, subject, result) for each thing that happens to a stream.
        self.on_operation: Callable[[str, str, object], None] = lambda operation, subject, result: None
        #: Where the work goes that is just being delivered.
        self.work_inbox = ""
        server.messages = self
        self._verbs: dict[str, Callable[[list[str], Json], Json]] = {
            "STREAM.CREATE": self._create_stream,
            "STREAM.UPDATE": self._update_stream,
            "STREAM.DELETE": self._delete_stream,
            "STREAM.INFO": lambda rest, body: self._stream_info(
                self._stream(rest), str(body.get("subjects_filter", ""))
            ),
            "STREAM.NAMES": lambda rest, body: self._page("streams", sorted(self.streams), body),
            "STREAM.LIST": lambda rest, body: self._page(
                "streams", [self._stream_info(one) for one in self.streams.values()], body
            ),
            "STREAM.PURGE": self._purge,
            "STREAM.MSG.GET": self._get,
            "STREAM.MSG.DELETE": self._delete,
            "CONSUMER.CREATE": self._create_consumer,
            "CONSUMER.DURABLE.CREATE": self._create_consumer,
            "CONSUMER.INFO": lambda rest, body: self._consumer_info(self._consumer(rest)),
            "CONSUMER.DELETE": self._delete_consumer,
            "CONSUMER.LIST": lambda rest, body: self._page(
                "consumers",
                [self._consumer_info(one) for one in self._of_stream.get(self._stream(rest).name, {}).values()],
                body,
            ),
        }

    # What consumers need.

    def now_ns(self) -> int:
        return EPOCH_S * 1_000_000_000 + round(self._loop.now * 1e9)

    def deliver(self, inbox: str, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        if subject.startswith("im.work."):
            self.work_inbox = inbox
            self.on_operation("deliver", subject, reply.split(".", 5)[-1])
        elif subject.startswith("$KV.IM_CHECKPOINTS.state."):
            self.faults.count("taken over from a checkpoint")
        self._server.deliver(inbox, reply, headers, data, subject)

    def is_heard(self, inbox: str) -> bool:
        return self._server.is_heard(inbox)

    def at(self, at_ns: int, callback: Callable[[], None]) -> Handle:
        def fire() -> None:
            if self._server.is_up:
                callback()
                self._server.flush()

        at_s = (at_ns - EPOCH_S * 1_000_000_000) / 1e9
        return self._loop.post(self._process, at_s + 1e-7, fire)

    def held_until_ns(self, stream: str, consumer: str) -> int:
        held = self.faults.held_until_ns
        return max(held.get(stream, 0), held.get(consumer, 0)) if held else 0

    def forgot_count(self) -> None:
        self.faults.count("redelivered, count forgotten")

    # Messages.

    def take(self, subject: str, reply: str, headers: bytes, data: bytes) -> bool:
        if subject.startswith(API):
            return self._call(subject[len(API) :], reply, data)
        if subject.startswith(ACK):
            self._ack(subject, data)
            return True
        for stream in self.streams.values():
            if stream.takes(subject):
                self._publish(stream, subject, reply, headers, data)
                return True
        return False

    def _publish(self, stream: Stream, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        stored = stream.publish(subject, headers, data, self.now_ns())
        self.on_operation("publish", subject, stored.refusal or (stored.sequence, stored.is_duplicate))
        if reply and not self.faults.strikes("lost PubAck", self.faults.lost_replies):
            self._server.deliver(reply, "", b"", self._pub_ack(stream, stored))
        if stored.refusal is None and not stored.is_duplicate:
            self._signal(stream)

    @staticmethod
    def _pub_ack(stream: Stream, stored: Stored) -> bytes:
        record: Json = {"stream": stream.name, "seq": stored.sequence}
        if stored.refusal is not None:
            code, err_code, description = stored.refusal
            error = {"code": code, "err_code": err_code, "description": description}
            record = {"error": error, **record}
        ack = json.dumps(record, separators=(",", ":"))
        # With a blank, as the server writes it.
        return (f'{ack[:-1]},"duplicate": true}}' if stored.is_duplicate else ack).encode()

    def _signal(self, stream: Stream) -> None:
        now_ns = self.now_ns()
        for consumer in list(self._of_stream.get(stream.name, {}).values()):
            if consumer.pulls:
                consumer.signal()
            elif consumer.inactive_ns and consumer.active_ns + consumer.inactive_ns < now_ns:
                self.drop_consumer(consumer)

    def _ack(self, subject: str, body: bytes) -> None:
        _, _, stream, name, _, sequence, _, _, _ = subject.split(".")
        consumer = self.consumers.get((stream, name))
        if consumer is not None and not self.faults.strikes("lost ack", self.faults.lost_acks):
            self.on_operation("ack", f"{stream}.{name}.{sequence}", body[:4])
            consumer.ack(int(sequence), body)

    # The API.

    def _call(self, request: str, reply: str, data: bytes) -> bool:
        """Answers a request; False when nobody is there for it."""
        verb, rest = _split(request)
        if verb == "CONSUMER.MSG.NEXT":
            consumer = self.consumers.get((rest[0], rest[1]))
            if consumer is None:
                return False
            consumer.pull(reply, _pull_request(data))
            return True
        if verb == "DIRECT.GET":
            stream = self.streams.get(rest[0])
            if stream is None or not stream.config.get("allow_direct"):
                return False
            self._direct(stream, ".".join(rest[1:]), reply, json.loads(data) if data else {})
            return True
        handler = self._verbs.get(verb)
        if handler is None and verb != "INFO":
            return False
        try:
            body = json.loads(data) if data else {}
            answer = self._account() if handler is None else handler(rest, body)
        except ApiError as error:
            answer = {"error": error.record}
        self._server.deliver(reply, "", b"", json.dumps(answer).encode())
        return True

    def _account(self) -> Json:
        limits = {"max_memory": -1, "max_storage": 1024**3, "max_streams": -1, "max_consumers": -1}
        return {"memory": 0, "storage": 0, "streams": len(self.streams), "consumers": 0, "limits": limits}

    def _page(self, key: str, items: list[Any], body: Json) -> Json:
        offset = int(body.get("offset") or 0)
        return {"total": len(items), "offset": offset, "limit": 256, key: items[offset : offset + 256]}

    def _stream(self, rest: list[str]) -> Stream:
        stream = self.streams.get(rest[0])
        if stream is None:
            raise ApiError(*NO_STREAM)
        stream.expire(self.now_ns())
        return stream

    def _consumer(self, rest: list[str]) -> Consumer:
        self._stream(rest)
        consumer = self.consumers.get((rest[0], rest[1]))
        if consumer is None:
            raise ApiError(*NO_CONSUMER)
        return consumer

    def _stream_info(self, stream: Stream, pattern: str = "") -> Json:
        now_ns = self.now_ns()
        state: Json = {**stream.state(), "consumer_count": len(self._of_stream.get(stream.name, {}))}
        counts = {name: len(there) for name, there in stream.by_subject.items() if pattern and matches(pattern, name)}
        if counts:
            state["subjects"] = counts
        return {
            "config": stream.config,
            "created": rfc3339_ns(stream.created_ns),
            "state": state,
            "cluster": {"leader": "sim"},
            "ts": rfc3339_ns(now_ns),
        }

    def _create_stream(self, rest: list[str], body: Json) -> Json:
        known = self.streams.get(rest[0])
        if known is None:
            stream = self.streams[rest[0]] = Stream(body, self.now_ns())
            if self.log_age_ns and stream.name.startswith("IM_FACTS_"):
                stream.keep_for(self.log_age_ns)
            self._of_stream[rest[0]] = {}
        elif known.config != body:
            raise ApiError(400, 10058, "stream name already in use with a different configuration")
        return {**self._stream_info(self.streams[rest[0]]), "did_create": known is None}

    def _update_stream(self, rest: list[str], body: Json) -> Json:
        stream = self._stream(rest)
        stream.configure(body)
        return self._stream_info(stream)

    def _delete_stream(self, rest: list[str], body: Json) -> Json:
        stream = self._stream(rest)
        for consumer in list(self._of_stream.pop(stream.name).values()):
            self.consumers.pop((stream.name, consumer.name), None)
            consumer.end()
        del self.streams[stream.name]
        return {"success": True}

    def _purge(self, rest: list[str], body: Json) -> Json:
        stream = self._stream(rest)
        sequences = stream.purge(str(body.get("filter") or ""), self.now_ns())
        self.on_operation("purge", str(body.get("filter")), len(sequences))
        for consumer in self._of_stream[stream.name].values():
            consumer.removed(sequences)
        return {"success": True, "purged": len(sequences)}

    def _get(self, rest: list[str], body: Json) -> Json:
        stream = self._stream(rest)
        if body.get("last_by_subj"):
            message = stream.last(str(body["last_by_subj"]))
        elif body.get("next_by_subj"):
            message = stream.after(int(body.get("seq") or 1) - 1, [str(body["next_by_subj"])])
        else:
            message = stream.messages.get(int(body.get("seq") or 0))
        self.on_operation("get", str(body.get("last_by_subj") or body.get("seq")), message and message.sequence)
        if message is None:
            raise ApiError(404, 10037, "no message found")
        record: Json = {
            "subject": message.subject,
            "seq": message.sequence,
            "time": rfc3339_ns(message.at_ns),
        }
        if message.headers:
            record["hdrs"] = base64.b64encode(message.headers).decode()
        if message.data:
            record["data"] = base64.b64encode(message.data).decode()
        return {"message": record}

    def _delete(self, rest: list[str], body: Json) -> Json:
        stream = self._stream(rest)
        sequence = int(body.get("seq") or 0)
        if stream.remove(sequence, "", self.now_ns()) is None:
            raise ApiError(404, 10043, "sequence not found")
        for consumer in self._of_stream[stream.name].values():
            consumer.removed([sequence])
        return {"success": True}

    # Direct gets.

    def _direct(self, stream: Stream, subject: str, reply: str, body: Json) -> None:
        stream.expire(self.now_ns())
        if body.get("multi_last"):
            self._multi_last(stream, body["multi_last"], reply)
            return
        by_subject = subject or body.get("last_by_subj")
        message = stream.last(by_subject) if by_subject else stream.messages.get(int(body.get("seq") or 0))
        self.on_operation("direct", str(by_subject or body.get("seq")), message and message.sequence)
        if message is None:
            self._server.deliver(reply, "", b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")
        else:
            self._server.deliver(reply, "", _stored_headers(stream, message), message.data)

    def _multi_last(self, stream: Stream, patterns: list[str], reply: str) -> None:
        found = stream.lasts(patterns)
        if self.faults.read_lag_ns:
            shown = stream.lasts_as_of(patterns, self.now_ns() - self.faults.read_lag_ns)
            if [one.sequence for one in shown] != [one.sequence for one in found]:
                self.faults.count("lagging read")
            found = shown
        self.on_operation("multi", ",".join(patterns), [message.sequence for message in found])
        if len(found) > MULTI_LAST_MAX:
            self._server.deliver(reply, "", b"NATS/1.0 413 Too Many Results\r\n\r\n", b"")
            return
        if not found:
            self._server.deliver(reply, "", b"NATS/1.0 404 No Results\r\n\r\n", b"")
            return
        last = 0
        for index, message in enumerate(found):
            more = f"Nats-Num-Pending: {len(found) - index - 1}\r\nNats-Last-Sequence: {last}\r\n"
            self._server.deliver(reply, "", _stored_headers(stream, message, more.encode()), message.data)
            last = message.sequence
        end = (
            f"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: {last}\r\n"
            f"Nats-UpTo-Sequence: {stream.last_sequence}\r\n\r\n"
        )
        self._server.deliver(reply, "", end.encode(), b"")

    # Consumers.

    def _consumer_info(self, consumer: Consumer) -> Json:
        return {**consumer.info(), "created": rfc3339_ns(consumer.created_ns), "ts": rfc3339_ns(self.now_ns())}

    def _create_consumer(self, rest: list[str], body: Json) -> Json:
        stream = self._stream(rest)
        config = dict(body["config"])
        name = str(config.get("name") or config.get("durable_name") or (rest[1] if len(rest) > 1 else ""))
        config.setdefault("name", name)
        known = self.consumers.get((stream.name, name))
        if known is None:
            known = self.consumers[stream.name, name] = Consumer(name, config, stream, self)
            self._of_stream[stream.name][name] = known
        else:
            known.configure(config)
        return self._consumer_info(known)

    def _delete_consumer(self, rest: list[str], body: Json) -> Json:
        self.drop_consumer(self._consumer(rest))
        return {"success": True}

    def drop_consumer(self, consumer: Consumer) -> None:
        self.consumers.pop((consumer.stream.name, consumer.name), None)
        self._of_stream[consumer.stream.name].pop(consumer.name, None)
        consumer.end()

    # Faults of the whole server.

    def crash(self, random: Random) -> None:
        """Kill -9: memory is gone, and of the last moments what was not written; the log loses nothing."""
        now_ns = self.now_ns()
        for (stream_name, name), consumer in list(self.consumers.items()):
            if consumer.is_in_memory:
                del self.consumers[stream_name, name]
                del self._of_stream[stream_name][name]
        forgets = ("acked",) if random.random() < 0.7 else ()
        loses_since_ns = now_ns - (round(random.random() * 5e7) if random.random() < 0.5 else 0)
        for stream in self.streams.values():
            ids = len(stream.ids)
            back, lost = stream.crash(now_ns, forgets_removals_of=forgets, loses_since_ns=loses_since_ns)
            if stream.is_work_queue:
                self.faults.count("forgotten ack", back)
                self.faults.count("forgotten Msg-Id", ids - len(stream.ids))
            self.faults.count("lost derived message", lost)
        since_ns = now_ns - round(random.random() * FORGOTTEN_NS)
        forgets_counts = random.random() < 0.5
        keeps_acks = Random(now_ns).random() < self.faults.kept_acks
        for consumer in self.consumers.values():
            kept = consumer.crash(since_ns, forgets_counts=forgets_counts, keeps_acks=keeps_acks)
            self.faults.count("removal forgotten, ack kept", kept)

    def restart(self) -> None:
        """The server is up again."""
        for consumer in self.consumers.values():
            consumer.restart()

    def lose(self, name: str, *, entirely: bool) -> None:
        """A derived stream is emptied, or gone with its consumers."""
        if name not in self.streams:
            return
        if entirely:
            self._delete_stream([name], {})
        else:
            self._purge([name], {})


def _split(request: str) -> tuple[str, list[str]]:
    """The verb of an API request, and what follows it."""
    tokens = request.split(".")
    for size in (3, 2, 1):
        verb = ".".join(tokens[:size])
        if verb in _VERBS:
            return verb, tokens[size:]
    return request, []


_VERBS = frozenset(
    (
        *("INFO", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.INFO", "STREAM.NAMES", "STREAM.LIST"),
        *(
            "STREAM.PURGE",
            "STREAM.MSG.GET",
            "STREAM.MSG.DELETE",
            "DIRECT.GET",
            "CONSUMER.CREATE",
            "CONSUMER.DURABLE.CREATE",
        ),
        *("CONSUMER.INFO", "CONSUMER.DELETE", "CONSUMER.LIST", "CONSUMER.MSG.NEXT"),
    )
)


def _pull_request(data: bytes) -> Json:
    if not data:
        return {"batch": 1}
    request = json.loads(data)
    return request if isinstance(request, dict) else {"batch": int(request)}


def _stored_headers(stream: Stream, message: Message, more: bytes = b"") -> bytes:
    own = message.headers[:-2] if message.headers else b"NATS/1.0\r\n"
    return (
        own
        + (
            f"Nats-Stream: {stream.name}\r\nNats-Subject: {message.subject}\r\nNats-Sequence: {message.sequence}\r\n"
            f"Nats-Time-Stamp: {rfc3339_ns(message.at_ns)}\r\n"
        ).encode()
        + more
        + b"\r\n"
    )
