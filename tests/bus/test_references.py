"""References wherever they stand in a value: found, and the values put in their place."""

from typing import Any

import pytest
from infinity_matrix_actors.errors import ArtifactMissing, PayloadTooLarge
from infinity_matrix_bus import references
from infinity_matrix_bus.artifacts import ArtifactStore, reference_to
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.references import artifacts_in, has_references, may_have_references, resolved
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

A, B = reference_to("a" * 64, 5), reference_to("b" * 64, 6)


@pytest.fixture
async def store(session: Session) -> ArtifactStore:
    await install(session, shards=1)

    async def now() -> Session:
        return session

    return ArtifactStore(now, Subjects())


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (A, {"a" * 64: 5}),
        ([A, 1, B], {"a" * 64: 5, "b" * 64: 6}),
        ({"child": {"task": A}, "map": [{"task": B}, None]}, {"a" * 64: 5, "b" * 64: 6}),
        ([], {}),
        ({}, {}),
        ({"$artifact": {"name": A}}, {"a" * 64: 5}),
        ({"$artifact": "text"}, {}),
        ("$artifact", {}),
        (None, {}),
    ],
)
def test_a_reference_counts_wherever_it_stands(value: Any, names: dict[str, int]) -> None:
    assert artifacts_in(value) == names
    assert has_references(value) == bool(names)
    assert may_have_references(encode(value)) >= bool(names)


def test_bytes_without_the_mark_need_not_be_looked_through() -> None:
    assert not may_have_references(encode({"text": "artifact", "list": [1, {"a": None}]}))


async def test_values_come_in_the_place_of_references_and_nothing_else_changes(store: ArtifactStore) -> None:
    item, rows = await store.put_json("item"), await store.put_json({"rows": [1, 2]})
    value = {"child": {"a": rows, "b": 1}, "map": [item, {"c": item}], "plain": ["x", None]}
    assert await resolved(value, store) == {
        "child": {"a": {"rows": [1, 2]}, "b": 1},
        "map": ["item", {"c": "item"}],
        "plain": ["x", None],
    }
    assert value["map"][0] == item, "the one that was given is not changed"
    untouched = {"plain": ["x", None]}
    assert await resolved(untouched, store) is untouched


async def test_what_is_stored_may_have_references_in_it(store: ArtifactStore) -> None:
    item = await store.put_json("item")
    outer = await store.put_json({"t": await store.put_json([item, "small"]), "u": 1})
    assert await resolved({"upstream": outer}, store) == {"upstream": {"t": ["item", "small"], "u": 1}}


async def test_a_small_value_cannot_stand_for_more_than_there_is_memory(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "RESOLVED_BYTES_MAX", 1000)
    reference = await store.put_json("x" * 100)
    assert len(await resolved([reference] * 9, store)) == 9
    with pytest.raises(PayloadTooLarge, match="what the references stand for is 1020 bytes, the limit is 1000"):
        await resolved([reference] * 11, store)


async def test_what_is_no_json_is_missing(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactMissing, match="it is no JSON"):
        await resolved(await store.put(b"\xc1"), store)
