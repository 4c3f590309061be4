"""Works too large for a message, on a real server: what is stored of them, and that it all comes back."""

import os
from typing import Any

import pytest
from infinity_matrix_actors.errors import PayloadTooLarge
from infinity_matrix_bus.artifacts import ArtifactStore, is_reference
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.references import resolved
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator import offload
from infinity_matrix_coordinator.large_works import KEPT_MAX, LargeWorks
from infinity_matrix_coordinator.offload import MARGIN_BYTES, VALUES_MAX, offloaded

LIMIT = 20_000


@pytest.fixture
async def store(server: EmbeddedServer) -> Any:
    session = await Session.connect(Endpoint(server.connect_url))

    async def now() -> Session:
        return session

    try:
        await install(session, shards=1)
        yield ArtifactStore(now, Subjects())
    finally:
        await session.close()


def text(size_bytes: int) -> str:
    return os.urandom(size_bytes // 2).hex()


def work(**fields: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "task": "join",
        "reply_to": "im.fact.0.e.outcome.a.join.1.cap",
        "input": None,
        "config": {},
        **fields,
    }


async def test_a_work_that_fits_is_left_alone(store: ArtifactStore) -> None:
    record = work(upstream={"a": text(LIMIT - MARGIN_BYTES - 500)})
    assert await offloaded(record, store, LIMIT) is record
    assert await store.list() == []


async def test_the_largest_values_go_first_and_no_more_than_must(store: ArtifactStore) -> None:
    record = work(upstream={"small": text(2_000), "large": text(9_000), "larger": text(12_000), "none": None})
    small = await offloaded(record, store, LIMIT)
    assert [name for name, value in small["upstream"].items() if is_reference(value)] == ["larger"]
    assert len(encode(small)) <= LIMIT - MARGIN_BYTES
    assert await resolved(small, store) == record
    assert record["upstream"]["larger"] != small["upstream"]["larger"], "the one that was given is not changed"


async def test_two_who_offload_the_same_work_say_the_same(store: ArtifactStore) -> None:
    record = work(upstream={f"t{number}": text(4_000) for number in range(10)})
    assert await offloaded(record, store, LIMIT) == await offloaded(record, store, LIMIT)


@pytest.mark.parametrize("field", ["input", "config", "cause"])
async def test_any_field_may_be_the_large_one(store: ArtifactStore, field: str) -> None:
    record = work(upstream={"a": 1}, **{field: {"text": text(30_000)}})
    small = await offloaded(record, store, LIMIT)
    assert is_reference(small[field])
    assert small["upstream"] == {"a": 1}
    assert await resolved(small, store) == record


async def test_what_a_compensation_is_told_is_stored_value_by_value(store: ArtifactStore) -> None:
    record = work(upstream={}, compensates={"task": "a", "result": text(30_000), "upstream": {"b": text(9_000)}})
    small = await offloaded(record, store, LIMIT)
    assert is_reference(small["compensates"]["result"])
    assert small["compensates"]["task"] == "a"
    assert await resolved(small, store) == record


async def test_of_many_values_the_whole_map_is_one_artifact(store: ArtifactStore) -> None:
    record = work(upstream={f"t{number}": text(500) for number in range(200)})
    small = await offloaded(record, store, LIMIT)
    assert is_reference(small["upstream"])
    assert len(await store.list()) == 1
    assert await resolved(small, store) == record


async def test_a_map_that_no_artifact_holds_is_stored_in_parts(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "ARTIFACT_BYTES_MAX", 100_000)
    record = work(upstream={f"t{number}": text(6_000 if number % 2 else 400) for number in range(4 * VALUES_MAX)})
    small = await offloaded(record, store, LIMIT)
    assert is_reference(small["upstream"])
    assert len(await store.list()) == 2 * VALUES_MAX + 1
    assert await resolved(small, store) == record


async def test_a_list_that_no_artifact_holds_is_stored_in_parts(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "ARTIFACT_BYTES_MAX", 100_000)
    record = work(upstream={"map": [text(6_000) for _ in range(30)]})
    small = await offloaded(record, store, LIMIT)
    assert await resolved(small["upstream"]["map"], store) == record["upstream"]["map"]


async def test_a_value_above_the_hard_limit_is_named(store: ArtifactStore) -> None:
    record = work(upstream={"huge": "x" * (64 * 1024 * 1024)})
    with pytest.raises(PayloadTooLarge, match="upstream 'huge' of the work of task 'join' is 67108866 bytes"):
        await offloaded(record, store, LIMIT)


async def test_what_references_cannot_make_small_is_refused(store: ArtifactStore) -> None:
    record = {**work(), **{f"field-{number}": text(2_000) for number in range(30)}}
    with pytest.raises(PayloadTooLarge, match="the work of task 'join'"):
        await offloaded(record, store, LIMIT)


async def test_a_large_work_is_kept_small_until_others_take_its_place(store: ArtifactStore) -> None:
    works = LargeWorks(store)
    record = work(upstream={"a": text(30_000)})
    for attempt in range(KEPT_MAX + 1):
        assert works.small(("e", "join", attempt)) is None
        await works.store(("e", "join", attempt), record, LIMIT)
        small = works.small(("e", "join", attempt))
        assert small is not None
        assert is_reference(small["upstream"]["a"])
    assert works.small(("e", "join", 0)) is None
    assert works.small(("e", "join", 1)) is not None
