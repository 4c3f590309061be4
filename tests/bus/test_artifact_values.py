"""Artifacts kept as values: read once, shared, and let go when there are too many bytes of them."""

from typing import Any

import pytest
from infinity_matrix_bus.artifact_values import ArtifactValues
from infinity_matrix_bus.artifacts import ArtifactStore, reference_to
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.references import artifacts_in, has_references, resolved
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects


@pytest.fixture
async def store(session: Session) -> ArtifactStore:
    await install(session, shards=1)

    async def now() -> Session:
        return session

    return ArtifactStore(now, Subjects(), cache_bytes_max=0)


async def test_a_value_is_read_once_and_then_known(store: ArtifactStore) -> None:
    reference = await store.put_json({"rows": [1, 2]})
    values = ArtifactValues(store)
    assert reference not in values
    with pytest.raises(KeyError):
        values.known(reference)
    first = await values.get_json(reference)
    assert first == {"rows": [1, 2]}
    assert reference in values
    assert values.known(reference) is first
    assert await values.get_json(reference) is first


async def test_what_was_used_last_stays_within_the_bytes(store: ArtifactStore) -> None:
    references = [await store.put_json(str(number) * 100) for number in range(3)]
    values = ArtifactValues(store, bytes_max=250)
    for index in (0, 1, 0, 2):
        await values.get_json(references[index])
    assert [reference in values for reference in references] == [True, False, True]
    huge = await store.put_json("x" * 1000)
    await values.get_json(huge)
    assert huge in values
    assert not any(reference in values for reference in references)


A, B = reference_to("a" * 64, 5), reference_to("b" * 64, 6)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (A, {"a" * 64: 5}),
        ([A, 1, B], {"a" * 64: 5, "b" * 64: 6}),
        ([], {}),
        ({"deep": A}, {}),
        ([[A]], {}),
        ("text", {}),
        (None, {}),
    ],
)
def test_a_reference_counts_as_a_whole_value_and_as_an_item_of_a_list(value: Any, names: dict[str, int]) -> None:
    assert artifacts_in(value) == names
    assert has_references(value) == bool(names)


async def test_a_list_that_is_stored_may_have_references_as_items(store: ArtifactStore) -> None:
    item = await store.put_json("item")
    outer = await store.put_json([item, "small"])
    assert await resolved(outer, store) == ["item", "small"]
    untouched = {"deep": item}
    assert await resolved(untouched, store) is untouched
