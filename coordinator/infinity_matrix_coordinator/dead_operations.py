"""What people do with dead letters: list them, take their executions up again, discard them.

A letter is named by `<execution>/<task>/<attempt>`; with less of it, all that begin so are meant.
"""

from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import StorageUnavailable, UnknownDeadLetter
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import Undecodable, decode_record, parse_rfc3339
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.publisher import Fate, read_ack
from infinity_matrix_bus.session import NoResponders, RequestTimeout
from infinity_matrix_bus.subjects import Subjects, is_name, is_task_name

from infinity_matrix_coordinator.controls import Controls
from infinity_matrix_coordinator.dead_letters import DISCARDED
from infinity_matrix_coordinator.operations import Operations

WRITE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Work that could not be done. Times are seconds since the epoch; `work` is None where it fitted no letter."""

    id: str
    agent: str
    workflow: str
    execution_id: str
    task_id: str
    attempt: int
    error: dict[str, Any]
    #: It was to undo another task.
    undoes: bool
    queued_at: float | None
    taken_at: float | None
    failed_at: float | None
    work: dict[str, Any] | None
    sequence: int


class DeadOperations:
    """Dead letters of one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._controls = Controls(operations)

    async def letters(self, agent: str | None = None) -> list[DeadLetter]:
        """All letters, or those of one agent, the newest first; raises StorageUnavailable."""
        subjects = self._operations.subjects
        pattern = subjects.all_dead if agent is None else subjects.dead_of(agent if is_name(agent) else "none")
        entries = await read_all(await self._operations.session(), subjects.dead_stream, (pattern,))
        # The last on a subject counts; where an operator made the stream, those before may still be there.
        last = {entry.subject: _read(subjects, entry.subject, entry.data, entry.sequence) for entry in entries}
        letters = [letter for letter in last.values() if letter is not None]
        return sorted(letters, key=lambda letter: letter.sequence, reverse=True)

    async def find(self, id: str) -> list[DeadLetter]:
        """The letters of that name, by task and attempt; raises UnknownDeadLetter."""
        subjects = self._operations.subjects
        execution, _, rest = id.partition("/")
        task, _, attempt = rest.partition("/")
        is_id = is_name(execution) and (not task or is_task_name(task)) and (not attempt or attempt.isdigit())
        if not is_id or (attempt and not task):
            raise UnknownDeadLetter(id)
        pattern = subjects.dead_of("*", execution, task or "*", int(attempt) if attempt else None)
        stored = await JetStreamApi(await self._operations.session()).multi_last(subjects.dead_stream, [pattern])
        if stored is None:
            raise StorageUnavailable(f"{id} names more dead letters than one answer holds: name the task, too")
        found = [_read(subjects, message.subject, message.data, message.sequence) for message in stored]
        letters = [letter for letter in found if letter is not None]
        if not letters:
            raise UnknownDeadLetter(id)
        return sorted(letters, key=lambda letter: (letter.task_id, letter.attempt))

    async def replay(self, id: str, reason: str = "") -> list[DeadLetter]:
        """Takes the execution of a letter up again; answers its letters, which are gone then.

        What failed of it runs once more, not this work alone; where only undoing failed, that is taken up. Raises
        UnknownDeadLetter, and WrongState for an execution that has not ended, or that completed all the same.
        """
        letters = await self.find(id)
        execution = letters[0].execution_id
        if all(letter.undoes for letter in letters):
            await self._controls.compensate(execution, reason)
        else:
            await self._controls.retry(execution, reason)
        try:
            gone = await self.find(execution)
        except UnknownDeadLetter:
            return letters
        for letter in gone:
            await self._discard(letter)
        return gone

    async def discard(self, id: str) -> list[DeadLetter]:
        """Takes letters away; answers them. Their executions stay as they are. Raises UnknownDeadLetter."""
        letters = await self.find(id)
        for letter in letters:
            await self._discard(letter)
        return letters

    async def _discard(self, letter: DeadLetter) -> None:
        """Puts an empty letter in its place: a coordinator that takes over finds the subject taken."""
        subjects = self._operations.subjects
        subject = subjects.dead(letter.agent, letter.execution_id, letter.task_id, letter.attempt)
        session = await self._operations.session()
        try:
            ack = read_ack(await session.request(subject, DISCARDED, WRITE_TIMEOUT_S), None)
        except (NoResponders, RequestTimeout) as error:
            raise StorageUnavailable(f"the dead letter {letter.id} was not discarded: {error}") from error
        if ack.fate is not Fate.STORED:
            raise StorageUnavailable(f"the dead letter {letter.id} was not discarded: {ack.reason}")


def _read(subjects: Subjects, subject: str, data: bytes, sequence: int) -> DeadLetter | None:
    """None for what was discarded, and for what is no letter."""
    place = subjects.parse_dead(subject)
    try:
        record = decode_record(data)
    except Undecodable:
        return None
    if place is None or record.get("discarded") is True:
        return None
    agent, execution, task, attempt = place
    error, work = record.get("error"), record.get("work")
    return DeadLetter(
        f"{execution}/{task}/{attempt}",
        agent,
        str(record.get("workflow", "")),
        execution,
        task,
        attempt,
        error if isinstance(error, dict) else {},
        record.get("undoes") is True,
        parse_rfc3339(record.get("queued_at")),
        parse_rfc3339(record.get("taken_at")),
        parse_rfc3339(record.get("failed_at")),
        work if isinstance(work, dict) else None,
        sequence,
    )
