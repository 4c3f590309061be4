"""The store of definitions: by content hash, and by workflow name for the one that is deployed.

A definition is stored before the fact that names it. It is compressed: 2,000 tasks with all defaults written out are
some 600 KB of JSON and some 30 KB here.
"""

import asyncio
import zlib
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.errors import PayloadTooLarge, StorageUnavailable
from nats.errors import Error as NatsError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from infinity_matrix_bus.api import JetStreamError
from infinity_matrix_bus.codec import decode_record, encode
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.installation import bucket
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects, is_name

#: A compressed definition is not unpacked above this.
UNPACKED_BYTES_MAX = 64 * 1024 * 1024
#: What the headers of a write-once key take, and some.
HEADER_BYTES = 128
TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which definition a workflow's name stands for, and whether its triggers are armed."""

    workflow: str
    definition: str
    version: str
    is_armed: bool

    @classmethod
    def read(cls, workflow: str, data: bytes) -> "Deployment":
        record = decode_record(data)
        return cls(workflow, str(record["definition"]), str(record["version"]), record.get("armed") is True)

    def record(self) -> dict[str, Any]:
        return {"definition": self.definition, "version": self.version, "armed": self.is_armed}


class DefinitionStore:
    """Definitions on one session."""

    def __init__(self, session: Session, subjects: Subjects) -> None:
        self._session = session
        self._name = subjects.bucket("definitions")
        self._bucket: KeyValue | None = None

    async def store(self, definition: WorkflowDefinition) -> str:
        """Stores a definition unless it is there; answers its hash. Raises PayloadTooLarge, StorageUnavailable."""
        canonical = definition.canonical()
        digest = definition.digest()
        packed = zlib.compress(canonical, 6)
        limit = self._session.max_payload_bytes - HEADER_BYTES
        if len(packed) > limit:
            raise PayloadTooLarge(f"the definition of {definition.name}", len(packed), limit)
        try:
            await self._guard((await self._open()).create(f"hash.{digest}", packed))
        except (KeyWrongLastSequenceError, KeyNotFoundError):
            # It is there, and by its hash, so it is the same; a follower asked about it may not have it yet.
            return digest
        return digest

    async def load(self, digest: str) -> WorkflowDefinition | None:
        """The definition of a hash, None when it is not there yet; raises StorageUnavailable."""
        packed = await self._get(f"hash.{digest}")
        if packed is None:
            return None
        unpacker = zlib.decompressobj()
        try:
            canonical = unpacker.decompress(packed, UNPACKED_BYTES_MAX)
            if not unpacker.eof:
                raise ValueError(f"it is cut off, or larger than {UNPACKED_BYTES_MAX} bytes")
            return WorkflowDefinition.from_canonical(canonical)
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise StorageUnavailable(f"the definition {digest} cannot be read: {error}") from error

    async def deploy(self, definition: WorkflowDefinition, *, is_armed: bool) -> Deployment:
        """Stores the definition and makes the workflow's name stand for it."""
        digest = await self.store(definition)
        deployment = Deployment(definition.name, digest, definition.version, is_armed)
        await self._guard((await self._open()).put(f"name.{definition.name}", encode(deployment.record())))
        return deployment

    async def deployment(self, workflow: str) -> Deployment | None:
        data = await self._get(f"name.{workflow}")
        return None if data is None else Deployment.read(workflow, data)

    async def deployed(self, reads: GatheredReads, workflow: str) -> str | None:
        """The hash a workflow's name stands for; for who asks often, at once with others who ask."""
        if not is_name(workflow):
            return None
        try:
            found = await reads.read(f"KV_{self._name}", f"$KV.{self._name}.name.{workflow}")
        except JetStreamError as error:
            raise StorageUnavailable(f"the definitions could not be reached: {error}") from error
        return Deployment.read(workflow, found[0].data).definition if found and found[0].data else None

    async def disarm(self, workflow: str) -> bool:
        """Takes a workflow's triggers down; answers whether it was deployed."""
        found = await self.deployment(workflow)
        if found is None:
            return False
        record = {**found.record(), "armed": False}
        await self._guard((await self._open()).put(f"name.{workflow}", encode(record)))
        return True

    async def deployments(self) -> list[Deployment]:
        """All workflows that have a name here."""
        prefix = f"$KV.{self._name}.name."
        entries = await read_all(self._session, f"KV_{self._name}", (prefix + "*",))
        found = {entry.subject[len(prefix) :]: entry.data for entry in entries if entry.data}
        return [Deployment.read(workflow, data) for workflow, data in sorted(found.items())]

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._guard(bucket(self._session, self._name))
        return self._bucket

    async def _get(self, key: str) -> bytes | None:
        store = await self._open()
        try:
            value: bytes | None = (await self._guard(store.get(key))).value
            return value
        except KeyNotFoundError:
            return None

    async def _guard(self, call: Any) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await call
        except (KeyNotFoundError, KeyWrongLastSequenceError):
            raise
        except (NatsError, TimeoutError) as error:
            raise StorageUnavailable(f"the definitions could not be reached: {error}") from error
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # In Python 3.11 `wait_for`, which nats-py uses, can swallow a cancellation: who waits for the end of this
            # task would wait for ever.
            raise asyncio.CancelledError
        return answer
