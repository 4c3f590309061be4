"""A shard's mark: the sequence a new owner reads from. Everything before it belongs to executions that are finished.

Kept in `IM_CHECKPOINTS`, raised only by compare-and-set, so that a lagging owner cannot set it back.
"""

from infinity_matrix_actors.errors import StorageUnavailable
from infinity_matrix_bus.installation import bucket
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects
from nats.errors import Error as NatsError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

log = get_logger("infinity_matrix.coordinator")


class Marks:
    """The marks of all shards, on one session."""

    def __init__(self, session: Session, subjects: Subjects) -> None:
        self._session = session
        self._name = subjects.bucket("checkpoints")
        self._bucket: KeyValue | None = None

    async def read(self, shard: int) -> int:
        """The sequence to read from: 1 when nothing is known."""
        return (await self._entry(shard))[0]

    async def raise_to(self, shard: int, sequence: int) -> None:
        """Sets the mark unless it is at or beyond `sequence`."""
        stored, revision = await self._entry(shard)
        if sequence <= stored:
            return
        store = await self._open()
        try:
            await store.update(f"mark.{shard}", str(sequence).encode(), last=revision)
        except KeyWrongLastSequenceError:
            log.debug("mark_raised_by_another", shard=shard)
        except NatsError as error:
            raise StorageUnavailable(f"the mark of shard {shard} could not be stored: {error}") from error

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            try:
                self._bucket = await bucket(self._session, self._name)
            except NatsError as error:
                raise StorageUnavailable(f"the checkpoints could not be reached: {error}") from error
        return self._bucket

    async def _entry(self, shard: int) -> tuple[int, int]:
        store = await self._open()
        try:
            entry = await store.get(f"mark.{shard}")
        except KeyNotFoundError:
            return 1, 0
        except NatsError as error:
            raise StorageUnavailable(f"the mark of shard {shard} could not be read: {error}") from error
        return int(entry.value or b"1"), int(entry.revision or 0)
