"""Failpoints: `IM_FAILPOINT=name:n:kill` ends this process, or stops it, where it passes a named place the n-th time.

All that a process does to others, and hears of them, passes two methods of its connection. So the places are those
between any two of its messages: no call site can be forgotten, and without the variable those two methods are left as
they are written.
"""

import os
import select
import signal
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from infinity_matrix_actors.errors import InfinityMatrixError

VARIABLE = "IM_FAILPOINT"
#: Arms the failpoints and names none: for processes that are told later, by `arm`.
WATCH = "watch"
#: What a process prints before it stands still.
PAUSING = "pausing at"
#: Requests whose reply is still recognised.
REQUESTS_MAX = 100_000
#: Before the socket of a process that is about to die takes no more, it is given up.
SEND_TIMEOUT_S = 5.0

Who = tuple[str, ...]
#: Who passes a kind of message: a coordinator, an agent, or both; and what only clients pass, or who mends something
#: that seldom breaks, such as a queue of which a killed server forgot the acks.
_C: Who = ("coordinator",)
_A: Who = ("agent",)
_BOTH: Who = ("coordinator", "agent")
_SELDOM: Who = ()
#: What is sent and not answered, or whose answer nobody waits for.
_TOLD = {
    **dict.fromkeys(("nak", "lease", "term", "logs"), _A),
    **dict.fromkeys(("cancel", "members", "answer"), _C),
    **dict.fromkeys(("ack", "status"), _BOTH),
    **dict.fromkeys(("chunk",), _SELDOM),
}
#: What is answered: a fact by its PubAck, a request by its reply.
_ASKED = {
    **dict.fromkeys(("fact.outcome", "fact.taken", "fact.signal"), _BOTH),
    **dict.fromkeys(("fact.started", "fact.due", "fact.command", "fact.finished"), _C),
    **dict.fromkeys(("work", "repair", "tombstone", "purge", "dead"), _C),
    **dict.fromkeys(("checkpoint", "mark", "forget", "schedule", "definition"), _C),
    **dict.fromkeys(("head.fact", "head.work", "head.kv", "read.fact", "read.work", "read.members"), _C),
    **dict.fromkeys(("read.checkpoints", "read.schedules", "read.definitions", "read.installation"), _C),
    **dict.fromkeys(("read.dead", "installation", "stream.create", "account"), _C),
    **dict.fromkeys(("consumer.delete", "consumer.pause"), _C),
    **dict.fromkeys(("ask", "begun", "artifact"), _A),
    **dict.fromkeys(("pull", "read.artifacts", "consumer.create", "consumer.info"), _BOTH),
    **dict.fromkeys(("message.delete", "stream.delete", "stream.snapshot", "stream.restore", "trigger"), _SELDOM),
    **dict.fromkeys(("read.status", "read.logs", "read.triggers"), _SELDOM),
    **dict.fromkeys(("head.artifacts", "head.status", "head.logs", "head.triggers", "head.dead"), _SELDOM),
}
#: What comes unasked, or by a pull.
_TAKEN = {
    **dict.fromkeys(("fact", "api", "status", "trigger", "schedule", "definition", "advisory"), _C),
    **dict.fromkeys(("work", "cancel"), _A),
    **dict.fromkeys(("dead", "logs", "members", "checkpoint", "installation", "artifact"), _SELDOM),
    **dict.fromkeys(("discovery", "chunk"), _SELDOM),
}
#: Every failpoint, and who passes it in any run. `send.X.before`: X is not sent; `send.X.after`: it is with the server,
#: its answer is not read; `reply.X`: the answer is here, and nothing was done about it; `take.X.before` and `.after`:
#: around what is done about a message that came.
NAMES: dict[str, Who] = {
    **{f"send.{kind}.{side}": who for kind, who in (_TOLD | _ASKED).items() for side in ("before", "after")},
    **{f"reply.{kind}": who for kind, who in _ASKED.items()},
    **{f"take.{kind}.{side}": who for kind, who in _TAKEN.items() for side in ("before", "after")},
}


class Failpoint(NamedTuple):
    """A place, which time it counts, and what happens there: kill, or a pause (None: until SIGCONT)."""

    name: str
    nth: int
    is_kill: bool
    pause_s: float | None = None


class BadFailpoint(InfinityMatrixError):
    """Raised when `IM_FAILPOINT` cannot be read. Correct the variable, or unset it."""


