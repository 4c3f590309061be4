"""The simulated server's front: connections, subscriptions and routing, in the text protocol of NATS."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .network import Link

MAX_PAYLOAD = 1024 * 1024
VERSION = "2.15.1"
#: Nobody has more than one wildcard, and that the last token, in a pattern of these.
INBOX = "_INBOX."


class Messages(Protocol):
    """What lies behind the front: the streams and their API."""

    def take(self, subject: str, reply: str, headers: bytes, data: bytes) -> bool:
        """Takes a message that is for it; answers whether it was."""


class ServerConnection:
    """The server's end of one connection."""

    def __init__(self, link: "Link", number: int) -> None:
        self.link = link
        self.number = number
        self.out: list[bytes] = []
        #: By sid: subject, queue, and how many messages are left of an unsubscription that waits for them.
        self.subscriptions: dict[str, tuple[str, str]] = {}
        self.left: dict[str, int] = {}


@lru_cache(maxsize=4096)
def _taken_apart(pattern: str) -> tuple[str, tuple[str, ...]]:
    """What a subject must begin with, and the pattern's tokens when that is not all there is to it."""
    tokens = tuple(pattern.split("."))
    if tokens[-1] == ">" and "*" not in tokens:
        return pattern[:-1], ()
    return "", tokens


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern, by the rules of NATS."""
    if pattern == subject:
        return True
    prefix, wanted = _taken_apart(pattern)
    if prefix:
        return subject.startswith(prefix) and len(subject) > len(prefix)
    tokens = subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or (token != "*" and token != tokens[index]):
            return False
    return len(wanted) == len(tokens)


class Server:
    """Takes commands from connections and routes messages. `messages` is asked first about each."""

    def __init__(self) -> None:
        self.is_up = True
        self.messages: Messages | None = None
        self.connections: dict[ServerConnection, None] = {}
        #: Subscriptions to one subject, and to `prefix.*`, by (prefix or subject); all others.
        self._exact: dict[str, dict[tuple[ServerConnection, str], str]] = {}
        self._below: dict[str, dict[tuple[ServerConnection, str], str]] = {}
        self._wild: dict[tuple[ServerConnection, str], tuple[str, str]] = {}
        self._touched: dict[ServerConnection, None] = {}
        self._numbers = 0
        self._turn = 0
        #: Told of each request that is for no stream, with who sent it.
        self.on_request: Callable[[str, bytes, ServerConnection], None] = lambda subject, data, by: None

    # Connections.

    def accept(self, link: "Link") -> ServerConnection:
        self._numbers += 1
        connection = ServerConnection(link, self._numbers)
        self.connections[connection] = None
        info = {"server_id": "SIM", "version": VERSION, "headers": True, "max_payload": MAX_PAYLOAD, "proto": 1}
        self._write(connection, b"INFO " + json.dumps({**info, "client_id": self._numbers}).encode() + b"\r\n")
        self.flush()
        return connection

    def closed(self, connection: ServerConnection) -> None:
        """Forgets a connection that is over."""
        self.connections.pop(connection, None)
        for sid in list(connection.subscriptions):
            self._unsubscribe(connection, sid)

    def receive(self, connection: ServerConnection, data: bytes) -> None:
        """Takes in whole commands."""
        at = 0
        while at < len(data) and self.is_up:
            line_end = data.index(b"\r\n", at)
            line = data[at:line_end]
            at = line_end + 2
            word = line[:4]
            if word == b"PUB ":
                words = line.split()
                size = int(words[-1])
                reply = words[2].decode() if len(words) == 4 else ""
                self.publish(words[1].decode(), reply, b"", data[at : at + size], connection)
                at += size + 2
            elif word == b"HPUB":
                words = line.split()
                headers_size, size = int(words[-2]), int(words[-1])
                reply = words[2].decode() if len(words) == 5 else ""
                headers, body = data[at : at + headers_size], data[at + headers_size : at + size]
                self.publish(words[1].decode(), reply, headers, body, connection)
                at += size + 2
            elif word == b"SUB ":
                words = line.split()
                queue = words[2].decode() if len(words) == 4 else ""
                self._subscribe(connection, words[-1].decode(), words[1].decode(), queue)
            elif word == b"UNSU":
                words = line.split()
                if len(words) == 3 and int(words[2]) > 0:
                    connection.left[words[1].decode()] = int(words[2])
                else:
                    self._unsubscribe(connection, words[1].decode())
            elif line == b"PING":
                self._write(connection, b"PONG\r\n")
        self.flush()

    def flush(self) -> None:
        """Sends what was written, in one piece a connection."""
        touched, self._touched = self._touched, {}
        for connection in touched:
            data, connection.out = b"".join(connection.out), []
            connection.link.down(data)

    # Messages.

    def publish(
        self, subject: str, reply: str, headers: bytes, data: bytes, by: ServerConnection | None = None
    ) -> None:
        """Routes a message to the streams and their API, or to who subscribes."""
        assert self.messages is not None
        is_taken = self.messages.take(subject, reply, headers, data)
        if reply and by is not None and not is_taken:
            self.on_request(subject, data, by)
        receivers = self.deliver(subject, reply, headers, data)
        if not is_taken and not receivers and reply:
            self.deliver(reply, "", f"NATS/1.0 503\r\nNats-Subject: {subject}\r\n\r\n".encode(), b"")

    def deliver(self, inbox: str, reply: str, headers: bytes, data: bytes, subject: str = "") -> int:
        """Delivers to who subscribes to `inbox`; answers how many did. Of a queue group one has it.

        `subject` is what the message calls itself, when that is another.
        """
        exact = self._exact.get(inbox)
        found: list[tuple[ServerConnection, str, str]] = []
        if exact:
            found += [(connection, sid, queue) for (connection, sid), queue in exact.items()]
        below = self._below.get(inbox.rpartition(".")[0])
        if below:
            found += [(connection, sid, queue) for (connection, sid), queue in below.items()]
        if not inbox.startswith(INBOX):
            for (connection, sid), (pattern, queue) in self._wild.items():
                if matches(pattern, inbox):
                    found.append((connection, sid, queue))
        groups: dict[str, list[tuple[ServerConnection, str, str]]] = {}
        count = 0
        for one in found:
            if one[2]:
                groups.setdefault(one[2], []).append(one)
            else:
                self._send(one[0], one[1], subject or inbox, reply, headers, data)
                count += 1
        for group in groups.values():
            self._turn += 1
            connection, sid, _ = group[self._turn % len(group)]
            self._send(connection, sid, subject or inbox, reply, headers, data)
            count += 1
        return count

    def is_heard(self, subject: str) -> bool:
        """Whether anybody subscribes to it."""
        return bool(
            self._exact.get(subject)
            or self._below.get(subject.rpartition(".")[0])
            or (not subject.startswith(INBOX) and any(matches(pattern, subject) for pattern, _ in self._wild.values()))
        )

    def links_to(self, inbox: str) -> list["Link"]:
        """The connections of those who hear what is sent to an inbox."""
        heard = (self._exact.get(inbox, {}), self._below.get(inbox.rpartition(".")[0], {}))
        return [connection.link for subscribers in heard for connection, _ in subscribers]

    def _send(
        self, connection: ServerConnection, sid: str, subject: str, reply: str, headers: bytes, data: bytes
    ) -> None:
        target = f"{subject} {sid} {reply} " if reply else f"{subject} {sid} "
        if headers:
            head = f"HMSG {target}{len(headers)} {len(headers) + len(data)}\r\n"
        else:
            head = f"MSG {target}{len(data)}\r\n"
        self._write(connection, head.encode() + headers + data + b"\r\n")
        left = connection.left.get(sid)
        if left is not None:
            connection.left[sid] = left - 1
            if left == 1:
                self._unsubscribe(connection, sid)

    def _write(self, connection: ServerConnection, data: bytes) -> None:
        connection.out.append(data)
        self._touched[connection] = None

    # Subscriptions.

    def _subscribe(self, connection: ServerConnection, sid: str, subject: str, queue: str) -> None:
        connection.subscriptions[sid] = (subject, queue)
        key = (connection, sid)
        prefix, _, last = subject.rpartition(".")
        if "*" not in subject and ">" not in subject:
            self._exact.setdefault(subject, {})[key] = queue
        elif last == "*" and "*" not in prefix:
            self._below.setdefault(prefix, {})[key] = queue
        else:
            self._wild[key] = (subject, queue)

    def _unsubscribe(self, connection: ServerConnection, sid: str) -> None:
        subject, _ = connection.subscriptions.pop(sid, ("", ""))
        connection.left.pop(sid, None)
        key = (connection, sid)
        for index, name in ((self._exact, subject), (self._below, subject.rpartition(".")[0])):
            subscribers = index.get(name)
            if subscribers is not None and subscribers.pop(key, None) is not None and not subscribers:
                del index[name]
        self._wild.pop(key, None)
