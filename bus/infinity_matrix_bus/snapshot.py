"""Snapshots of single streams, by the server's own protocol: all messages with their sequences and times, in one file.

The server sends a snapshot in chunks and waits when 8 MiB of them are unacknowledged, so a slow disk slows it down; a
restore is chunks sent the other way, a few at a time. Consumers are not in it: all of ours are made again.
"""

import asyncio
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from infinity_matrix_actors.errors import StorageUnavailable

from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import decode_record
from infinity_matrix_bus.session import RequestTimeout, Session

CHUNK_BYTES = 128 * 1024
#: Chunks of a restore that are under way at once; each is confirmed.
CHUNKS_IN_FLIGHT_MAX = 16
#: The server checks all messages of a stream before it begins to send.
BEGIN_TIMEOUT_S = 300.0
#: A chunk, or the confirmation of one, comes within this time, or the transfer is over.
CHUNK_TIMEOUT_S = 30.0
#: The server reads a restored stream whole before it answers.
END_TIMEOUT_S = 300.0
_COMPLETE = b"NATS/1.0 204"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stream in a file: its config and state, as the server gave them, and the file's size and SHA-256."""

    stream: str
    config: dict[str, Any]
    state: dict[str, Any]
    bytes: int
    sha256: str


async def save_stream(session: Session, stream: str, path: Path) -> Snapshot:
    """Writes a stream into a new file, for this user only. The server refuses a stream that is damaged on its disk.

    Raises JetStreamError, StorageUnavailable, RequestTimeout, SessionLost, and OSError for what the file system says.
    """
    with _new_file(path) as file:
        receiver = _Receiver(session, stream, file)
        inbox = session.client.new_inbox()
        subscription = await session.subscribe(inbox, receiver.receive)
        session.when_lost(receiver.progress.set)
        try:
            body = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": CHUNK_BYTES, "jsck": True}
            answer = await JetStreamApi(session).call(f"STREAM.SNAPSHOT.{stream}", body, BEGIN_TIMEOUT_S)
            await receiver.wait()
        finally:
            session.not_when_lost(receiver.progress.set)
            await subscription.close()
    return Snapshot(stream, answer["config"], answer["state"], receiver.bytes, receiver.digest.hexdigest())


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


class _Receiver:
    """Takes the chunks of one snapshot into a file, and confirms each once it is written."""

    def __init__(self, session: Session, stream: str, file: BinaryIO) -> None:
        self._session = session
        self._stream = stream
        self._file = file
        self.bytes = 0
        self.digest = sha256()
        self.progress = asyncio.Event()
        self._is_complete = False
        self._problem: str | None = None

    def receive(self, subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        self.progress.set()
        if self._is_complete or self._problem is not None:
            return
        if data:
            try:
                self._file.write(data)
            except OSError as error:
                # Raised under the parser it would end the connection.
                self._problem = f"the file was not written: {error}"
                return
            self.digest.update(data)
            self.bytes += len(data)
            if reply:
                self._session.publish(reply, b"")
        elif headers is None or headers.startswith(_COMPLETE):
            self._is_complete = True
        else:
            self._problem = headers.partition(b"\r\n")[0].decode(errors="replace").removeprefix("NATS/1.0 ")

    async def wait(self) -> None:
        """Returns when everything is in the file."""
        while not self._is_complete:
            if self._problem is not None:
                raise StorageUnavailable(f"the snapshot of {self._stream} broke off: {self._problem}")
            if self._session.is_lost:
                raise StorageUnavailable(f"the connection was lost during the snapshot of {self._stream}")
            self.progress.clear()
            try:
                async with asyncio.timeout(CHUNK_TIMEOUT_S):
                    await self.progress.wait()
            except TimeoutError:
                raise RequestTimeout(
                    f"nothing more came of the snapshot of {self._stream} for {CHUNK_TIMEOUT_S:g} s"
                ) from None


async def load_stream(session: Session, snapshot: Snapshot, path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Makes a stream of a file, with this config; answers the stream's state.

    Raises JetStreamError where the stream exists or has no room, StorageUnavailable, RequestTimeout, SessionLost.
    """
    body = {"config": config, "state": snapshot.state}
    answer = await JetStreamApi(session).call(f"STREAM.RESTORE.{snapshot.stream}", body, BEGIN_TIMEOUT_S)
    subject = str(answer["deliver_subject"])
    sending = asyncio.Semaphore(CHUNKS_IN_FLIGHT_MAX)
    problems: list[str] = []

    def confirm(data: bytes | None, headers: bytes | None) -> None:
        if data is None:
            problems.append("the connection was lost")
        elif data or (headers is not None and headers.startswith(b"NATS/1.0 503")):
            problems.append(_complaint(data))
        sending.release()

    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            await _acquired(sending, snapshot.stream)
            if problems:
                break
            # In order: they go through one connection and one subject.
            session.request_with(subject, chunk, confirm)
    for _ in range(CHUNKS_IN_FLIGHT_MAX):
        await _acquired(sending, snapshot.stream)
    if problems:
        raise StorageUnavailable(f"the restore of {snapshot.stream} broke off: {problems[0]}")
    record = decode_record(await session.request(subject, b"", END_TIMEOUT_S))
    if record.get("error"):
        raise StorageUnavailable(f"{snapshot.stream} was not restored: {record['error'].get('description')}")
    state: dict[str, Any] = record["state"]
    return state


async def _acquired(sending: asyncio.Semaphore, stream: str) -> None:
    try:
        async with asyncio.timeout(CHUNK_TIMEOUT_S):
            await sending.acquire()
    except TimeoutError:
        raise RequestTimeout(f"the server confirmed nothing of {stream} for {CHUNK_TIMEOUT_S:g} s") from None


def _complaint(data: bytes) -> str:
    try:
        error = decode_record(data).get("error")
    except ValueError:
        error = None
    if isinstance(error, dict):
        return str(error.get("description"))
    return data.decode(errors="replace") or "the server takes no more of it"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex; raises OSError."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            digest.update(chunk)
    return digest.hexdigest()