def parse(text: str) -> Failpoint:
    """`name:n:kill`, `name:n:pause` (SIGSTOP) or `name:n:pause=SECONDS`; raises BadFailpoint."""
    name, _, rest = text.partition(":")
    number, _, action = rest.partition(":")
    if name not in NAMES:
        raise BadFailpoint(f"{VARIABLE}={text}: there is no failpoint {name!r}; docs/RELIABILITY.md names them")
    if not number.isdecimal() or int(number) < 1:
        raise BadFailpoint(f"{VARIABLE}={text}: after the name comes a number from 1: which time it is passed")
    word, _, seconds = action.partition("=")
    try:
        pause_s = float(seconds) if seconds else None
    except ValueError:
        pause_s = -1.0
    if word not in ("kill", "pause") or (word == "kill" and seconds) or (pause_s is not None and pause_s < 0):
        raise BadFailpoint(f"{VARIABLE}={text}: the action is kill, pause or pause=SECONDS, not {action!r}")
    return Failpoint(name, int(number), word == "kill", pause_s)


class _Watch:
    """What this process has passed so far, and where something is to happen."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.point: Failpoint | None = None
        #: The kind of each request, by the inbox its answer comes to.
        self.requests: OrderedDict[str, str] = OrderedDict()

    def passed(self, name: str) -> None:
        self.counts[name] += 1
        point = self.point
        if point is None or point.name != name or self.counts[name] != point.nth:
            return
        # To the descriptor: what is only in a buffer dies with the process.
        os.write(2, f"{'killed at' if point.is_kill else PAUSING} {name} {point.nth}\n".encode())
        if point.is_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        elif point.pause_s is None:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            # The whole process stands still, as it would without a processor.
            time.sleep(point.pause_s)


def _armed(text: str | None) -> _Watch | None:
    if not text:
        return None
    watch = _Watch()
    if text != WATCH:
        try:
            watch.point = parse(text)
        except BadFailpoint as error:
            raise SystemExit(str(error)) from None
    return watch


_watch = _armed(os.environ.get(VARIABLE))


def is_armed() -> bool:
    """Whether the variable was set when this process began."""
    return _watch is not None


def arm(text: str) -> None:
    """Names the failpoint of a process that was begun with `watch`, counting from now; raises BadFailpoint."""
    if _watch is None:
        raise BadFailpoint(f"{VARIABLE} was not set when this process began")
    _watch.counts.clear()
    _watch.point = parse(text)


def passed() -> dict[str, int]:
    """How often this process passed each place so far; nothing where the variable was not set."""
    return {} if _watch is None else dict(_watch.counts)


Write = Callable[[Any, bytes], None]
Receive = Callable[[Any, int, bytes, bytes, bytes, bytes | None], Awaitable[None] | None]


def sending(write: Write) -> Write:
    """Around the method that all bytes leave by; the method itself when nothing is armed."""
    if _watch is None:
        return write
    watch = _watch

    def watched(client: Any, data: bytes) -> None:
        sent = 0
        for start, end, subject, reply, payload in _messages(data):
            kind = kind_of_sent(subject, payload)
            if reply:
                watch.requests[reply] = kind
                if len(watch.requests) > REQUESTS_MAX:
                    watch.requests.popitem(last=False)
            _send_now(client, write, data[sent:start])
            watch.passed(f"send.{kind}.before")
            _send_now(client, write, data[start:end])
            sent = end
            watch.passed(f"send.{kind}.after")
        _send_now(client, write, data[sent:])

    return watched


def receiving(receive: Receive) -> Receive:
    """Around the method that all messages come by; the method itself when nothing is armed."""
    if _watch is None:
        return receive
    watch = _watch

    def watched(
        client: Any, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> Awaitable[None] | None:
        place = subject.decode(errors="replace")
        asked = watch.requests.get(place)
        if asked is not None:
            watch.passed(f"reply.{asked}")
            return receive(client, sid, subject, reply, data, headers)
        kind = kind_of_taken(place)
        watch.passed(f"take.{kind}.before")
        result = receive(client, sid, subject, reply, data, headers)
        if result is None:
            watch.passed(f"take.{kind}.after")
            return None
        return _then(result, lambda: watch.passed(f"take.{kind}.after"))

    return watched


async def _then(result: Awaitable[None], after: Callable[[], None]) -> None:
    await result
    after()


def _send_now(client: Any, write: Write, data: bytes) -> None:
    """Into the socket before anything else happens, so that a process that dies at once has sent it."""
    if not data:
        return
    transport = client._socket
    plain = None if transport is None or transport.get_extra_info("sslcontext") else transport.get_extra_info("socket")
    if plain is None or transport.is_closing() or transport.get_write_buffer_size():
        write(client, data)
        return
    while data:
        try:
            data = data[os.write(plain.fileno(), data) :]
        except BlockingIOError:
            if not select.select([], [plain.fileno()], [], SEND_TIMEOUT_S)[1]:
                break
        except OSError:
            # The transport finds out by itself.
            return
    if data:
        write(client, data)


def _messages(data: bytes) -> Iterator[tuple[int, int, str, str, bytes]]:
    """Each message among the commands of a write: where it begins and ends, its subject, reply subject and payload."""
    at = 0
    while at < len(data):
        line_end = data.index(b"\r\n", at) + 2
        command, *words = data[at : line_end - 2].decode().split(" ")
        if command not in ("PUB", "HPUB"):
            at = line_end
            continue
        end = line_end + int(words[-1]) + 2
        with_headers = command == "HPUB"
        body = line_end + (int(words[-2]) if with_headers else 0)
        reply = words[1] if len(words) > (3 if with_headers else 2) else ""
        yield at, end, words[0], reply, data[body : end - 2]
        at = end


_BUCKETS = {
    "MEMBERS": "members",
    "CHECKPOINTS": "checkpoint",
    "SCHEDULES": "schedule",
    "DEFINITIONS": "definition",
    "INSTALLATION": "installation",
}
_REPLIES = {b"+ACK": "ack", b"-NAK": "nak", b"+WPI": "lease", b"+TER": "term"}
_PLAIN = {"dead": "dead", "logs": "logs", "cancel": "cancel", "api": "ask", "trigger": "trigger"}
_STREAMS = ("FACTS", "WORK", "STATUS", "LOGS", "TRIGGERS", "DEAD")


def kind_of_sent(subject: str, payload: bytes) -> str:
    """What a message that leaves is; `other` for what no failpoint is named after."""
    tokens = subject.split(".")
    match tokens:
        case ["$JS", "ACK", *_]:
            return _REPLIES.get(payload[:4], "ack")
        case ["$JS", "API", *request]:
            return _kind_of_request(request)
        case ["$KV", bucket, *_]:
            kind = _BUCKETS.get(bucket.rpartition("_")[2], "other")
            # The mark of a shard stands beside the records of its executions.
            return "mark" if kind == "checkpoint" and tokens[2] == "mark" else kind
        case ["$O", *_]:
            return "artifact"
        case ["$JS", "SNAPSHOT", *_]:
            return "chunk"
        case ["_INBOX", *_]:
            return "answer"
        case [_, "fact", _, _, kind, *_]:
            return f"fact.{kind}"
        case [_, "work", "im-closed", *_]:
            return "tombstone"
        case [_, "work", *_]:
            return "repair" if b'"repair":true' in payload else "work"
        case [_, "status", *_, state, _] if state == "begun":
            return "begun"
        case [_, "status", *_]:
            return "status"
        case [_, kind, *_]:
            return _PLAIN.get(kind, "other")
    return "other"


def _kind_of_request(request: list[str]) -> str:
    match request:
        case ["STREAM", "PURGE", stream]:
            return "forget" if _kind_of_stream(stream) == "checkpoints" else "purge"
        case ["STREAM", "MSG", "GET", stream] | ["DIRECT", "GET", stream, *_]:
            return f"read.{_kind_of_stream(stream)}"
        case ["STREAM", "INFO", stream]:
            return "head.kv" if stream.startswith("KV_") else f"head.{_kind_of_stream(stream)}"
        case ["STREAM", "MSG", "DELETE", _]:
            return "message.delete"
        case ["CONSUMER", "MSG", "NEXT", *_]:
            return "pull"
        case ["CONSUMER", "CREATE" | "DURABLE", *_]:
            return "consumer.create"
        case ["CONSUMER", "INFO" | "LIST" | "NAMES", *_]:
            return "consumer.info"
        case ["CONSUMER", "DELETE" | "PAUSE" as verb, *_]:
            return f"consumer.{verb.lower()}"
        case ["STREAM", "CREATE" | "UPDATE", *_]:
            return "stream.create"
        case ["STREAM", "DELETE" | "SNAPSHOT" | "RESTORE" as verb, _]:
            return f"stream.{verb.lower()}"
        case ["INFO"] | ["STREAM", "LIST" | "NAMES"]:
            return "account"
    return "other"


def _kind_of_stream(stream: str) -> str:
    if stream.startswith("KV_"):
        return stream.rpartition("_")[2].lower()
    if stream.startswith("OBJ_"):
        return "artifacts"
    parts = stream.split("_")
    for name in _STREAMS:
        if name in parts:
            return {"FACTS": "fact"}.get(name, name.lower())
    return "other"


def kind_of_taken(subject: str) -> str:
    """What a message that comes is; `other` for what no failpoint is named after."""
    match subject.split("."):
        case ["$KV", bucket, *_]:
            return _BUCKETS.get(bucket.rpartition("_")[2], "other")
        case ["$O", *_]:
            return "artifact"
        case ["$JS", "EVENT", "ADVISORY", *_]:
            return "advisory"
        case ["$SRV", *_]:
            return "discovery"
        case ["_INBOX", *_]:
            # Part of a stream that is stored or restored; all else that comes to an inbox was asked for.
            return "chunk"
        case [_, "fact" | "work" | "cancel" | "api" | "status" | "trigger" | "dead" | "logs" as kind, *_]:
            return kind
    return "other"
