"""Backup and restore, against the real server: what is saved comes back as it was, and nothing is overwritten."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from infinity_matrix_actors.errors import BackupUnusable, RestoreRefused, StorageUnavailable
from infinity_matrix_bus import backup as backup_module
from infinity_matrix_bus import snapshot as snapshot_module
from infinity_matrix_bus.api import JetStreamApi, JetStreamError
from infinity_matrix_bus.backup import MANIFEST, Manifest, back_up, derived_streams, precious_streams, restore
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.installation import Installation, install, read_installation
from infinity_matrix_bus.log_reader import Entry
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, RequestTimeout, Session
from infinity_matrix_bus.snapshot import CHUNK_BYTES, CHUNKS_IN_FLIGHT_MAX, load_stream, save_stream

CHUNKS = CHUNKS_IN_FLIGHT_MAX * 5
LOG = "IM_FACTS_0"


@asynccontextmanager
async def another_server(folder: Path) -> AsyncIterator[Session]:
    """A session to a server with nothing on it."""
    async with EmbeddedServer(folder / "another", sync="lazy") as server:
        session = await Session.connect(Endpoint(server.connect_url))
        try:
            yield session
        finally:
            await session.close()


async def installed(session: Session) -> Installation:
    """An installation with a few messages in its precious streams and its queue."""
    await install(session, shards=2)
    installation = await read_installation(session, with_secret=True)
    subjects = installation.subjects()
    for shard in range(2):
        for number in range(20):
            await session.request(subjects.started(shard, f"e{number}"), b"{}")
    await session.request("$KV.IM_DEFINITIONS.hash.abc", b"definition")
    await session.request(subjects.work("worker", "e1", "only", 1), b"{}")
    return installation


async def contents(session: Session, stream: str) -> list[Entry]:
    return await read_all(session, stream, ())


async def names(session: Session) -> set[str]:
    return {name async for name in JetStreamApi(session).paged("STREAM.NAMES", "streams")}


async def test_every_stream_of_an_installation_is_either_precious_or_derived(session: Session) -> None:
    installation = await install(session, shards=2)
    subjects = installation.subjects()
    precious, derived = precious_streams(subjects, 2), derived_streams(subjects)
    assert not set(precious) & set(derived)
    assert await names(session) == {*precious, *derived}


async def test_an_installation_comes_back_on_another_server_as_it_was(session: Session, tmp_path: Path) -> None:
    installation = await installed(session)
    manifest = await back_up(session, installation, tmp_path / "backup")
    assert Manifest.read(tmp_path / "backup") == manifest
    assert sum(path.stat().st_size for path in (tmp_path / "backup").glob("*.snapshot")) == manifest.bytes
    assert {oct(path.stat().st_mode & 0o077) for path in (tmp_path / "backup").glob("*.snapshot")} == {"0o0"}
    async with another_server(tmp_path) as other:
        assert await restore(other, tmp_path / "backup") == manifest
        assert await read_installation(other, with_secret=True) == installation
        for stream in precious_streams(installation.subjects(), 2):
            assert await contents(other, stream) == await contents(session, stream)
        assert {"IM_WORK", "IM_STATUS", "IM_LOGS", "IM_DEAD"} < await names(other)
        api = JetStreamApi(other)
        assert (await api.call("STREAM.INFO.IM_WORK"))["state"]["messages"] == 0
        # The log goes on where it was, and takes no fact twice.
        assert json.loads(await other.request("im.fact.0.e21.started", b"{}"))["seq"] == 21
        assert json.loads(await other.request("im.fact.0.e1.started", b"{}"))["error"]["err_code"] == 10077


async def test_nothing_is_overwritten_unless_that_is_wanted(session: Session, tmp_path: Path) -> None:
    installation = await installed(session)
    await back_up(session, installation, tmp_path / "backup")
    before = await contents(session, LOG)
    await session.request("im.fact.0.later.started", b"{}")
    with pytest.raises(RestoreRefused, match="IM_FACTS_0"):
        await restore(session, tmp_path / "backup")
    assert len(await contents(session, LOG)) == len(before) + 1
    await restore(session, tmp_path / "backup", overwrites=True)
    assert await contents(session, LOG) == before
    # Work of attempts that the restored log does not know is gone, too.
    assert (await JetStreamApi(session).call("STREAM.INFO.IM_WORK"))["state"]["messages"] == 0


async def test_nothing_is_restored_beside_a_coordinator(session: Session, tmp_path: Path) -> None:
    await back_up(session, await installed(session), tmp_path / "backup")
    async with another_server(tmp_path) as other:
        ping = await other.subscribe("im.api.ping", lambda subject, reply, data, headers: other.publish(reply, b"{}"))
        with pytest.raises(RestoreRefused, match="coordinator"):
            await restore(other, tmp_path / "backup")
        assert await names(other) == set()
        await ping.close()
        await restore(other, tmp_path / "backup")


async def test_a_damaged_file_is_found_before_anything_is_touched(session: Session, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    await back_up(session, await installed(session), folder)
    path = folder / f"{LOG}.snapshot"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BackupUnusable, match=r"IM_FACTS_0\.snapshot is damaged"):
        await restore(session, folder, overwrites=True)
    path.unlink()
    with pytest.raises(BackupUnusable, match=r"IM_FACTS_0\.snapshot cannot be read"):
        await restore(session, folder, overwrites=True)
    assert len(await contents(session, LOG)) == 20


async def test_a_folder_without_a_whole_manifest_is_no_backup(session: Session, tmp_path: Path) -> None:
    with pytest.raises(BackupUnusable, match="no backup, or one that broke off"):
        await restore(session, tmp_path)
    for text in ("", "[]", '{"format": 2}', '{"format": 1}'):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(BackupUnusable):
            await restore(session, tmp_path)


async def test_a_manifest_that_names_not_every_log_is_none(session: Session, tmp_path: Path) -> None:
    await back_up(session, await installed(session), tmp_path / "backup")
    path = tmp_path / "backup" / MANIFEST
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "streams": [one for one in whole["streams"] if one["stream"] != LOG]}))
    with pytest.raises(BackupUnusable, match=f"does not name {LOG}"):
        await restore(session, tmp_path / "backup", overwrites=True)
    path.write_text(json.dumps({**whole, "shards": 100_000_000}))
    with pytest.raises(BackupUnusable, match="100000000 shards"):
        await restore(session, tmp_path / "backup", overwrites=True)
    assert LOG in await names(session)


async def test_a_backup_needs_an_empty_folder_and_leaves_it_empty_when_it_fails(
    session: Session, tmp_path: Path
) -> None:
    installation = await installed(session)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note").write_text("mine")
    with pytest.raises(BackupUnusable, match="not empty"):
        await back_up(session, installation, tmp_path / "taken")
    await JetStreamApi(session).call("STREAM.DELETE.IM_FACTS_1")
    with pytest.raises(BackupUnusable, match="IM_FACTS_1 is gone"):
        await back_up(session, installation, tmp_path / "backup")
    assert list((tmp_path / "backup").iterdir()) == []


async def test_a_stream_of_many_chunks_comes_back_whole(session: Session, tmp_path: Path) -> None:
    api = JetStreamApi(session)
    await api.create_stream({"name": "LARGE", "subjects": ["large.>"], "storage": "file"})
    noise = random.Random(1)
    count = CHUNKS * CHUNK_BYTES // 400_000
    for number in range(count):
        # Random, because a snapshot is compressed.
        await session.request(f"large.{number}", noise.randbytes(400_000))
    await api.call("STREAM.MSG.DELETE.LARGE", {"seq": 3})
    before = await contents(session, "LARGE")
    snapshot = await save_stream(session, "LARGE", tmp_path / "large")
    assert snapshot.bytes > (CHUNKS - 5) * CHUNK_BYTES
    with pytest.raises(JetStreamError, match="already in use"):
        await load_stream(session, snapshot, tmp_path / "large", snapshot.config)
    await api.call("STREAM.DELETE.LARGE")
    state = await load_stream(session, snapshot, tmp_path / "large", snapshot.config)
    assert (state["messages"], state["last_seq"]) == (count - 1, count)
    assert await contents(session, "LARGE") == before


async def test_a_restore_that_fails_leaves_no_half_of_a_log(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = await installed(session)
    folder = tmp_path / "backup"
    await back_up(session, installation, folder)
    path = folder / f"{LOG}.snapshot"
    # Cut off after it was checked: the server would keep what it could read.
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.setattr(backup_module, "_checked", Manifest.read)
    with pytest.raises(StorageUnavailable, match="IM_FACTS_0 was not restored"):
        await restore(session, folder, overwrites=True)
    assert LOG not in await names(session)
    assert "KV_IM_INSTALLATION" in await names(session)
    # What is there of it keeps a coordinator from making an empty log in its place.
    with pytest.raises(StorageUnavailable, match=r"IM_FACTS_0.*restore it from a backup"):
        await install(session)


async def test_a_transfer_that_stops_or_loses_its_connection_is_noticed(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installed(session)
    monkeypatch.setattr(snapshot_module, "CHUNK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(snapshot_module._Receiver, "receive", lambda self, *message: None)
    with pytest.raises(RequestTimeout, match="nothing more came of the snapshot"):
        await save_stream(session, LOG, tmp_path / "silent")
    monkeypatch.setattr(snapshot_module._Receiver, "receive", lambda self, *message: self._session.give_up("cut"))
    with pytest.raises(StorageUnavailable, match="the connection was lost"):
        await save_stream(session, LOG, tmp_path / "lost")


async def test_events_that_nobody_handled_come_back_and_those_handled_do_not(session: Session, tmp_path: Path) -> None:
    installation = await installed(session)
    api = JetStreamApi(session)
    config = {"durable_name": "im-triggers", "ack_policy": "explicit", "deliver_policy": "all"}
    await api.create_consumer("IM_TRIGGERS", "im-triggers", config)
    numbers = [json.loads(await session.request(f"im.trigger.order.{number}", b"{}"))["seq"] for number in range(5)]
    js = session.client.jetstream()
    pull = await js.pull_subscribe_bind("im-triggers", "IM_TRIGGERS")
    for message in await pull.fetch(2, timeout=2.0):
        await message.ack_sync()
    manifest = await back_up(session, installation, tmp_path / "backup")
    assert manifest.events_from == numbers[2]
    await restore(session, tmp_path / "backup", overwrites=True)
    events = await contents(session, "IM_TRIGGERS")
    assert [event.sequence for event in events] == numbers[2:]
    # A new event has a number that no execution's id was made of.
    assert json.loads(await session.request("im.trigger.order.6", b"{}"))["seq"] == numbers[-1] + 1
