"""Backup and restore of an installation: what is precious of it, in a folder, while everything runs.

Streams are saved one after another, so the order matters. What points into the logs (schedules, checkpoints) goes
before them and what they name (definitions, artifacts) after: whatever the copy of a log says, the rest knows at least
that much, and nothing knows more. Work, status, log lines and dead letters are derived, and are left out.
"""

import asyncio
import datetime
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from infinity_matrix_actors.errors import BackupUnusable, RestoreRefused, StorageUnavailable

from infinity_matrix_bus.api import ELECTION_RETRY_S, STREAM_NOT_FOUND, JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import rfc3339
from infinity_matrix_bus.installation import SHARDS_MAX, Installation, mend_derived_streams
from infinity_matrix_bus.session import NoResponders, RequestTimeout, Session
from infinity_matrix_bus.snapshot import Snapshot, digest_of, load_stream, save_stream
from infinity_matrix_bus.subjects import Subjects

FORMAT = 1
MANIFEST = "manifest.json"
#: The durable consumer of events; what it has acknowledged by then is in the logs that are saved after.
EVENTS_CONSUMER = "im-triggers"
PING_TIMEOUT_S = 1.0
#: The server's error for a stream that is there already.
RESTORE_IN_PLACE = 10130
OVERWRITES_MAX = 5
#: A cluster on a busy machine may need so long until all has a leader.
ELECTION_S = 60.0
Answer = TypeVar("Answer")
_BEFORE_THE_LOGS = ("installation", "schedules", "checkpoints")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a backup. `taken_at` is in seconds since the epoch, when the first stream was saved."""

    prefix: str
    shards: int
    taken_at: float
    server_version: str
    streams: tuple[Snapshot, ...]
    #: The first event that no execution may have been started for yet; those before it are not restored.
    events_from: int = 1

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.streams)

    @property
    def messages(self) -> int:
        return sum(int(one.state["messages"]) for one in self.streams)

    def record(self) -> dict[str, Any]:
        """The form it has in its file."""
        taken_at = rfc3339(self.taken_at)
        streams = [{**asdict(one), "file": file_of(one.stream)} for one in self.streams]
        return {**asdict(self), "format": FORMAT, "taken_at": taken_at, "streams": streams}

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads a backup's manifest; raises BackupUnusable."""
        try:
            record = json.loads((folder / MANIFEST).read_bytes())
            if record["format"] != FORMAT:
                raise BackupUnusable(folder, f"its format is {record['format']}, this program knows {FORMAT}")
            streams = tuple(
                Snapshot(one["stream"], one["config"], one["state"], one["bytes"], one["sha256"])
                for one in record["streams"]
            )
            taken_at = datetime.datetime.fromisoformat(record["taken_at"]).timestamp()
            version, events_from = str(record["server_version"]), int(record["events_from"])
            manifest = cls(str(record["prefix"]), int(record["shards"]), taken_at, version, streams, events_from)
        except FileNotFoundError:
            raise BackupUnusable(folder, f"it has no {MANIFEST}: it is no backup, or one that broke off") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackupUnusable(folder, f"its {MANIFEST} cannot be read: {error}") from error
        manifest._check_whole(folder)
        return manifest

    def _check_whole(self, folder: Path) -> None:
        """Raises BackupUnusable when what no installation is without is not in it."""
        if not 1 <= self.shards <= SHARDS_MAX:
            raise BackupUnusable(folder, f"its {MANIFEST} says {self.shards} shards, they are 1 to {SHARDS_MAX}")
        subjects = Subjects(self.prefix)
        needed = [f"KV_{subjects.bucket('installation')}", *map(subjects.facts_stream, range(self.shards))]
        missing = set(needed) - {one.stream for one in self.streams}
        if missing:
            raise BackupUnusable(folder, f"its {MANIFEST} does not name {', '.join(sorted(missing))}")


def file_of(stream: str) -> str:
    """The name of the file a stream is saved in."""
    return f"{stream}.snapshot"


def precious_streams(subjects: Subjects, shards: int) -> list[str]:
    """The streams that are saved, in their order; one that does not exist yet is passed over."""
    return [
        *(f"KV_{subjects.bucket(name)}" for name in _BEFORE_THE_LOGS),
        *map(subjects.facts_stream, range(shards)),
        # An event is derived from nothing; and its number, from which ids follow, must not be given again.
        subjects.triggers_stream,
        f"KV_{subjects.bucket('definitions')}",
        subjects.artifacts_stream,
    ]


def derived_streams(subjects: Subjects) -> list[str]:
    """The streams that are not saved: what is lost of them is published again, or gone."""
    members = f"KV_{subjects.bucket('members')}"
    return [subjects.work_stream, subjects.status_stream, subjects.logs_stream, subjects.dead_stream, members]


