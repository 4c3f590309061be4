"""Making an installation on a real server: who is first decides, and the streams are what the design says."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bus_world import connected
from infinity_matrix_actors.errors import NotInstalled, StorageUnavailable
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.installation import (
    SECRET_BYTES,
    Installation,
    install,
    mend_derived_streams,
    read_installation,
    still_stands,
)
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session
from infinity_matrix_bus.streams import stream_configs
from infinity_matrix_bus.subjects import Subjects

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


async def config_of(session: Session, stream: str) -> dict[str, Any]:
    info = await JetStreamApi(session).stream_info(stream)
    assert info is not None, stream
    config: dict[str, Any] = info["config"]
    return config


async def names(session: Session) -> set[str]:
    return {name async for name in JetStreamApi(session).paged("STREAM.NAMES", "streams")}


async def test_who_installs_at_once_agrees(server: EmbeddedServer) -> None:
    sessions = [await Session.connect(Endpoint(server.connect_url)) for _ in range(4)]
    try:
        installed = await asyncio.gather(
            *(install(session, shards=number + 2) for number, session in enumerate(sessions))
        )
        assert len({(each.prefix, each.shards, each.secret) for each in installed}) == 1
        assert len(installed[0].secret) == SECRET_BYTES
        shards = installed[0].shards
        facts = {name for name in await names(sessions[0]) if name.startswith("IM_FACTS_")}
        assert facts == {f"IM_FACTS_{shard}" for shard in range(shards)}
    finally:
        await asyncio.gather(*(session.close() for session in sessions))


async def test_an_installation_stands_until_it_is_another_or_gone(session: Session) -> None:
    installation = await install(session, shards=2)
    assert await still_stands(session, installation)
    assert not await still_stands(session, replace(installation, secret=bytes(SECRET_BYTES)))
    assert not await still_stands(session, replace(installation, shards=3))
    assert not await still_stands(session, replace(installation, prefix="other"))
    await JetStreamApi(session).purge("KV_IM_INSTALLATION", "$KV.IM_INSTALLATION.installed")
    assert not await still_stands(session, installation)


async def test_the_number_of_shards_is_fixed_by_the_first(session: Session) -> None:
    first = await install(session, shards=3)
    assert first.shards == 3
    before = await names(session)
    assert await install(session, shards=7) == first
    assert await names(session) == before
    assert (await read_installation(session)).shards == 3


@pytest.mark.parametrize("shards", [0, -1, 1025])
async def test_a_number_of_shards_out_of_range_is_refused_and_nothing_is_made(session: Session, shards: int) -> None:
    with pytest.raises(ValueError, match="it must be 1 to 1024"):
        await install(session, shards=shards)
    assert not await names(session)


async def test_only_who_asks_for_the_secret_has_it_and_it_is_not_shown(session: Session) -> None:
    installed = await install(session, shards=1)
    assert (await read_installation(session)).secret == b""
    assert (await read_installation(session, with_secret=True)).secret == installed.secret
    assert repr(installed) == "Installation(prefix='im', shards=1)"


async def test_what_was_agreed_is_not_written_over(session: Session) -> None:
    installed = await install(session)
    for headers in (
        {},
        {"Nats-Rollup": "sub"},
        {"KV-Operation": "DEL"},
        {"KV-Operation": "PURGE", "Nats-Rollup": "sub"},
    ):
        message = await session.client.request("$KV.IM_INSTALLATION.secret", b"zz", timeout=5.0, headers=headers)
        assert b"error" in message.data
    assert await read_installation(session, with_secret=True) == installed


async def test_a_secret_that_is_none_is_said(session: Session) -> None:
    await install(session)
    api = JetStreamApi(session)
    await api.purge("KV_IM_INSTALLATION", "$KV.IM_INSTALLATION.secret")
    await session.client.request("$KV.IM_INSTALLATION.secret", b"zz", timeout=5.0)
    with pytest.raises(StorageUnavailable, match="no hexadecimal"):
        await read_installation(session, with_secret=True)


async def test_a_secret_in_the_environment_overrides_the_stored_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = await install(session, shards=1)
    monkeypatch.setenv("IM_SECRET", "chosen")
    assert (await install(session)).secret == b"chosen"
    assert (await read_installation(session, with_secret=True)).secret == b"chosen"
    # Longer than a key may be: hashed, so that capabilities can be made with it.
    monkeypatch.setenv("IM_SECRET", "long" * 50)
    assert len((await install(session)).subjects().capability("im.fact.0.a")) == 16
    monkeypatch.setenv("IM_SECRET", "")
    assert (await read_installation(session, with_secret=True)).secret == installed.secret


async def test_two_installations_share_a_server(session: Session) -> None:
    first = await install(session, shards=1)
    second = await install(session, "other", shards=2)
    assert first.secret != second.secret
    assert {"IM_FACTS_0", "OTHER_FACTS_0", "OTHER_FACTS_1"} <= await names(session)
    assert (await read_installation(session, "other")).shards == 2


async def test_without_an_installation_that_is_said_and_no_secret_is_shown(
    server: EmbeddedServer, session: Session
) -> None:
    with pytest.raises(NotInstalled) as caught:
        await read_installation(session)
    assert server.url in str(caught.value)
    assert server.token not in str(caught.value)
    await install(session, shards=1)
    with pytest.raises(NotInstalled, match="'other'"):
        await read_installation(session, "other")


async def test_a_server_that_stops_answering_is_storage_that_is_unavailable(
    server: EmbeddedServer, session: Session
) -> None:
    await install(session, shards=1)
    await server.kill()
    with pytest.raises(StorageUnavailable):
        await read_installation(session)
    with pytest.raises(StorageUnavailable):
        await install(session)


async def test_an_installation_outlives_the_server(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        installed = await install(connection.session, shards=2)
        await server.kill()
        await server.start()
        assert await read_installation(await connection.connected(5), with_secret=True) == installed


async def test_the_logs_accept_one_message_a_subject_and_sync_each(session: Session) -> None:
    await install(session, shards=3)
    for shard in range(3):
        config = await config_of(session, f"IM_FACTS_{shard}")
        assert config["subjects"] == [f"im.fact.{shard}.>"]
        assert config["retention"] == "limits"
        assert config["storage"] == "file"
        assert config["num_replicas"] == 1
        assert config["max_msgs_per_subject"] == 1
        assert config["discard"] == "new"
        assert config["discard_new_per_subject"] is True
        assert config["max_age"] == 7 * DAY
        assert config["duplicate_window"] == SECOND // 10
        assert config["allow_direct"] is True
        # The log is never persisted later than it is acknowledged.
        assert "persist_mode" not in config


async def test_work_is_a_write_once_queue_that_remembers_ids_for_two_minutes(session: Session) -> None:
    await install(session, shards=1)
    config = await config_of(session, "IM_WORK")
    assert config["subjects"] == ["im.work.>"]
    assert config["retention"] == "workqueue"
    assert config["max_msgs_per_subject"] == 1
    assert config["discard"] == "new"
    assert config["discard_new_per_subject"] is True
    assert config["duplicate_window"] == 120 * SECOND
    assert config["persist_mode"] == "async"


@pytest.mark.parametrize(
    ("stream", "subject", "days", "is_derived"),
    [
        ("IM_STATUS", "im.status.>", 1, True),
        ("IM_LOGS", "im.logs.>", 3, True),
        ("IM_DEAD", "im.dead.>", 30, True),
        ("IM_TRIGGERS", "im.trigger.>", 1, False),
    ],
)
async def test_the_other_streams_forget_the_oldest(
    session: Session, stream: str, subject: str, days: int, is_derived: bool
) -> None:
    await install(session, shards=1)
    config = await config_of(session, stream)
    assert config["subjects"] == [subject]
    assert config["retention"] == "limits"
    assert config["discard"] == "old"
    assert config["max_age"] == days * DAY
    assert config.get("persist_mode") == ("async" if is_derived else None)
    if stream == "IM_TRIGGERS":
        assert config["duplicate_window"] == 600 * SECOND


async def test_every_stream_has_limits_and_none_lets_a_writer_rewrite(session: Session) -> None:
    await install(session, shards=2)
    reserved = 0
    streams = {name for name in await names(session) if not name.startswith("KV_")}
    assert len(streams) == 2 + 6
    for name in streams:
        config = await config_of(session, name)
        assert config["max_bytes"] > 0
        assert config["max_consumers"] >= 10_000
        assert not config.get("allow_rollup_hdrs")
        assert not config.get("allow_msg_schedules")
        reserved += config["max_bytes"]
    assert reserved <= 0.8 * 8 * 1024**3


async def test_the_buckets_are_there_and_members_expire(session: Session) -> None:
    await install(session, shards=1)
    for bucket in ("INSTALLATION", "DEFINITIONS", "SCHEDULES", "CHECKPOINTS"):
        assert (await config_of(session, f"KV_IM_{bucket}"))["max_age"] == 0
    assert (await config_of(session, "KV_IM_MEMBERS"))["max_age"] == 5 * SECOND


def test_in_a_cluster_all_is_replicated_and_nothing_is_persisted_late() -> None:
    for config in stream_configs(Subjects(), 2, 3, 1024**3):
        assert config["num_replicas"] == 3
        assert "persist_mode" not in config


async def test_a_small_server_is_installed_on_within_its_room(tmp_path: Path) -> None:
    async with (
        EmbeddedServer(tmp_path / "store", sync="lazy", max_file_store_bytes=1024**3) as server,
        connected(server) as connection,
    ):
        session = connection.session
        installed = await install(session, shards=4)
        streams = {name for name in await names(session) if not name.startswith("KV_")}
        assert len(streams) == 4 + 6
        sizes = [(await config_of(session, f"IM_FACTS_{shard}"))["max_bytes"] for shard in range(4)]
        assert len(set(sizes)) == 1
        assert sum(sizes) >= 0.2 * 1024**3
        # Again, and what is mended later, in the same proportions.
        size = (await config_of(session, "IM_LOGS"))["max_bytes"]
        await JetStreamApi(session).call("STREAM.DELETE.IM_LOGS")
        await mend_derived_streams(session, installed)
        assert (await config_of(session, "IM_LOGS"))["max_bytes"] == pytest.approx(size, rel=0.01)
        assert await install(session) == installed


async def test_a_reservation_left_by_an_installer_that_broke_off_is_cleared(session: Session) -> None:
    left = {"name": "IM_PROBE", "subjects": ["im.probe"], "storage": "file", "max_bytes": 1_000_000}
    await JetStreamApi(session).create_stream(left)
    await install(session, shards=1)
    assert "IM_PROBE" not in await names(session)


async def test_derived_streams_are_mended_and_the_log_is_not(session: Session) -> None:
    installed = await install(session, shards=2)
    for name in ("IM_WORK", "IM_STATUS", "IM_FACTS_1"):
        await JetStreamApi(session).call(f"STREAM.DELETE.{name}")
    await mend_derived_streams(session, installed)
    assert {"IM_WORK", "IM_STATUS"} <= await names(session)
    assert "IM_FACTS_1" not in await names(session)


async def test_a_stream_that_its_operator_changed_is_left_so(session: Session) -> None:
    await install(session, shards=1)
    config = await config_of(session, "IM_LOGS")
    await JetStreamApi(session).update_stream({**config, "max_age": DAY})
    await install(session)
    assert (await config_of(session, "IM_LOGS"))["max_age"] == DAY


def test_an_installation_is_what_was_agreed() -> None:
    assert Installation("im", 2).subjects().prefix == "im"
