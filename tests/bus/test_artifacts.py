"""The store of artifacts on a real server: what is stored comes back, once, whole, or not at all."""

import asyncio
import os
from typing import Any

import pytest
from bus_world import messages_in
from infinity_matrix_actors.errors import ArtifactMissing, PayloadNotEncodable, PayloadTooLarge, StorageUnavailable
from infinity_matrix_bus import artifacts
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import (
    ARTIFACT_BYTES_MAX,
    ArtifactStore,
    is_reference,
    reference_to,
    target_of,
)
from infinity_matrix_bus.codec import decode_record, encode
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

STREAM = "OBJ_IM_ARTIFACTS"


@pytest.fixture
async def installed(session: Session) -> Session:
    await install(session, shards=1)
    return session


def store_on(session: Session, **options: Any) -> ArtifactStore:
    async def now() -> Session:
        return session

    return ArtifactStore(now, Subjects(), **options)


def large(size_bytes: int = 300_000) -> dict[str, str]:
    return {"text": os.urandom(size_bytes // 2).hex()}


@pytest.mark.parametrize("size_bytes", [10, 300_000, 20_000_000])
async def test_a_value_comes_back(installed: Session, size_bytes: int) -> None:
    value = {"text": os.urandom(size_bytes // 2).hex(), "list": [1, 2.5, None, "ü"]}
    reference = await store_on(installed).put_json(value)
    assert is_reference(reference)
    assert await store_on(installed).get_json(reference) == value


async def test_any_client_of_the_object_store_reads_it(installed: Session) -> None:
    value = large()
    name, size_bytes = target_of(await store_on(installed).put_json(value))
    bucket = await installed.client.jetstream().object_store("IM_ARTIFACTS")
    found = await bucket.get(name)
    assert found.data == encode(value)
    assert (found.info.name, found.info.size, found.info.chunks) == (name, size_bytes, 3)
    assert [info.name for info in await bucket.list()] == [name]


async def test_the_same_value_is_stored_once(installed: Session) -> None:
    value = large()
    first = await store_on(installed).put_json(value)
    stored = await messages_in(installed, STREAM)
    assert await store_on(installed).put_json(value) == first
    assert await messages_in(installed, STREAM) == stored


async def test_of_many_who_store_it_at_once_one_copy_stays(installed: Session) -> None:
    value = large()
    references = await asyncio.gather(*(store_on(installed).put_json(value) for _ in range(5)))
    assert references == [references[0]] * 5
    # Three chunks and the record; whoever came later took their own chunks away.
    assert await messages_in(installed, STREAM) == 4
    assert await store_on(installed).get_json(references[0]) == value


async def test_what_is_too_large_is_refused_and_nothing_is_stored(installed: Session) -> None:
    with pytest.raises(PayloadTooLarge, match=r"the result is 67108865 bytes, the limit is 67108864"):
        await store_on(installed).put(bytes(ARTIFACT_BYTES_MAX + 1), "the result")
    with pytest.raises(PayloadNotEncodable):
        await store_on(installed).put_json(float("nan"))
    assert await messages_in(installed, STREAM) == 0


async def test_what_is_not_there_is_said_to_be_missing(installed: Session) -> None:
    with pytest.raises(ArtifactMissing, match="it is not stored"):
        await store_on(installed).get_json(reference_to("0" * 64, 10))


async def test_chunks_that_are_gone_are_missing_too(installed: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "READ_AGAIN_S", 0.001)
    reference = await store_on(installed).put_json(large())
    await JetStreamApi(installed).purge(STREAM, "$O.IM_ARTIFACTS.C.>")
    with pytest.raises(ArtifactMissing, match=r"0 of its \d+ bytes are there"):
        await store_on(installed).get_json(reference)


async def test_nobody_can_put_another_value_in_its_place(installed: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "READ_AGAIN_S", 0.001)
    honest, forged = [await store_on(installed).put_json(large()) for _ in range(2)]
    subjects = [
        message.subject for message in await JetStreamApi(installed).multi_last(STREAM, ["$O.IM_ARTIFACTS.M.*"]) or []
    ]
    records = {subject: await JetStreamApi(installed).last_message(STREAM, subject) for subject in subjects}
    forged_record = next(m for m in records.values() if m and decode_record(m.data)["name"] == target_of(forged)[0])
    target = next(s for s, m in records.items() if m and decode_record(m.data)["name"] == target_of(honest)[0])
    await installed.request(target, forged_record.data)
    with pytest.raises(ArtifactMissing, match="or they are others"):
        await store_on(installed).get_json(honest)


async def test_nobody_can_purge_it_by_a_header(installed: Session) -> None:
    reference = await store_on(installed).put_json(large())
    reply = await installed.request("$O.IM_ARTIFACTS.M.x", b"{}", headers=b"NATS/1.0\r\nNats-Rollup: all\r\n\r\n")
    assert decode_record(reply)["error"]["description"] == "rollup not permitted"
    assert await store_on(installed).get(reference)


async def test_a_full_store_refuses_and_keeps_no_part(installed: Session) -> None:
    api = JetStreamApi(installed)
    info = await api.stream_info(STREAM)
    assert info is not None
    kept = await store_on(installed).put_json(large())
    await api.update_stream({**info["config"], "max_bytes": 600_000})
    with pytest.raises(StorageUnavailable, match="maximum bytes exceeded"):
        await store_on(installed).put_json(large(2_000_000))
    assert await messages_in(installed, STREAM) == 4
    assert await store_on(installed).get(kept)


async def test_a_server_that_goes_away_is_storage_that_is_unavailable(
    installed: Session, server: EmbeddedServer
) -> None:
    store = store_on(installed)
    reference = await store.put_json(large())
    under_way = asyncio.Event()
    await installed.subscribe("$O.IM_ARTIFACTS.C.>", lambda *message: under_way.set())
    putting = asyncio.create_task(store.put_json(large(60_000_000)))
    await asyncio.wait_for(under_way.wait(), 10.0)
    await server.kill()
    with pytest.raises(StorageUnavailable):
        await putting
    with pytest.raises(StorageUnavailable):
        await store_on(installed).get(reference)
    # It was put by this one, so it has it still.
    assert await store.get(reference)


async def test_one_that_is_old_is_stored_again_so_that_it_outlives_the_log(
    installed: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = large()
    reference = await store_on(installed).put_json(value)
    (first,) = await store_on(installed).list()
    monkeypatch.setattr(artifacts, "ARTIFACT_REUSED_S", -1.0)
    assert await store_on(installed).put_json(value) == reference
    (again,) = await store_on(installed).list()
    assert (again.name, again.bytes) == (first.name, first.bytes)
    assert again.stored_at > first.stored_at
    assert await store_on(installed).get_json(reference) == value


async def test_an_artifact_outlives_the_log(installed: Session) -> None:
    ages = []
    for stream in (STREAM, "IM_FACTS_0"):
        info = await JetStreamApi(installed).stream_info(stream)
        assert info is not None
        ages.append(info["config"]["max_age"] / 1e9)
    assert ages[0] - artifacts.ARTIFACT_REUSED_S > ages[1] > 0


async def test_the_list_is_newest_first(installed: Session) -> None:
    store = store_on(installed)
    names = [target_of(await store.put_json({"n": number}))[0] for number in range(3)]
    assert [artifact.name for artifact in await store.list()] == names[::-1]
    assert [artifact.bytes for artifact in await store.list()] == [7, 7, 7]


async def test_the_cache_keeps_what_was_read_last_within_its_bytes(installed: Session, server: EmbeddedServer) -> None:
    references = [await store_on(installed).put_json(large(100_000)) for _ in range(3)]
    store = store_on(installed, cache_bytes_max=250_000)
    for index in (0, 1, 0, 2):
        await store.get(references[index])
    await server.kill()
    assert await store.get(references[0])
    assert await store.get(references[2])
    with pytest.raises(StorageUnavailable):
        await store.get(references[1])


async def test_many_who_read_it_at_once_fetch_it_once_and_share_nothing(installed: Session) -> None:
    reference = await store_on(installed).put_json({"rows": [1]})
    fetches = 0
    multi = installed.request_many_with

    def counting(*arguments: Any) -> str:
        nonlocal fetches
        fetches += 1
        return multi(*arguments)

    store = store_on(installed)
    installed.request_many_with = counting  # type: ignore[method-assign]
    values = await asyncio.gather(*(store.get_json(reference) for _ in range(50)))
    assert fetches == 1
    values[0]["rows"].append(2)
    assert values[1] == {"rows": [1]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "$artifact",
        {},
        {"$artifact": None},
        {"$artifact": {"name": "0" * 64}},
        {"$artifact": {"name": "0" * 63, "bytes": 1}},
        {"$artifact": {"name": "Z" * 64, "bytes": 1}},
        {"$artifact": {"name": "0" * 64, "bytes": True}},
        {"$artifact": {"name": "0" * 64, "bytes": -1}},
        {"$artifact": {"name": "0" * 64, "bytes": 1}, "more": 1},
    ],
)
def test_what_looks_like_a_reference_and_is_none(value: Any) -> None:
    assert not is_reference(value)


def test_a_reference_is_one() -> None:
    assert is_reference({"$artifact": {"name": "0" * 64, "bytes": 1}})
    assert target_of(reference_to("a" * 64, 5)) == ("a" * 64, 5)
