"""Purges by hand: executions that ended are taken out of the log now, not when it is full or they are too old.

Whole ones, and only where no owner of the log can miss them: their end is before the mark, so that a new owner does not
read it, nothing of them is stored as a checkpoint, and it is longer ago than an owner may lag. Otherwise what is gone
here would be open there, and come back.
"""

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from infinity_matrix_actors.errors import (
    InfinityMatrixError,
    InvalidDefinition,
    PurgeRefused,
    UnknownExecution,
    WrongState,
)
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import parse_server_time
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.checkpoint_store import CheckpointStore
from infinity_matrix_coordinator.controls import Asked
from infinity_matrix_coordinator.listing import (
    LISTED_STATES,
    OPEN_STATES,
    ExecutionSummary,
    Selection,
    read_listed,
    summarize,
)
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.purging import PURGE_AGE_MIN_S

#: What can be purged.
ENDED_STATES = tuple(state for state in LISTED_STATES if state not in OPEN_STATES)
#: Executions looked at with one request, and purged at once: each takes the server 0.1 to 0.5 ms.
PURGES_AT_ONCE = 16
#: Why an execution is kept.
YOUNG = f"it ended less than {PURGE_AGE_MIN_S:g} s ago"
READ_AGAIN = "a coordinator that takes over would still read its end; that passes within a minute while one runs"
STORED = "its checkpoint is still there; it goes while a coordinator runs"
REOPENED = "it was taken up again"
NOT_UNDONE = "not all of it was undone: 'imx compensate' takes that up, or give its id"


@dataclass(frozen=True, slots=True)
class Ended:
    """An execution that is meant, and why it must stay; None when it may go."""

    summary: ExecutionSummary
    problem: str | None


