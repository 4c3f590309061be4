"""The store of checkpoints: one record for each execution that is open for long, and one mark for each shard.

A record is replaced only by one that is folded further, by compare-and-set; the mark, the sequence a new owner reads
from, is only raised. Neither is ever set back by an owner that lags.
"""

import asyncio
import base64
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import StorageUnavailable
from infinity_matrix_bus.api import JetStreamApi, StoredMessage
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.codec import Undecodable, decode, decode_record, encode
from infinity_matrix_bus.history import read_each
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.log_reader import Entry
from infinity_matrix_bus.publisher import Ack, Fate, Publisher
from infinity_matrix_bus.session import RequestTimeout, Session, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.log_identity import LogIdentity

#: In a record up to this size the state stands as it is: to pack and unpack it took longer than all the rest.
PLAIN_BYTES_MAX = 4096
#: A state that is larger when packed goes to the artifacts, and its record names it.
STATE_BYTES_MAX = 512 * 1024
#: A record is not unpacked above this.
UNPACKED_BYTES_MAX = 256 * 1024 * 1024
log = get_logger("infinity_matrix.coordinator")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One execution's state, folded up to a place in the log.

    `timers` are (task or None, stream time); `is_waiting`: nothing of it is dispatched, so that only a fact or a timer
    wakes it. `state` is the snapshot as it is stored; `finishes` counts how often it has ended.
    """

    execution: str
    definition: str
    folded: int
    timers: tuple[tuple[str | None, float], ...]
    is_waiting: bool
    finishes: int
    state: Any
    revision: int = 0
    #: What a listing shows of it.
    workflow: str = ""
    state_name: str = ""
    started_at: float = 0.0
    #: The version of the rules that its state comes from.
    decide: int = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a new owner begins, and of which log."""

    sequence: int = 1
    identity: LogIdentity | None = None
    revision: int = 0


