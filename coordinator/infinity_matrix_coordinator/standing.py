"""How a coordinator stands: its shards, what it counted, what it holds still. Told to whoever asks all of them.

Each coordinator answers for itself, on subjects without a queue; who asks gathers as many answers as there are members.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.errors import ExecutionQuarantined, InfinityMatrixError
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import Undecodable, decode_record, encode
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects

#: How long coordinators have to answer; one that is gone is a member for 5 s yet.
ANSWER_TIMEOUT_S = 1.0
#: To read and fold an execution again.
REFOLD_TIMEOUT_S = 10.0
STANDING, REFOLD = "each.standing", "each.refold"
log = get_logger("infinity_matrix.coordinator")


@dataclass(frozen=True, slots=True)
class ShardStanding:
    """A shard, as its owner sees it; what is counted is since it took the shard over."""

    number: int
    is_live: bool
    #: Executions in memory, and those that only wait and are stored.
    open: int
    waiting: int
    #: Works that are ready and held back, because their agents have enough.
    held_back: int
    facts: int
    #: Messages in the log that are no facts: unreadable, or with a capability that nobody gave.
    garbage: int
    works: int
    repairs: int
    closings: int
    finished: int
    dead: int
    #: The share of its `max_bytes` that its log holds, and the executions that were purged for it.
    filled: float
    purged: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An execution that stands still because its facts cannot be folded from `sequence` on."""

    execution_id: str
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How one coordinator stands."""

    instance: str
    shards: tuple[ShardStanding, ...] = ()
    quarantined: tuple[Quarantined, ...] = field(default=())


async def standings(session: Session, subjects: Subjects) -> list[Standing]:
    """How every coordinator that answers stands, by name; raises SessionLost."""
    with _Answers(session, subjects, STANDING, {}) as asked:
        answers = await asked.gather(ANSWER_TIMEOUT_S, lambda answers, members: len(answers) >= members)
    found = [
        Standing(
            str(answer["instance"]),
            tuple(ShardStanding(**shard) for shard in answer["shards"]),
            tuple(Quarantined(**one) for one in answer["quarantined"]),
        )
        for answer in answers
    ]
    return sorted(found, key=lambda standing: standing.instance)


async def refold(session: Session, subjects: Subjects, execution: str) -> bool:
    """Has a quarantined execution folded again; answers whether one was found. Of two owners one is enough.

    Raises ExecutionQuarantined where it cannot be yet, SessionLost.
    """

    def is_over(answers: list[dict[str, Any]], members: int) -> bool:
        has_none = len(answers) >= members and not any(answer["found"] for answer in answers)
        return has_none or any("refolded" in answer for answer in answers)

    with _Answers(session, subjects, REFOLD, {"execution": execution}) as asked:
        answers = await asked.gather(ANSWER_TIMEOUT_S, is_over)
        if any(answer["found"] for answer in answers) and not is_over(answers, asked.members):
            # Somebody has it, and is at it.
            answers = await asked.gather(REFOLD_TIMEOUT_S, is_over)
    refolded = [answer for answer in answers if "refolded" in answer]
    if refolded and not any(answer["refolded"] for answer in refolded):
        raise ExecutionQuarantined(execution, int(refolded[0]["sequence"]), str(refolded[0]["reason"]))
    return bool(refolded)


class _Answers:
    """The answers of the coordinators to one question, asked when they are first gathered."""

    def __init__(self, session: Session, subjects: Subjects, verb: str, body: dict[str, Any]) -> None:
        self._session = session
        self._subjects = subjects
        self._verb = verb
        self._body = body
        self._answers: list[dict[str, Any]] = []
        self._heard = asyncio.Event()
        self._has_ended = False
        self._token: str | None = None
        #: How many coordinators there are, one that died a moment ago among them.
        self.members = 1

    def __enter__(self) -> "_Answers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            self._session.forget(self._token)

    async def gather(
        self, timeout_s: float, is_over: Callable[[list[dict[str, Any]], int], bool]
    ) -> list[dict[str, Any]]:
        """What was answered once that is enough, or after `timeout_s`; may be called again. Raises SessionLost."""
        if self._token is None:
            self.members = await _members(self._session, self._subjects)
            subject = self._subjects.api(self._verb)
            self._token = self._session.request_many_with(subject, encode(self._body), self._take)
        try:
            async with asyncio.timeout(timeout_s):
                while not self._has_ended and not is_over(self._answers, self.members):
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            log.debug("coordinators_silent", verb=self._verb, answers=len(self._answers), members=self.members)
        if self._session.is_lost:
            raise SessionLost("the connection was lost while the coordinators were asked")
        return self._answers

    def _take(self, data: bytes | None, headers: bytes | None) -> None:
        if data:
            try:
                self._answers.append(decode_record(data))
            except Undecodable as error:
                log.debug("answer_unreadable", verb=self._verb, reason=str(error))
        else:
            # The connection is lost, or nobody is there.
            self._has_ended = True
        self._heard.set()


async def _members(session: Session, subjects: Subjects) -> int:
    """How many coordinators there are; 1 where that cannot be read."""
    bucket = subjects.bucket("members")
    try:
        stored = await JetStreamApi(session).multi_last(f"KV_{bucket}", [f"$KV.{bucket}.*"])
    except InfinityMatrixError as error:
        log.debug("members_not_read", reason=str(error))
        return 1
    return max(1, sum(bool(message.data) for message in stored or ()))