class Purges:
    """Purges of one installation. `age_min_s`: how long after its end an execution is kept in any case."""

    def __init__(self, operations: Operations, *, age_min_s: float = PURGE_AGE_MIN_S) -> None:
        self._operations = operations
        self._age_min_s = age_min_s

    async def purge(
        self,
        ids: Collection[str] | None = None,
        *,
        workflow: str | None = None,
        state: str | None = None,
        older_than_s: float | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> list[Asked]:
        """Purges the executions that ended, those named or all that the filter means, oldest first; answers them.

        `older_than_s` is since their end. What must stay has a `problem`; with `ids`, that is an error, and nothing is
        purged. At most `limit` are answered. With `dry_run` nothing is purged. Raises UnknownExecution, WrongState,
        InvalidDefinition for a state that is no end, PurgeRefused, StorageUnavailable, JetStreamError.
        """
        if not self._operations.installation.secret:
            raise PurgeRefused()
        if state is not None and state not in ENDED_STATES:
            raise InvalidDefinition(f"{state!r} is no end", where="state", hint=f"one of {', '.join(ENDED_STATES)}")
        shards = [
            await EndedExecutions.read(self._operations, number, self._age_min_s)
            for number in range(self._operations.installation.shards)
        ]
        before = None if older_than_s is None else time.time() - older_than_s
        meant = set(self._named(shards, ids)) if ids is not None else None
        answers: list[tuple[float, Asked]] = []
        for shard in shards:
            found = shard.ended(Selection(workflow, state), before, meant)
            problems = await shard.problems(found[:limit], is_named=ids is not None)
            if ids is not None:
                for one in problems:
                    if one.problem is not None:
                        raise WrongState(f"execution {one.summary.execution_id!r}", one.summary.state, one.problem)
            answers += [(_ended_at(one.summary), _answer(one)) for one in problems]
        answers.sort(key=lambda answer: answer[0])
        chosen = [answer for _, answer in answers[:limit]]
        if dry_run:
            return chosen
        going = [answer.execution_id for answer in chosen if answer.problem is None]
        kept = {id: problem for shard in shards for id, problem in (await shard.purge(going)).items()}
        return [
            Asked(each.execution_id, each.workflow, each.state, kept.get(each.execution_id, each.problem))
            for each in chosen
        ]

    @staticmethod
    def _named(shards: "Sequence[EndedExecutions]", ids: Collection[str]) -> Iterator[str]:
        """The ids, each of an execution that has ended; raises UnknownExecution, WrongState."""
        for id in ids:
            summary = next((shard.summaries[id] for shard in shards if id in shard.summaries), None)
            if summary is None:
                raise UnknownExecution(id)
            if summary.is_open:
                raise WrongState(f"execution {id!r}", summary.state, "it has not ended yet")
            yield id


class EndedExecutions:
    """What a purge knows of the executions of one log, as it was at one time."""

    def __init__(
        self, api: JetStreamApi, subjects: Subjects, number: int, summaries: dict[str, ExecutionSummary]
    ) -> None:
        self._api = api
        self._subjects = subjects
        self._number = number
        self._stream = subjects.facts_stream(number)
        self.summaries = summaries
        #: By execution, the place of its last end.
        self._ends: dict[str, int] = {}
        #: The head of the log before its executions were read: what is before it is known here.
        self._head = 0
        self._mark = 0
        self._young = 0.0

    @classmethod
    async def read(cls, operations: Operations, number: int, age_min_s: float) -> "EndedExecutions":
        session, subjects = await operations.session(), operations.subjects
        api = JetStreamApi(session)
        # Read before the executions: neither may be newer than what is known of them.
        mark = await CheckpointStore(session, subjects, number, operations.artifacts).mark()
        info = await api.call(f"STREAM.INFO.{subjects.facts_stream(number)}")
        entries = await read_listed(session, subjects, number)
        shard = cls(api, subjects, number, {one.execution_id: one for one in summarize(subjects, entries)})
        shard._head, shard._mark = int(info["state"]["last_seq"]), mark.sequence
        # By the server's clock, which the facts have their times from.
        shard._young = parse_server_time(str(info["ts"])) - age_min_s
        for entry in entries:
            subject = subjects.parse_fact(entry.subject)
            if subject is not None and subject.kind in ("started", "finished"):
                shard._ends[subject.execution] = entry.sequence
        return shard

    def ended(self, selection: Selection, before: float | None, meant: set[str] | None) -> list[ExecutionSummary]:
        """Those that are meant and have ended, the oldest end first."""
        found = [
            one
            for one in self.summaries.values()
            if not one.is_open
            and selection.admits(one)
            and (before is None or _ended_at(one) <= before)
            and (meant is None or one.execution_id in meant)
        ]
        return sorted(found, key=_ended_at)

    async def problems(self, ended: Sequence[ExecutionSummary], *, is_named: bool) -> list[Ended]:
        """Each of these with why it must stay; what was not all undone goes only by its name."""
        stored: set[str] = set()
        stream = self._subjects.bucket_stream("checkpoints")
        for start in range(0, len(ended), PURGES_AT_ONCE):
            chunk = ended[start : start + PURGES_AT_ONCE]
            records = [self._subjects.checkpoint(self._number, one.execution_id) for one in chunk]
            messages = await self._api.multi_last(stream, records)
            stored |= {message.subject.rpartition(".")[2] for message in messages or () if message.data}
        return [Ended(one, self._problem(one, stored, is_named=is_named)) for one in ended]

    def _problem(self, summary: ExecutionSummary, stored: set[str], *, is_named: bool) -> str | None:
        if summary.needs_attention and not is_named:
            return NOT_UNDONE
        if _ended_at(summary) > self._young:
            return YOUNG
        if self._ends[summary.execution_id] >= min(self._mark, self._head + 1):
            return READ_AGAIN
        return STORED if summary.execution_id in stored else None

    async def purge(self, executions: Sequence[str]) -> dict[str, str]:
        """Purges those that are of this shard, in their order; answers which stayed all the same, and why."""
        kept: dict[str, str] = {}
        own = [execution for execution in executions if execution in self.summaries]
        for start in range(0, len(own), PURGES_AT_ONCE):
            chunk = own[start : start + PURGES_AT_ONCE]
            reopened = await self._reopened(chunk)
            kept |= dict.fromkeys(reopened, REOPENED)
            purging = [asyncio.create_task(self._purge(one)) for one in chunk if one not in reopened]
            try:
                await asyncio.gather(*purging)
            except InfinityMatrixError:
                for task in purging:
                    task.cancel()
                await asyncio.gather(*purging, return_exceptions=True)
                raise
        return kept

    async def _reopened(self, executions: Sequence[str]) -> set[str]:
        """Those that were told something since they were read: it may take them up again."""
        commands = [self._subjects.commands_of(self._number, execution) for execution in executions]
        found = await self._api.multi_last(self._stream, commands)
        if found is None:
            # More commands than one answer holds: of whom, is not worth another request.
            return set(executions)
        subjects = [self._subjects.parse_fact(message.subject) for message in found if message.sequence > self._head]
        return {subject.execution for subject in subjects if subject is not None}

    async def _purge(self, execution: str) -> None:
        await self._api.purge(self._stream, self._subjects.facts_of(self._number, execution))


def _ended_at(summary: ExecutionSummary) -> float:
    return summary.finished_at if summary.finished_at is not None else summary.started_at


def _answer(ended: Ended) -> Asked:
    return Asked(ended.summary.execution_id, ended.summary.workflow, ended.summary.state, ended.problem)