class CheckpointStore:
    """The checkpoints of one shard, on one session."""

    def __init__(self, session: Session, subjects: Subjects, shard: int, artifacts: ArtifactStore) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._publisher = Publisher(session)
        self._subjects = subjects
        self._shard = shard
        self._artifacts = artifacts
        self._stream = subjects.bucket_stream("checkpoints")

    async def save(self, checkpoint: Checkpoint, snapshot: dict[str, Any]) -> int | None:
        """Stores a checkpoint in place of the revision it names; answers the new one, None when another is there.

        Raises StorageUnavailable, SessionLost, PayloadTooLarge.
        """
        record = {
            "v": 1,
            "definition": checkpoint.definition,
            "folded": checkpoint.folded,
            "timers": checkpoint.timers,
            "waiting": checkpoint.is_waiting,
            "finishes": checkpoint.finishes,
            "workflow": checkpoint.workflow,
            "status": checkpoint.state_name,
            "started_at": checkpoint.started_at,
            "decide": checkpoint.decide,
            "state": {"plain": snapshot},
        }
        data = encode(record, "the state", limit_bytes=UNPACKED_BYTES_MAX)
        if len(data) > PLAIN_BYTES_MAX:
            data = encode({**record, "state": await self._packed(snapshot)})
        return await self._put(self._subjects.checkpoint(self._shard, checkpoint.execution), data, checkpoint.revision)

    async def _packed(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        data = encode(snapshot, "the state", limit_bytes=UNPACKED_BYTES_MAX)
        packed = zlib.compress(data, 1)
        if len(packed) <= STATE_BYTES_MAX:
            return {"packed": base64.b64encode(packed).decode()}
        return {"artifact": await self._artifacts.put(data, "the state")}

    async def read(self, execution: str) -> Checkpoint | None:
        """The checkpoint of an execution; raises StorageUnavailable, SessionLost."""
        try:
            stored = await self._api.last_message(self._stream, self._subjects.checkpoint(self._shard, execution))
        except RequestTimeout as error:
            raise StorageUnavailable(f"the checkpoint of {execution} could not be read: {error}") from error
        return None if stored is None else read_checkpoint(stored.subject, stored.data, stored.sequence)

    async def each(self, take: Callable[[Checkpoint], None]) -> None:
        """Calls `take` for every checkpoint of the shard; raises StorageUnavailable, SessionLost."""

        def on_entry(entry: Entry) -> None:
            checkpoint = read_checkpoint(entry.subject, entry.data, entry.sequence)
            if checkpoint is not None:
                take(checkpoint)

        await read_each(self._session, self._stream, (self._subjects.checkpoint(self._shard, "*"),), on_entry)

    async def snapshot_of(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The snapshot in a checkpoint; raises StorageUnavailable when it cannot be read."""
        found: Any = None
        match checkpoint.state:
            case {"plain": snapshot}:
                found = snapshot
            case {"packed": packed}:
                try:
                    unpacker = zlib.decompressobj()
                    found = decode(unpacker.decompress(base64.b64decode(packed), UNPACKED_BYTES_MAX))
                except (zlib.error, ValueError, TypeError, Undecodable) as error:
                    reason = f"the checkpoint of {checkpoint.execution} cannot be read: {error}"
                    raise StorageUnavailable(reason) from error
            case {"artifact": reference}:
                found = await self._artifacts.get_json(reference)
        if not isinstance(found, dict):
            raise StorageUnavailable(f"the checkpoint of {checkpoint.execution} holds no state")
        return found

    async def delete(self, execution: str) -> None:
        """Takes a checkpoint out; raises StorageUnavailable, SessionLost."""
        await self._api.purge(self._stream, self._subjects.checkpoint(self._shard, execution))

    async def mark(self) -> Mark:
        """The shard's mark; the beginning of the log when there is none."""
        stored = await self._api.last_message(self._stream, self._subjects.mark(self._shard))
        return Mark() if stored is None else _read_mark(stored)

    async def raise_mark(self, known: Mark, sequence: int, identity: LogIdentity | None) -> Mark:
        """Raises the mark to `sequence`; answers what is there then, which another owner may have raised further."""
        record: dict[str, Any] = {"sequence": sequence, "log": None if identity is None else identity.record()}
        revision = await self._put(self._subjects.mark(self._shard), encode(record), known.revision)
        return await self.mark() if revision is None else Mark(sequence, identity, revision)

    async def _put(self, subject: str, data: bytes, revision: int) -> int | None:
        headers = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {revision}\r\n\r\n".encode()
        answer: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._publisher.publish(subject, data, lambda ack: None if answer.done() else answer.set_result(ack), headers)
        ack = await answer
        if ack.fate is Fate.STORED:
            return ack.sequence
        if "wrong last sequence" in ack.reason:
            return None
        if self._session.is_lost:
            raise SessionLost(f"the connection was lost while {subject} was stored")
        raise StorageUnavailable(f"{subject} was not stored: {ack.reason or 'the server did not answer'}")


def read_checkpoint(subject: str, data: bytes, revision: int) -> Checkpoint | None:
    """The checkpoint in a message of the store; None, and an error in the log, for one that cannot be read."""
    execution = subject.rpartition(".")[2]
    if not data:
        return None
    try:
        record = decode_record(data)
        # One text for the same task of all executions: of a hundred thousand timers nothing else is kept.
        timers = tuple((None if task is None else sys.intern(task), float(at)) for task, at in record["timers"])
        return Checkpoint(
            execution,
            str(record["definition"]),
            int(record["folded"]),
            timers,
            record["waiting"] is True,
            int(record["finishes"]),
            record["state"],
            revision,
            str(record["workflow"]),
            str(record["status"]),
            float(record["started_at"]),
            int(record.get("decide", 1)),
        )
    except (Undecodable, KeyError, TypeError, ValueError) as error:
        log.error("checkpoint_unreadable", execution=execution, reason=str(error))
        return None


def _read_mark(stored: StoredMessage) -> Mark:
    try:
        found = decode(stored.data)
        if isinstance(found, int):
            return Mark(found, None, stored.sequence)
        identity = LogIdentity.read(found["log"]) if found.get("log") else None
        return Mark(int(found["sequence"]), identity, stored.sequence)
    except (Undecodable, KeyError, TypeError, ValueError, AttributeError) as error:
        log.error("mark_unreadable", reason=str(error))
        return Mark(1, None, stored.sequence)
