"""The model of one stream: what it takes, refuses, remembers and forgets."""

from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

from .server import matches

DUPLICATE_WINDOW_DEFAULT_NS = 120_000_000_000
#: Removed messages a crash may bring back, or a lagging replica still shows.
REMEMBERED_NS = 5_000_000_000
#: What the server counts for a message besides its text.
OVERHEAD_BYTES = 30

Refusal = tuple[int, int, str]  #: code, err_code, description
SLOT_TAKEN: Refusal = (503, 10077, "maximum messages per subject exceeded")
FULL_OF_MESSAGES: Refusal = (503, 10077, "maximum messages exceeded")
FULL_OF_BYTES: Refusal = (503, 10077, "maximum bytes exceeded")


def header(block: bytes, name: bytes) -> bytes:
    """The value of a header, empty when it is not there."""
    if not block:
        return b""
    at = block.find(b"\r\n" + name + b":")
    return block[at + len(name) + 3 : block.index(b"\r\n", at + 2)].strip() if at >= 0 else b""


@dataclass(slots=True)
class Message:
    subject: str
    headers: bytes
    data: bytes
    sequence: int
    at_ns: int
    #: Times it was given to anyone, which no crash forgets.
    deliveries: int = 0

    @property
    def size(self) -> int:
        return len(self.subject) + len(self.headers) + len(self.data) + OVERHEAD_BYTES + (4 if self.headers else 0)


@dataclass(slots=True)
class Stored:
    """What a publish came to: a sequence, or a refusal."""

    sequence: int = 0
    is_duplicate: bool = False
    refusal: Refusal | None = None


