"""Artifacts kept as values: read once, shared, and let go when there are too many bytes of them."""

import pytest
from infinity_matrix_bus.artifact_values import ArtifactValues
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.installation import install
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