async def back_up(
    session: Session,
    installation: Installation,
    folder: Path,
    on_stream: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Manifest:
    """Saves an installation into a folder that is new or empty; `on_stream` is told each stream that is saved.

    The files hold the installation's secret: only this user may read them. Nothing is left in the folder when it breaks
    off. Raises BackupUnusable, JetStreamError, StorageUnavailable, RequestTimeout, SessionLost.
    """
    subjects = installation.subjects()
    api = JetStreamApi(session)
    _make_folder(folder)
    saved: list[Snapshot] = []
    taken_at = datetime.datetime.now(datetime.UTC).timestamp()
    wanted = precious_streams(subjects, installation.shards)
    try:
        events_from = await _first_unhandled_event(api, subjects)
        there = {name async for name in api.paged("STREAM.NAMES", "streams")}
        for stream in wanted:
            if stream not in there:
                if stream in map(subjects.facts_stream, range(installation.shards)):
                    raise BackupUnusable(folder, f"the log {stream} is gone: there is nothing whole to save")
                continue
            saved.append(await save_stream(session, stream, folder / file_of(stream)))
            on_stream(saved[-1])
        version = str(session.client._server_info.get("version", ""))
        manifest = Manifest(installation.prefix, installation.shards, taken_at, version, tuple(saved), events_from)
        _write_manifest(folder, manifest)
    except BaseException as error:
        for stream in wanted:
            (folder / file_of(stream)).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BackupUnusable(folder, f"it cannot be written: {error}") from error
        raise
    return manifest


async def restore(
    session: Session,
    folder: Path,
    *,
    overwrites: bool = False,
    on_stream: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Manifest:
    """Makes the installation again that is saved in a folder, under its own prefix.

    Nothing is touched before every file was found to be whole. With `overwrites` what exists of the installation is
    deleted first, its queue of work too: work of attempts the restored log does not know would be done in vain, and
    its outcomes stand in the way of others. Raises BackupUnusable; RestoreRefused where something of it exists or a
    coordinator runs; JetStreamError, StorageUnavailable, RequestTimeout, SessionLost.
    """
    manifest = await asyncio.to_thread(_checked, folder)
    subjects = Subjects(manifest.prefix)
    api = JetStreamApi(session)
    ours = {*precious_streams(subjects, manifest.shards), *derived_streams(subjects)}
    ours |= {one.stream for one in manifest.streams}
    replicas = 3 if session.client._server_info.get("cluster") else 1
    there = sorted(await _elected(partial(_names, api), replicas) & ours)
    if not overwrites:
        if there:
            raise RestoreRefused(f"there is an installation {manifest.prefix!r} already: {', '.join(there)}")
        if await _has_coordinator(session, subjects):
            raise RestoreRefused("a coordinator runs here, and would go on from what it knows")
    for stream in there:
        await _delete(api, stream)
    for snapshot in _in_order_of_restore(manifest, subjects):
        config = {**snapshot.config, "num_replicas": replicas}
        load = partial(_load, session, api, snapshot, folder, config)
        await _elected(partial(_in_place_of, load, api, snapshot.stream) if overwrites else load, replicas)
        await _elected(partial(api.stream_info, snapshot.stream), replicas)
        if snapshot.stream == subjects.triggers_stream:
            await api.call(f"STREAM.PURGE.{snapshot.stream}", {"seq": manifest.events_from})
        on_stream(snapshot)
    await mend_derived_streams(session, Installation(manifest.prefix, manifest.shards))
    return manifest


async def _load(session: Session, api: JetStreamApi, snapshot: Snapshot, folder: Path, config: dict[str, Any]) -> None:
    try:
        await load_stream(session, snapshot, folder / file_of(snapshot.stream), config)
    except BaseException:
        # The server keeps as much of a stream as it could read.
        if not session.is_lost:
            await _delete(api, snapshot.stream)
        raise


async def _in_place_of(load: Callable[[], Awaitable[None]], api: JetStreamApi, stream: str) -> None:
    """Loads a stream although a coordinator that lives makes it again as soon as it is deleted."""
    for attempt in range(OVERWRITES_MAX):
        try:
            await load()
            return
        except JetStreamError as error:
            if error.code != RESTORE_IN_PLACE or attempt + 1 == OVERWRITES_MAX:
                raise
            await _delete(api, stream)


async def _names(api: JetStreamApi) -> set[str]:
    return {name async for name in api.paged("STREAM.NAMES", "streams")}


async def _elected(ask: Callable[[], Awaitable[Answer]], replicas: int) -> Answer:
    """What `ask` answers, once there is a leader: a cluster that is new, or a stream in it, has none for seconds.

    On one server it is asked once.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + (ELECTION_S if replicas > 1 else 0.0)
    while True:
        try:
            return await ask()
        except (RequestTimeout, StorageUnavailable):
            if loop.time() > ends_at:
                raise
            await asyncio.sleep(ELECTION_RETRY_S)


def _in_order_of_restore(manifest: Manifest, subjects: Subjects) -> list[Snapshot]:
    """The installation first and the logs last: a coordinator that starts meanwhile finds a log gone, and refuses."""
    logs = {subjects.facts_stream(shard) for shard in range(manifest.shards)}
    return sorted(manifest.streams, key=lambda one: one.stream in logs)


def _checked(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    for one in manifest.streams:
        path = folder / file_of(one.stream)
        try:
            digest = digest_of(path)
        except OSError as error:
            raise BackupUnusable(folder, f"{path.name} cannot be read: {error}") from error
        if digest != one.sha256:
            raise BackupUnusable(folder, f"{path.name} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return manifest


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BackupUnusable(folder, "it is not empty")
    except OSError as error:
        raise BackupUnusable(folder, f"it cannot be made: {error}") from error


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    # Last, and whole or not at all: without it a folder is no backup.
    draft = folder / f".{MANIFEST}"
    draft.write_text(json.dumps(manifest.record(), indent=2) + "\n")
    draft.replace(folder / MANIFEST)


async def _first_unhandled_event(api: JetStreamApi, subjects: Subjects) -> int:
    try:
        info = await api.consumer_info(subjects.triggers_stream, EVENTS_CONSUMER)
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        return 1
    return 1 if info is None else int(info["ack_floor"]["stream_seq"]) + 1


async def _has_coordinator(session: Session, subjects: Subjects) -> bool:
    try:
        await session.request(subjects.api("ping"), b"", PING_TIMEOUT_S)
    except NoResponders:
        return False
    except RequestTimeout:
        # Somebody subscribes, and is busy or frozen.
        return True
    return True


async def _delete(api: JetStreamApi, stream: str) -> None:
    try:
        await api.call(f"STREAM.DELETE.{stream}")
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
