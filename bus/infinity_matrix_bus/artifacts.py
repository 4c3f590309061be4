"""The store of artifacts: values too large for a message, by the hash of their JSON, in NATS' own object-store format.

`nats object ls|info|get IM_ARTIFACTS` reads it as well. An artifact is stored before the fact that names it and travels
as a reference: `{"$artifact": {"name": "<sha256>", "bytes": n}}`. What is read is checked against its name, so nobody
can put another value in its place. Rollups are denied, as on every stream that agents write to: one header could purge
it all.
"""

import asyncio
import base64
import datetime
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from weakref import WeakValueDictionary

from infinity_matrix_actors.errors import ArtifactMissing, PayloadTooLarge, StorageUnavailable

from infinity_matrix_bus.api import NO_MESSAGE, JetStreamApi, JetStreamError, StoredMessage
from infinity_matrix_bus.artifact_chunks import ChunkReader, ChunkWriter
from infinity_matrix_bus.codec import Undecodable, decode, decode_record, encode, parse_server_time
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.session import NoResponders, RequestTimeout, Session, SessionLost
from infinity_matrix_bus.streams import ARTIFACT_REUSED_S
from infinity_matrix_bus.subjects import Subjects

#: A value whose JSON is larger travels as a reference.
OFFLOAD_BYTES = 256 * 1024
ARTIFACT_BYTES_MAX = 64 * 1024 * 1024
#: Of the artifacts read last, as bytes, that one store keeps: a wide fork reads the same one again and again.
ARTIFACT_CACHE_BYTES_MAX = 64 * 1024 * 1024
#: What the format's own clients use.
CHUNK_BYTES = 128 * 1024
TIMEOUT_S = 5.0
#: The server's error for a key that somebody else has written meanwhile.
WRONG_LAST_SEQUENCE = 10071
#: Readers of a replicated bucket may ask a server that has not seen all chunks yet.
READS_MAX = 5
READ_AGAIN_S = 0.1
#: The key of a reference, also as it stands in JSON and in msgpack.
_KEY = "$artifact"
MARK = _KEY.encode()
_NAME = re.compile(r"[0-9a-f]{64}")
_LOSSES = (JetStreamError, NoResponders, RequestTimeout, SessionLost)

