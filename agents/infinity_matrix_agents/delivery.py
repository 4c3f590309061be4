"""A delivery: one work message in an agent's hands, and what is known of it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.names import RESERVED
from infinity_matrix_bus.codec import Undecodable, decode_record, parse_rfc3339
from infinity_matrix_bus.log_reader import parse_ack_reply
from infinity_matrix_bus.references import may_have_references

from infinity_matrix_agents.work import Work

#: Work stored later than this after it was ready may have been done already: the agent asks.
FRESH_S = 30.0
#: Delivered more often than this, the work itself is what kills agents.
DELIVERIES_MAX = 5
_REQUIRED = ("execution", "workflow", "task", "attempt", "agent", "reply_to", "idempotency_key")


class UnreadableWork(ValueError):
    """The message is no work this version can read."""


@dataclass(eq=False, slots=True)
class Delivery:
    """Times are seconds since the epoch."""

    record: dict[str, Any]
    ack_reply: str
    deliveries: int
    consumer_sequence: int
    stored_at: float
    #: Some of its values may be in the object store.
    may_have_references: bool = False
    work: Work | None = None
    started_at: float | None = None
    #: The outcome is under way, but not confirmed yet.
    is_settled: bool = False
    is_taken: bool = False
    #: Out of this agent's hands: its outcome was given, or it was handed back.
    is_released: bool = False
    #: Said to have been begun again, beside the server's count of deliveries.
    is_marked: bool = False
    is_cancelled: bool = False
    cancel_reason: str = ""
    #: Its handler was cancelled: once, because a second time would break off its cleaning up.
    is_interrupted: bool = False
    #: The handler gave a result.
    is_completed: bool = False
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @classmethod
    def read(cls, ack_reply: str, data: bytes) -> "Delivery":
        """Raises UnreadableWork."""
        deliveries, _, consumer_sequence, stored_at, _ = parse_ack_reply(ack_reply)
        try:
            record = decode_record(data)
        except Undecodable as error:
            raise UnreadableWork(str(error)) from error
        missing = [key for key in _REQUIRED if key not in record]
        if missing or record.get("v") != 1 or not isinstance(record["attempt"], int):
            raise UnreadableWork(f"fields missing or of another version: {', '.join(missing) or 'v, attempt'}")
        delivery = cls(record, ack_reply, deliveries, consumer_sequence, stored_at)
        delivery.may_have_references = may_have_references(data)
        return delivery

    @property
    def is_repeated(self) -> bool:
        """Whether someone may have had it before: when it fails now, it may have been done all the same."""
        return self.deliveries > 1 or self.record.get("repair") is True

    @property
    def is_worn(self) -> bool:
        """Delivered so often that it may be what kills agents."""
        return self.deliveries > DELIVERIES_MAX

    def is_poisonous(self, begun: int) -> bool:
        """Whether it is, by how often it was begun after its first delivery and not handed back."""
        return self.is_worn and begun >= DELIVERIES_MAX - 1

    @property
    def attempt_key(self) -> tuple[str, str, int]:
        return self.record["execution"], self.record["task"], self.record["attempt"]

    def is_doubtful(self, trusted_from: float, now: float) -> bool:
        """Whether it may have been done already, so that the log must be asked before it is run.

        Work stored before `trusted_from` may come for the first time by its count and yet be done: a server that was
        killed forgets acks, a consumer that was made again counts anew, a process that slept reads what is long over.
        """
        ready_at = parse_rfc3339(self.record.get("ready_at"))
        deadline = parse_rfc3339(self.record.get("deadline"))
        return (
            self.deliveries > 1
            or self.stored_at < trusted_from
            or self.record.get("repair") is True
            or ready_at is None
            or self.stored_at - ready_at > FRESH_S
            or (deadline is not None and now > deadline)
        )

    def concerns(self, execution: str, task: str | None, attempt: int) -> bool:
        """Whether a cancel of (execution, task or all, attempt or 0) means this one."""
        if task is None:
            # "All tasks" are the forward ones: an owner that lags tells agents to stop while others undo already. And
            # who is to answer a question, or to tell people, does so whatever becomes of the execution.
            is_meant = "cause" not in self.record and not str(self.record["task"]).startswith(RESERVED)
        else:
            is_meant = self.record["task"] == task
        return is_meant and self.record["execution"] == execution and attempt in (0, self.record["attempt"])
