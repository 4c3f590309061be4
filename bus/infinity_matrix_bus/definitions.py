"""The store of definitions: by content hash, and by workflow name for the one that is deployed.

A definition is stored before the fact that names it. It is compressed: 2,000 tasks with all defaults written out are
some 600 KB of JSON and some 30 KB here. One that fits no message all the same is stored in parts, which are there
before its hash is. Not as an artifact: those grow too old.
"""

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.errors import PayloadTooLarge, StorageUnavailable

from infinity_matrix_bus.api import JetStreamApi, JetStreamError, StoredMessage
from infinity_matrix_bus.codec import Undecodable, decode_record, encode
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.session import NoResponders, RequestTimeout, Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, is_name

#: A compressed definition is not unpacked above this.
UNPACKED_BYTES_MAX = 64 * 1024 * 1024
#: Compressed, and in parts.
PACKED_BYTES_MAX = 16 * 1024 * 1024
PART_BYTES = 256 * 1024
#: Where a server takes less in a message there are more.
PARTS_MAX = 1024
#: What the headers of a write-once key take, and some.
HEADER_BYTES = 128
#: Others may change the same workflow meanwhile; so often it is read and changed again.
CHANGES_MAX = 20
#: The server's error for a key that is there already.
WRONG_LAST_SEQUENCE = 10071
#: What was read of so many names is remembered by its bytes: a client starts one workflow thousands of times.
DEPLOYMENTS_MAX = 256
TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which definition a workflow's name stands for, and what may start it."""

    workflow: str
    definition: str
    version: str
    #: Events start it.
    is_armed: bool
    #: Nothing starts it: no event, no schedule, no one's own start. What runs goes on.
    is_paused: bool = False

    @classmethod
    @lru_cache(maxsize=DEPLOYMENTS_MAX)
    def read(cls, workflow: str, data: bytes) -> "Deployment":
        record = decode_record(data)
        return cls(
            workflow,
            str(record["definition"]),
            str(record["version"]),
            record.get("armed") is True,
            record.get("paused") is True,
        )

    def record(self) -> dict[str, Any]:
        record = {"definition": self.definition, "version": self.version, "armed": self.is_armed}
        return {**record, "paused": True} if self.is_paused else record


@dataclass(frozen=True, slots=True)
class Version:
    """A definition that was stored under a workflow's name, now or earlier; `stored_at` is when it was first."""

    workflow: str
    definition: str
    version: str
    stored_at: float