class Stream:
    """Messages by sequence, and by subject the last."""

    def __init__(self, config: dict[str, Any], now_ns: int) -> None:
        self.config = config
        self.name: str = config["name"]
        self.created_ns = now_ns
        self.messages: dict[int, Message] = {}
        #: Sequences of the messages that are there, in order.
        self.sequences: list[int] = []
        self.by_subject: dict[str, list[int]] = {}
        self.last_sequence = max(0, int(config.get("first_seq") or 0) - 1)
        self.bytes = 0
        #: Sequence and time by Msg-Id.
        self.ids: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self.removed: deque[tuple[int, str, Message]] = deque()
        #: A fault: as if this were the limit.
        self.is_full = False
        #: What was too old, of a log: whoever checks what happened needs all of it.
        self.aged: list[Message] | None = None
        self.configure(config)

    def configure(self, config: dict[str, Any]) -> None:
        self.config = config
        self.subjects: list[str] = config.get("subjects") or [self.name]
        self._per_subject = int(config.get("max_msgs_per_subject") or -1)
        self._messages_max = int(config.get("max_msgs") or -1)
        self._bytes_max = int(config.get("max_bytes") or -1)
        self._age_max_ns = int(config.get("max_age") or 0)
        self._discards_new = config.get("discard") == "new"
        self._refuses_taken = bool(config.get("discard_new_per_subject"))
        self._window_ns = int(config.get("duplicate_window") or DUPLICATE_WINDOW_DEFAULT_NS)
        self.is_work_queue = config.get("retention") == "workqueue"
        self.is_asynchronous = config.get("persist_mode") == "async"

    def keep_for(self, age_ns: int) -> None:
        """Lets it forget messages earlier than its configuration says, and keeps them apart."""
        self._age_max_ns = age_ns
        self.aged = []

    def takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.subjects)

    def publish(self, subject: str, headers: bytes, data: bytes, now_ns: int) -> Stored:
        """Stores a message, or says why not."""
        self.expire(now_ns)
        message_id = header(headers, b"Nats-Msg-Id")
        if message_id:
            known = self.ids.get(message_id)
            if known is not None:
                return Stored(known[0], is_duplicate=True)
        expected = header(headers, b"Nats-Expected-Last-Subject-Sequence")
        sequences = self.by_subject.get(subject)
        if expected:
            last = sequences[-1] if sequences else 0
            if int(expected) != last:
                return Stored(refusal=(400, 10071, f"wrong last sequence: {last}"))
        refusal = self._refusal(subject, headers, data)
        if refusal is not None:
            return Stored(refusal=refusal)
        self.last_sequence += 1
        self._add(Message(subject, headers, data, self.last_sequence, now_ns))
        if message_id:
            self.ids[message_id] = (self.last_sequence, now_ns)
        self._discard_old(subject)
        return Stored(self.last_sequence)

    def _refusal(self, subject: str, headers: bytes, data: bytes) -> Refusal | None:
        is_taken = 0 < self._per_subject <= len(self.by_subject.get(subject, ()))
        if is_taken and self._discards_new and self._refuses_taken:
            return SLOT_TAKEN
        if self.is_full:
            return FULL_OF_BYTES
        if self._discards_new and not is_taken:
            if 0 < self._messages_max <= len(self.messages):
                return FULL_OF_MESSAGES
            size = Message(subject, headers, data, 0, 0).size
            if self._bytes_max > 0 and self.bytes + size >= self._bytes_max:
                return FULL_OF_BYTES
        return None

    def _discard_old(self, subject: str) -> None:
        while self._per_subject > 0 and len(self.by_subject[subject]) > self._per_subject:
            self.remove(self.by_subject[subject][0], "")
        while (0 < self._messages_max < len(self.messages)) or (0 < self._bytes_max < self.bytes):
            self.remove(self.sequences[0], "")

    def _add(self, message: Message) -> None:
        sequence = message.sequence
        self.messages[sequence] = message
        self.bytes += message.size
        at = bisect_left(self.sequences, sequence)
        self.sequences.insert(at, sequence)
        of_subject = self.by_subject.setdefault(message.subject, [])
        of_subject.insert(bisect_left(of_subject, sequence), sequence)

    def remove(self, sequence: int, how: str, now_ns: int = 0) -> Message | None:
        """Takes a message out; with `how` it is remembered for a while."""
        message = self.messages.pop(sequence, None)
        if message is None:
            return None
        self.bytes -= message.size
        del self.sequences[bisect_left(self.sequences, sequence)]
        of_subject = self.by_subject[message.subject]
        of_subject.remove(sequence)
        if not of_subject:
            del self.by_subject[message.subject]
        if how:
            self.removed.append((now_ns, how, message))
        return message

    def purge(self, pattern: str, now_ns: int) -> list[int]:
        """Removes what matches (empty: everything); answers the sequences."""
        self.expire(now_ns)
        if not pattern:
            found = list(self.sequences)
        elif pattern in self.by_subject:
            found = list(self.by_subject[pattern])
        else:
            found = [
                sequence
                for subject, sequences in self.by_subject.items()
                if matches(pattern, subject)
                for sequence in sequences
            ]
        for sequence in found:
            self.remove(sequence, "purged", now_ns)
        return found

    def expire(self, now_ns: int) -> None:
        """Forgets what is too old."""
        while self._age_max_ns and self.sequences:
            if self.messages[self.sequences[0]].at_ns + self._age_max_ns > now_ns:
                break
            message = self.remove(self.sequences[0], "")
            if self.aged is not None and message is not None:
                self.aged.append(message)
        while self.ids:
            message_id, (_, at_ns) = next(iter(self.ids.items()))
            if at_ns + self._window_ns > now_ns:
                break
            del self.ids[message_id]
        while self.removed and self.removed[0][0] + REMEMBERED_NS < now_ns:
            self.removed.popleft()

    # Reading.

    def last(self, subject: str) -> Message | None:
        """The last message on a subject, or on any that matches."""
        if "*" not in subject and ">" not in subject:
            sequences = self.by_subject.get(subject)
            return self.messages[sequences[-1]] if sequences else None
        found = [s[-1] for name, s in self.by_subject.items() if matches(subject, name)]
        return self.messages[max(found)] if found else None

    def lasts(self, patterns: list[str]) -> list[Message]:
        """The last message on each subject that matches, in order."""
        found: set[int] = set()
        for pattern in patterns:
            if "*" in pattern or ">" in pattern:
                found |= {s[-1] for name, s in self.by_subject.items() if matches(pattern, name)}
            elif pattern in self.by_subject:
                found.add(self.by_subject[pattern][-1])
        return [self.messages[sequence] for sequence in sorted(found)]

    def lasts_as_of(self, patterns: list[str], at_ns: int) -> list[Message]:
        """`lasts` as a replica shows it that has taken in nothing since."""
        found = [message for message in self.lasts(patterns) if message.at_ns <= at_ns]
        subjects = {message.subject for message in found}
        for removed_ns, _, message in self.removed:
            was_there = removed_ns > at_ns >= message.at_ns and message.subject not in subjects
            if was_there and any(matches(pattern, message.subject) for pattern in patterns):
                subjects.add(message.subject)
                found.append(message)
        return sorted(found, key=lambda message: message.sequence)

    def after(self, sequence: int, patterns: list[str]) -> Message | None:
        """The first message behind a sequence that matches."""
        for index in range(bisect_right(self.sequences, sequence), len(self.sequences)):
            message = self.messages[self.sequences[index]]
            if not patterns or any(matches(pattern, message.subject) for pattern in patterns):
                return message
        return None

    def count_after(self, sequence: int, patterns: list[str]) -> int:
        """How many messages behind a sequence match."""
        start = bisect_right(self.sequences, sequence)
        if not patterns or patterns == self.subjects:
            return len(self.sequences) - start
        return sum(
            1
            for later in self.sequences[start:]
            if any(matches(pattern, self.messages[later].subject) for pattern in patterns)
        )

    # What a crash of the server does.

    def crash(self, now_ns: int, *, forgets_removals_of: tuple[str, ...], loses_since_ns: int) -> tuple[int, int]:
        """Brings back what was acked or purged just before, forgets ids of what is gone, loses the unsynced end.

        Answers how many messages came back and how many are lost.
        """
        self.expire(now_ns)
        back = lost = 0
        for _, how, message in self.removed:
            if how in forgets_removals_of and (self._per_subject < 0 or message.subject not in self.by_subject):
                self._add(message)
                back += 1
        self.removed.clear()
        if self.is_asynchronous:
            while self.sequences and self.messages[self.sequences[-1]].at_ns > loses_since_ns:
                self.remove(self.sequences[-1], "")
                lost += 1
        there = {header(message.headers, b"Nats-Msg-Id") for message in self.messages.values() if message.headers}
        for message_id in [one for one in self.ids if one not in there]:
            del self.ids[message_id]
        return back, lost

    def truncate(self, last_sequence: int) -> None:
        """What came after is lost, as with the power: its sequences are given out again."""
        while self.sequences and self.sequences[-1] > last_sequence:
            self.remove(self.sequences[-1], "")
        self.last_sequence = last_sequence

    def state(self) -> dict[str, Any]:
        """As the API tells it."""
        if self.last_sequence:
            first = self.sequences[0] if self.sequences else self.last_sequence + 1
        else:
            first = 0
        return {
            "messages": len(self.messages),
            "bytes": self.bytes,
            "first_seq": first,
            "last_seq": self.last_sequence,
            "num_subjects": len(self.by_subject),
        }