#: Where a store finds the session of now; may wait, and raise Unreachable or SessionLost.
Sessions = Callable[[], Awaitable[Session]]


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is known of a stored artifact; `stored_at` is in seconds since the epoch."""

    name: str
    bytes: int
    stored_at: float


def is_reference(value: Any) -> bool:
    """Whether a value stands for an artifact: exactly `{"$artifact": {"name": <64 hex digits>, "bytes": <number>}}`."""
    if type(value) is not dict or len(value) != 1:
        return False
    target = value.get(_KEY)
    return (
        isinstance(target, dict)
        and isinstance(target.get("name"), str)
        and _NAME.fullmatch(target["name"]) is not None
        and type(target.get("bytes")) is int
        and target["bytes"] >= 0
    )


def reference_to(name: str, size_bytes: int) -> dict[str, Any]:
    return {_KEY: {"name": name, "bytes": size_bytes}}


def target_of(reference: dict[str, Any]) -> tuple[str, int]:
    """(name, bytes) of a reference."""
    target = reference[_KEY]
    return target["name"], target["bytes"]


class ArtifactStore:
    """The artifacts of one installation. `sessions` answers the session to use; every call here has a deadline."""

    def __init__(
        self, sessions: Sessions, subjects: Subjects, *, cache_bytes_max: int = ARTIFACT_CACHE_BYTES_MAX
    ) -> None:
        self._sessions = sessions
        self._bucket = subjects.bucket("artifacts")
        self._stream = subjects.artifacts_stream
        self._subjects = subjects
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cache_bytes_max = cache_bytes_max
        self._cached_bytes = 0
        #: So that a thousand who want the same artifact fetch it once.
        self._reading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put_json(self, value: Any, what: str = "the value") -> dict[str, Any]:
        """Stores the JSON of a value and answers its reference; `put` for what it raises, and PayloadNotEncodable."""
        return await self.put(encode(value, what, ARTIFACT_BYTES_MAX), what)

    async def put(self, data: bytes, what: str = "the value") -> dict[str, Any]:
        """Stores the bytes of a JSON value unless they are there, and answers their reference.

        Raises PayloadTooLarge above 64 MiB, and StorageUnavailable: storing the same again is harmless.
        """
        if len(data) > ARTIFACT_BYTES_MAX:
            raise PayloadTooLarge(what, len(data), ARTIFACT_BYTES_MAX)
        digest = sha256(data)
        name = digest.hexdigest()
        session = await self._sessions()
        try:
            known = await self._meta(session, name)
            if known is None or _is_old(known):
                await self._upload(session, name, data, digest.digest(), known.sequence if known else 0)
        except _LOSSES as error:
            raise StorageUnavailable(f"{what} was not stored as an artifact: {error}") from error
        self._keep(name, data)
        return reference_to(name, len(data))

    async def get_json(self, reference: dict[str, Any]) -> Any:
        """The value a reference stands for, made anew at each call; raises as `get` does."""
        data = await self.get(reference)
        try:
            return decode(data)
        except Undecodable as error:
            raise ArtifactMissing(target_of(reference)[0], f"it is no JSON: {error}") from error

    async def get(self, reference: dict[str, Any]) -> bytes:
        """The bytes a reference stands for; raises ArtifactMissing, StorageUnavailable."""
        name, _ = target_of(reference)
        lock = self._reading.get(name)
        if lock is None:
            lock = self._reading[name] = asyncio.Lock()
        async with lock:
            data = self._cache.get(name)
            if data is not None:
                self._cache.move_to_end(name)
                return data
            data = await self._download(name)
            self._keep(name, data)
            return data

    async def list(self) -> list[Artifact]:
        """All artifacts, newest first; raises StorageUnavailable."""
        pattern = self._subjects.artifact_meta(">")
        try:
            entries = await read_all(await self._sessions(), self._stream, (pattern,))
        except _LOSSES as error:
            raise StorageUnavailable(f"the artifacts could not be listed: {error}") from error
        # Of one that was stored again the last counts.
        found: dict[str, Artifact] = {}
        for entry in entries:
            info = _read_info(entry.data)
            if info is not None:
                found[info.name] = Artifact(info.name, info.bytes, entry.at)
        return sorted(found.values(), key=lambda artifact: artifact.stored_at, reverse=True)

    async def _meta(self, session: Session, name: str) -> StoredMessage | None:
        # By a leader read: what was stored before a fact that names it is there for whoever has read the fact.
        return await JetStreamApi(session).last_message(self._stream, self._meta_subject(name))

    def _meta_subject(self, name: str) -> str:
        return self._subjects.artifact_meta(base64.urlsafe_b64encode(name.encode()).decode())

    async def _upload(self, session: Session, name: str, data: bytes, digest: bytes, replaces: int) -> None:
        """Chunks first, on a subject of their own, and then the record that makes them an artifact."""
        chunk_bytes = min(CHUNK_BYTES, session.max_payload_bytes)
        nuid = session.client._nuid.next().decode()
        subject = self._subjects.artifact_chunks(nuid)
        info = {
            "name": name,
            "bucket": self._bucket,
            "nuid": nuid,
            "size": len(data),
            "chunks": -(-len(data) // chunk_bytes),
            "digest": f"SHA-256={base64.urlsafe_b64encode(digest).decode()}",
            "mtime": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "options": {"max_chunk_size": chunk_bytes},
        }
        try:
            await ChunkWriter(session, subject).write(data, chunk_bytes)
            headers = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {replaces}\r\n\r\n".encode()
            reply = decode_record(await session.request(self._meta_subject(name), encode(info), TIMEOUT_S, headers))
            problem = reply.get("error")
        except BaseException:
            await self._drop(session, subject)
            raise
        if problem:
            await self._drop(session, subject)
            # Else another was quicker: by its name it is the same.
            if problem.get("err_code") != WRONG_LAST_SEQUENCE:
                raise JetStreamError(subject, int(problem.get("err_code", 0)), str(problem.get("description")))

    async def _drop(self, session: Session, subject: str) -> None:
        """Takes chunks away that belong to nothing, if it can: what is left goes with its age."""
        if session.is_lost:
            return
        try:
            await JetStreamApi(session).purge(self._stream, subject)
        except _LOSSES:
            return

    async def _download(self, name: str) -> bytes:
        problem = ""
        for _ in range(READS_MAX):
            session = await self._sessions()
            try:
                stored = await self._meta(session, name)
                info = _read_info(stored.data) if stored is not None else None
                if info is None:
                    raise ArtifactMissing(name, "it is not stored")
                if info.bytes > ARTIFACT_BYTES_MAX:
                    raise ArtifactMissing(name, f"it is larger than {ARTIFACT_BYTES_MAX} bytes")
                data = await ChunkReader(session, self._stream, self._subjects.artifact_chunks(info.nuid)).read(
                    info.bytes
                )
            except JetStreamError as error:
                if error.code != NO_MESSAGE:
                    raise StorageUnavailable(f"the artifact {name} could not be read: {error}") from error
                data = b""
            except _LOSSES as error:
                raise StorageUnavailable(f"the artifact {name} could not be read: {error}") from error
            if sha256(data).hexdigest() == name:
                return data
            problem = f"{len(data)} of its {info.bytes} bytes are there" if info else "it is not stored"
            await asyncio.sleep(READ_AGAIN_S)
        raise ArtifactMissing(name, f"{problem}, or they are others")

    def _keep(self, name: str, data: bytes) -> None:
        if name in self._cache or len(data) > self._cache_bytes_max:
            return
        self._cache[name] = data
        self._cached_bytes += len(data)
        while self._cached_bytes > self._cache_bytes_max:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= len(oldest)


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    bytes: int
    nuid: str


def _read_info(data: bytes) -> _Info | None:
    """What an object's record says; None for garbage, and for an object that was deleted."""
    try:
        record = decode_record(data)
        if record.get("deleted") is True:
            return None
        info = _Info(str(record["name"]), int(record["size"]), str(record["nuid"]))
    except (Undecodable, KeyError, TypeError, ValueError):
        return None
    return info if _NAME.fullmatch(info.name) and info.nuid.isalnum() and info.bytes >= 0 else None


def _is_old(meta: StoredMessage) -> bool:
    """Whether it would go before a log that names it from now on; also when it is no artifact."""
    if _read_info(meta.data) is None:
        return True
    return datetime.datetime.now(datetime.UTC).timestamp() - parse_server_time(meta.at) > ARTIFACT_REUSED_S