class DefinitionStore:
    """Definitions on one session."""

    def __init__(self, session: Session, subjects: Subjects) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._stream = f"KV_{subjects.bucket('definitions')}"
        self._keys = f"$KV.{subjects.bucket('definitions')}."

    async def store(self, definition: WorkflowDefinition) -> str:
        """Stores a definition unless it is there; answers its hash. Raises PayloadTooLarge, StorageUnavailable."""
        canonical = definition.canonical()
        digest = definition.digest()
        packed = zlib.compress(canonical, 6)
        if len(packed) > PACKED_BYTES_MAX:
            raise PayloadTooLarge(f"the definition of {definition.name}", len(packed), PACKED_BYTES_MAX)
        if len(packed) > self._session.max_payload_bytes - HEADER_BYTES:
            packed = await self._put_parts(packed)
        # Refused when it is there: then it is the same, because it is there by its hash.
        await asyncio.gather(
            self._put(f"hash.{digest}", packed, 0),
            self._put(f"version.{definition.name}.{digest}", encode({"version": definition.version}), 0),
        )
        return digest

    async def load(self, digest: str) -> WorkflowDefinition | None:
        """The definition of a hash, None when it is not there yet; raises StorageUnavailable."""
        packed = await self._get("hash", digest)
        if packed is None:
            return None
        unpacker = zlib.decompressobj()
        try:
            if packed.startswith(b"{"):
                packed = await self._get_parts(decode_record(packed))
            canonical = unpacker.decompress(packed, UNPACKED_BYTES_MAX)
            if not unpacker.eof:
                raise ValueError(f"it is cut off, or larger than {UNPACKED_BYTES_MAX} bytes")
            return WorkflowDefinition.from_canonical(canonical)
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise StorageUnavailable(f"the definition {digest} cannot be read: {error}") from error

    async def deploy(self, definition: WorkflowDefinition, *, is_armed: bool) -> Deployment:
        """Stores the definition and makes the workflow's name stand for it. One that is paused stays so."""
        digest = await self.store(definition)
        deployed = Deployment(definition.name, digest, definition.version, is_armed)

        def change(found: Deployment | None) -> Deployment:
            return deployed if found is None else replace(deployed, is_paused=found.is_paused)

        return await self._change(definition.name, change) or deployed

    async def deployment(self, workflow: str) -> Deployment | None:
        data = await self._get("name", workflow)
        return None if data is None else Deployment.read(workflow, data)

    async def deployed(self, reads: GatheredReads, workflow: str) -> Deployment | None:
        """What a workflow's name stands for; for who asks often, at once with others who ask."""
        if not is_name(workflow):
            return None
        try:
            found = await reads.read(self._stream, f"{self._keys}name.{workflow}")
        except JetStreamError as error:
            raise StorageUnavailable(f"the definitions could not be reached: {error}") from error
        if not found:
            # In a cluster a replica may answer that has not seen it yet; the leader has.
            return await self.deployment(workflow)
        return Deployment.read(workflow, found[0].data) if found[0].data else None

    async def disarm(self, workflow: str) -> bool:
        """Takes a workflow's triggers down; answers whether it was deployed."""
        return await self._change(workflow, lambda found: found and replace(found, is_armed=False)) is not None

    async def pause(self, workflow: str, *, is_paused: bool) -> bool:
        """Pauses a workflow, or lets it be started again; answers whether it was deployed."""
        return await self._change(workflow, lambda found: found and replace(found, is_paused=is_paused)) is not None

    async def versions(self, workflow: str | None = None) -> list[Version]:
        """All definitions that were stored under a workflow's name, or under any; by name, the oldest first."""
        if workflow is not None and not is_name(workflow):
            return []
        prefix = f"{self._keys}version."
        found = []
        for entry in await read_all(self._session, self._stream, (f"{prefix}{workflow or '*'}.*",)):
            name, _, digest = entry.subject[len(prefix) :].partition(".")
            try:
                found.append(Version(name, digest, str(decode_record(entry.data)["version"]), entry.at))
            except (Undecodable, KeyError):
                # Deleted by an operator, or none of ours.
                continue
        return sorted(found, key=lambda version: (version.workflow, version.stored_at))

    async def deployments(self) -> list[Deployment]:
        """All workflows that have a name here."""
        prefix = f"{self._keys}name."
        entries = await read_all(self._session, self._stream, (prefix + "*",))
        found = {entry.subject[len(prefix) :]: entry.data for entry in entries if entry.data}
        return [Deployment.read(workflow, data) for workflow, data in sorted(found.items())]

    # Not by nats-py's own buckets: their requests do not notice a lost connection, and can swallow a cancellation.

    async def _get(self, kind: str, name: str) -> bytes | None:
        # What is asked for comes from anyone: a wildcard would answer some other definition.
        if not is_name(name):
            return None
        stored = await self._last(f"{kind}.{name}")
        return None if stored is None or not stored.data else stored.data

    async def _put_parts(self, packed: bytes) -> bytes:
        """Stores a definition in parts; answers what stands under its hash then.

        Parts have names of what was packed, for another version of zlib packs the same differently.
        """
        name = sha256(packed).hexdigest()
        part_bytes = min(PART_BYTES, self._session.max_payload_bytes - HEADER_BYTES)
        parts = [packed[start : start + part_bytes] for start in range(0, len(packed), part_bytes)]
        for number, part in enumerate(parts):
            await self._put(f"part.{name}.{number}", part, 0)
        return encode({"name": name, "parts": len(parts)})

    async def _get_parts(self, record: dict[str, Any]) -> bytes:
        name, count = str(record["name"]), int(record["parts"])
        if not is_name(name) or not 0 < count <= PARTS_MAX:
            raise ValueError(f"it has {count} parts of {name!r}")
        parts = [await self._last(f"part.{name}.{number}") for number in range(count)]
        if any(part is None for part in parts):
            raise ValueError("a part of it is missing")
        return b"".join(part.data for part in parts if part is not None)

    async def _last(self, key: str) -> StoredMessage | None:
        try:
            return await self._api.last_message(self._stream, self._keys + key)
        except (JetStreamError, RequestTimeout, SessionLost) as error:
            raise StorageUnavailable(f"the definitions could not be reached: {error}") from error

    async def _change(
        self, workflow: str, change: Callable[[Deployment | None], Deployment | None]
    ) -> Deployment | None:
        """Writes what `change` makes of a deployment, by compare-and-set; None from it changes nothing."""
        if not is_name(workflow):
            return None
        key = f"name.{workflow}"
        for _ in range(CHANGES_MAX):
            stored = await self._last(key)
            found = Deployment.read(workflow, stored.data) if stored is not None and stored.data else None
            changed = change(found)
            if changed is None:
                return None
            if await self._put(key, encode(changed.record()), stored.sequence if stored is not None else 0):
                return changed
        raise StorageUnavailable(f"the workflow {workflow} was changed by others {CHANGES_MAX} times; try again")

    async def _put(self, key: str, data: bytes, last_sequence: int) -> bool:
        """Writes a key whose last message is `last_sequence`, 0 for none; answers whether it still was."""
        headers = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {last_sequence}\r\n\r\n".encode()
        try:
            reply = await self._session.request(self._keys + key, data, TIMEOUT_S, headers)
        except (NoResponders, RequestTimeout, SessionLost) as error:
            raise StorageUnavailable(f"the definitions could not be reached: {error}") from error
        problem = decode_record(reply).get("error")
        if problem and problem.get("err_code") != WRONG_LAST_SEQUENCE:
            raise StorageUnavailable(f"{key} was not stored: {problem.get('description')}")
        return not problem
