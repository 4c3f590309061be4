"""The model of one pull consumer: what it delivers to whom, again, and until when."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .loop import Handle
from .stream import Message, Stream

ACK_WAIT_DEFAULT_NS = 30_000_000_000
WAITING_MAX_DEFAULT = 512


class Surroundings(Protocol):
    """What a consumer needs of the server."""

    def now_ns(self) -> int: ...
    def deliver(self, inbox: str, subject: str, reply: str, headers: bytes, data: bytes) -> None: ...
    def is_heard(self, inbox: str) -> bool: ...
    def at(self, at_ns: int, callback: Callable[[], None]) -> Handle: ...
    def forgot_count(self) -> None:
        """A message that was delivered before came as if for the first time."""

    def held_until_ns(self, stream: str, consumer: str) -> int:
        """Until when a consumer, or all of a stream, deliver nothing: a fault."""


@dataclass(slots=True, eq=False)
class Pull:
    """A request for messages that waits."""

    inbox: str
    left: int
    until_ns: int
    heartbeat_ns: int
    heard_ns: int
    is_over: bool = False


@dataclass(slots=True)
class Pending:
    """A delivery that has no ack."""

    consumer_sequence: int
    delivered_ns: int
    until_ns: int


class Consumer:
    """Delivers a stream's messages to pulls, in order and, with acks, again."""

    def __init__(self, name: str, config: dict[str, Any], stream: Stream, server: Surroundings) -> None:
        self.name = name
        self.stream = stream
        self._server = server
        self.created_ns = server.now_ns()
        self.delivered_stream = 0
        self.delivered_consumer = 0
        self.pending: dict[int, Pending] = {}
        #: Deliveries so far, of what was delivered more than once.
        self.counts: dict[int, int] = {}
        self.again: deque[int] = deque()
        self.pulls: deque[Pull] = deque()
        self.active_ns = server.now_ns()
        self._timer: Handle | None = None
        self._is_held = False
        self.configure(config)
        policy = config.get("deliver_policy", "all")
        if policy == "by_start_sequence":
            self.delivered_stream = max(1, int(config.get("opt_start_seq", 1))) - 1
        elif policy == "new":
            self.delivered_stream = stream.last_sequence

    def configure(self, config: dict[str, Any]) -> None:
        self.config = config
        filters = config.get("filter_subjects")
        self.filters: list[str] = filters or ([config["filter_subject"]] if config.get("filter_subject") else [])
        self.has_acks = config.get("ack_policy", "explicit") != "none"
        self.ack_wait_ns = int(config.get("ack_wait") or ACK_WAIT_DEFAULT_NS)
        self._pending_max = int(config.get("max_ack_pending") or 1000)
        self._waiting_max = int(config.get("max_waiting") or WAITING_MAX_DEFAULT)
        self.inactive_ns = int(config.get("inactive_threshold") or 0)
        self._deliveries_max = int(config.get("max_deliver") or -1)
        self.is_in_memory = bool(config.get("mem_storage"))

    def pull(self, inbox: str, request: dict[str, Any]) -> None:
        """Takes a request for messages."""
        now_ns = self._server.now_ns()
        self.active_ns = now_ns
        if len(self.pulls) >= self._waiting_max:
            self._prune()
        if len(self.pulls) >= self._waiting_max:
            self._server.deliver(inbox, "", "", b"NATS/1.0 409 Exceeded MaxWaiting\r\n\r\n", b"")
            return
        expires_ns = int(request.get("expires") or 0)
        until_ns = now_ns + expires_ns if expires_ns else 0
        pull = Pull(inbox, int(request.get("batch") or 1), until_ns, int(request.get("idle_heartbeat") or 0), now_ns)
        if request.get("no_wait") or not expires_ns:
            self._pull_now(pull, bool(request.get("no_wait")))
            return
        self.pulls.append(pull)
        self._server.at(until_ns, lambda: self._expire(pull))
        if pull.heartbeat_ns:
            self._server.at(now_ns + pull.heartbeat_ns, lambda: self._beat(pull))
        self.signal()

    def _pull_now(self, pull: Pull, is_impatient: bool) -> None:
        self.pulls.append(pull)
        self.signal()
        if is_impatient and pull in self.pulls:
            self.pulls.remove(pull)
            pull.is_over = True
            status = b"NATS/1.0 404 No Messages\r\n" if pull.left else b""
            if status:
                self._server.deliver(pull.inbox, "", "", status + b"\r\n", b"")

    def signal(self) -> None:
        """Delivers what there is to who waits."""
        held_ns = self._server.held_until_ns(self.stream.name, self.name)
        if held_ns > self._server.now_ns():
            if not self._is_held:
                self._is_held = True
                self._server.at(held_ns, self._release)
            return
        while self.pulls:
            pull = self.pulls[0]
            if not self._server.is_heard(pull.inbox):
                self.pulls.popleft().is_over = True
                continue
            message = self._next()
            if message is None:
                return
            self.pulls.rotate(-1)
            pull.left -= 1
            pull.heard_ns = self._server.now_ns()
            if pull.left == 0:
                self.pulls.remove(pull)
                pull.is_over = True
            self._deliver(pull, message)

    def _release(self) -> None:
        self._is_held = False
        self.signal()

    def _next(self) -> Message | None:
        while self.again:
            message = self.stream.messages.get(self.again.popleft())
            if message is None:
                continue
            count = self.counts.get(message.sequence, 0)
            if not 0 < self._deliveries_max <= count:
                return message
            # It stays in the stream, and nobody is given it any more.
            self._advise("MAX_DELIVERIES", message.sequence, count)
        if self.has_acks and len(self.pending) >= self._pending_max:
            return None
        return self.stream.after(self.delivered_stream, self.filters)

    def _deliver(self, pull: Pull, message: Message) -> None:
        now_ns = self._server.now_ns()
        sequence = message.sequence
        self.delivered_consumer += 1
        self.delivered_stream = max(self.delivered_stream, sequence)
        count = 1
        if self.has_acks:
            if sequence in self.counts:
                count = self.counts[sequence] = self.counts[sequence] + 1
            else:
                self.counts[sequence] = 1
            self.pending[sequence] = Pending(self.delivered_consumer, now_ns, now_ns + self.ack_wait_ns)
            self._set_timer()
            message.deliveries += 1
            if count == 1 and message.deliveries > 1:
                self._server.forgot_count()
        left = self.stream.count_after(self.delivered_stream, self.filters) + len(self.again)
        reply = (
            f"$JS.ACK.{self.stream.name}.{self.name}.{count}.{sequence}.{self.delivered_consumer}"
            f".{message.at_ns}.{left}"
        )
        self._server.deliver(pull.inbox, message.subject, reply, message.headers, message.data)

    # Acks.

    def ack(self, sequence: int, body: bytes) -> None:
        """Takes an ack reply in."""
        if not self.has_acks or sequence > self.delivered_stream:
            return
        word = body.split(b" ", 1)[0]
        if word in (b"", b"+ACK", b"+TERM"):
            self.pending.pop(sequence, None)
            self.counts.pop(sequence, None)
            if sequence in self.again:
                self.again.remove(sequence)
            if self.stream.is_work_queue:
                self.stream.remove(sequence, "acked", self._server.now_ns())
        elif word == b"-NAK" and sequence in self.pending:
            del self.pending[sequence]
            self.again.append(sequence)
            self._advise("MSG_NAKED", sequence, self.counts.get(sequence, 1))
        elif word == b"+WPI" and sequence in self.pending:
            self.pending[sequence].until_ns = self._server.now_ns() + self.ack_wait_ns
        self.signal()

    def _advise(self, kind: str, sequence: int, deliveries: int) -> None:
        """Tells who listens what became of a message."""
        told = {"stream": self.stream.name, "consumer": self.name, "stream_seq": sequence, "deliveries": deliveries}
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.{kind}.{self.stream.name}.{self.name}"
        self._server.deliver(subject, "", "", b"", json.dumps(told).encode())

    def redeliver(self, sequence: int) -> None:
        """A fault: what was delivered comes again before its time."""
        if self.pending.pop(sequence, None) is not None:
            self.again.append(sequence)
            self.signal()

    def change_leader(self) -> None:
        """A fault: who waits is forgotten without a word."""
        for pull in self.pulls:
            pull.is_over = True
        self.pulls.clear()

    def removed(self, sequences: list[int]) -> None:
        """Messages were purged."""
        for sequence in sequences:
            self.pending.pop(sequence, None)
            self.counts.pop(sequence, None)

    def crash(self, since_ns: int, *, forgets_counts: bool, keeps_acks: bool = False) -> int:
        """What was delivered just before is forgotten, and of the rest perhaps how often.

        Answers how many messages came back that stay acked: nobody will be given them.
        """
        for pull in self.pulls:
            pull.is_over = True
        self.pulls.clear()
        self.again.clear()
        forgotten = [sequence for sequence, pending in self.pending.items() if pending.delivered_ns > since_ns]
        self.delivered_stream = min([self.delivered_stream, self.stream.last_sequence, *(s - 1 for s in forgotten)])
        for sequence in list(self.pending):
            if sequence > self.delivered_stream or sequence not in self.stream.messages:
                del self.pending[sequence]
                self.counts.pop(sequence, None)
        if forgets_counts:
            self.counts.clear()
        # What came back with its ack forgotten lies before what was delivered: it is pending again.
        now_ns = self._server.now_ns()
        kept = 0
        for sequence in self.stream.sequences:
            if sequence <= self.delivered_stream and sequence not in self.pending and self._is_mine(sequence):
                if keeps_acks:
                    kept += 1
                else:
                    self.pending[sequence] = Pending(0, now_ns, now_ns + self.ack_wait_ns)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return kept

    def restart(self) -> None:
        """The server is up again."""
        self._is_held = False
        self._set_timer()

    def _floor(self) -> int:
        """Up to here everything is acked or gone."""
        unsettled = [*self.pending, *self.again]
        return min(unsettled) - 1 if unsettled else self.delivered_stream

    def _is_mine(self, sequence: int) -> bool:
        message = self.stream.messages[sequence]
        return self.has_acks and self.stream.after(sequence - 1, self.filters) is message

    # Time.

    def _set_timer(self) -> None:
        if self._timer is None and self.pending:
            self._timer = self._server.at(min(one.until_ns for one in self.pending.values()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now_ns = self._server.now_ns()
        for sequence, pending in list(self.pending.items()):
            if pending.until_ns <= now_ns:
                del self.pending[sequence]
                self.again.append(sequence)
        self._set_timer()
        self.signal()

    def _expire(self, pull: Pull) -> None:
        if pull.is_over:
            return
        pull.is_over = True
        self.pulls.remove(pull)
        status = f"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: {pull.left}\r\nNats-Pending-Bytes: 0\r\n\r\n"
        self._server.deliver(pull.inbox, "", "", status.encode(), b"")

    def _beat(self, pull: Pull) -> None:
        if pull.is_over:
            return
        now_ns = self._server.now_ns()
        if not self._server.is_heard(pull.inbox):
            self.pulls.remove(pull)
            pull.is_over = True
            return
        if pull.heard_ns + pull.heartbeat_ns <= now_ns:
            pull.heard_ns = now_ns
            status = (
                f"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: {self.delivered_consumer}\r\n"
                f"Nats-Last-Stream: {self.delivered_stream}\r\n\r\n"
            )
            self._server.deliver(pull.inbox, "", "", status.encode(), b"")
        self._server.at(pull.heard_ns + pull.heartbeat_ns, lambda: self._beat(pull))

    def _prune(self) -> None:
        for pull in [one for one in self.pulls if not self._server.is_heard(one.inbox)]:
            self.pulls.remove(pull)
            pull.is_over = True

    def end(self) -> None:
        """The consumer is deleted: who waits is told."""
        for pull in self.pulls:
            pull.is_over = True
            self._server.deliver(pull.inbox, "", "", b"NATS/1.0 409 Consumer Deleted\r\n\r\n", b"")
        self.pulls.clear()
        if self._timer is not None:
            self._timer.cancel()

    def info(self) -> dict[str, Any]:
        """As the API tells it."""
        return {
            "stream_name": self.stream.name,
            "name": self.name,
            "config": self.config,
            "delivered": {"consumer_seq": self.delivered_consumer, "stream_seq": self.delivered_stream},
            "ack_floor": {"consumer_seq": 0, "stream_seq": self._floor()},
            "num_ack_pending": len(self.pending),
            "num_redelivered": sum(1 for count in self.counts.values() if count > 1),
            "num_waiting": len(self.pulls),
            "num_pending": self.stream.count_after(self.delivered_stream, self.filters),
        }
