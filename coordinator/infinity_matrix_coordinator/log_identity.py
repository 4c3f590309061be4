"""Whether a log is still the one that was folded: after a restore, or a power loss, it may be an earlier one.

A log that lost its end and has grown again since has other facts at the same sequences; who goes on from a position in
the old one skips the new ones. The stream's creation time tells a restore, and facts that were folded, looked up at
their sequences, tell a lost end. Facts expire and are purged, so a few are remembered, not one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from infinity_matrix_bus.api import NO_MESSAGE, JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import parse_server_time
from infinity_matrix_bus.log import get_logger

#: Facts remembered besides the last one, each this far from the one before.
WITNESSES_MAX = 4
WITNESS_SPACING = 1000
#: Stream times pass through floats on their way.
_TIME_PRECISION_S = 1e-5
log = get_logger("infinity_matrix.coordinator")


class Likeness(StrEnum):
    """What a comparison says. All but `SAME` mean: drop what was folded, and begin from the checkpoints."""

    SAME = "same"
    #: Restored, made anew, or without the end that was folded.
    OTHER = "other"
    #: Nothing is left of what was remembered, so nobody can tell.
    UNKNOWN = "unknown"
    #: There is no such stream.
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Witness:
    """A fact that was folded: where it stood, its subject, and its stream time in seconds since the epoch."""

    sequence: int
    subject: str
    at: float

    def is_like(self, subject: str, at: float) -> bool:
        return self.subject == subject and abs(self.at - at) < _TIME_PRECISION_S


@dataclass(slots=True)
class LogIdentity:
    """Which log was folded, as far as it was. `created` is the stream's creation time, as the server writes it."""

    created: str
    last: Witness | None = None
    earlier: list[Witness] = field(default_factory=list)

    def note(self, sequence: int, subject: str, at: float) -> None:
        """Takes in that a fact was folded. Cheap: called for each."""
        last = self.last
        if last is not None and (not self.earlier or last.sequence >= self.earlier[-1].sequence + WITNESS_SPACING):
            self.earlier.append(last)
            del self.earlier[:-WITNESSES_MAX]
        self.last = Witness(sequence, subject, at)

    @property
    def witnesses(self) -> list[Witness]:
        """The facts remembered, the last one first."""
        return [*([self.last] if self.last is not None else []), *reversed(self.earlier)]

    def record(self) -> dict[str, Any]:
        """The form in which it is kept beside a position."""
        facts = [[one.sequence, one.subject, one.at] for one in reversed(self.witnesses)]
        return {"created": self.created, "witnesses": facts}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "LogIdentity":
        """Reads back what `record` gave; raises KeyError, TypeError, ValueError."""
        facts = [Witness(int(one[0]), str(one[1]), float(one[2])) for one in record["witnesses"]]
        return cls(str(record["created"]), facts[-1] if facts else None, facts[:-1])


async def compare(api: JetStreamApi, stream: str, known: LogIdentity) -> Likeness:
    """Holds the log that is there against the one that was folded; raises JetStreamError, RequestTimeout, SessionLost.

    One request, and one more for each witness that is gone: all are leader reads.
    """
    info = await api.stream_info(stream)
    if info is None:
        return Likeness.GONE
    if info["created"] != known.created:
        log.warning("log_differs", stream=stream, created=info["created"], known=known.created)
        return Likeness.OTHER
    state = info["state"]
    if known.last is None:
        return Likeness.SAME
    if int(state["last_seq"]) < known.last.sequence:
        log.warning("log_differs", stream=stream, last=state["last_seq"], known=known.last.sequence)
        return Likeness.OTHER
    for witness in known.witnesses:
        if witness.sequence < int(state["first_seq"]):
            break
        found = await _message_at(api, stream, witness.sequence)
        if found is not None and not witness.is_like(*found):
            log.warning("log_differs", stream=stream, sequence=witness.sequence, found=found, known=witness)
            return Likeness.OTHER
        if found is not None:
            return Likeness.SAME
    return Likeness.UNKNOWN


async def _message_at(api: JetStreamApi, stream: str, sequence: int) -> tuple[str, float] | None:
    try:
        message = (await api.call(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
    except JetStreamError as error:
        if error.code == NO_MESSAGE:
            return None
        raise
    return str(message["subject"]), parse_server_time(str(message["time"]))
