"""References in payloads: finding them, and putting values in their place.

They count wherever they stand: a child's outputs are a map of results, a map's results a list of them. Who has the
bytes of a message looks there for the mark first, which costs nothing; to look through the values takes Python's time.
"""

from typing import Any

from infinity_matrix_actors.errors import ArtifactMissing, PayloadTooLarge

from infinity_matrix_bus.artifacts import MARK, ArtifactStore, is_reference, target_of
from infinity_matrix_bus.codec import Undecodable, decode

#: What all references in one value may stand for; a small message could name the same large artifact a thousand times.
RESOLVED_BYTES_MAX = 512 * 1024 * 1024


def may_have_references(data: bytes) -> bool:
    """Whether there is any use in looking for references in what these bytes encode."""
    # One letter is found 20 times as fast as a word, and most payloads do not even have that.
    return b"$" in data and MARK in data


def has_references(value: Any) -> bool:
    """Whether a reference stands anywhere in a value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            if is_reference(item):
                return True
            stack += [inner for inner in item.values() if type(inner) is dict or type(inner) is list]
        elif type(item) is list:
            stack += [inner for inner in item if type(inner) is dict or type(inner) is list]
    return False


def artifacts_in(value: Any) -> dict[str, int]:
    """The artifacts a value names, by name, each with its size in bytes as the reference says it."""
    found: dict[str, int] = {}
    stack = [value]
    while stack:
        item = stack.pop()
        if is_reference(item):
            name, size_bytes = target_of(item)
            found[name] = size_bytes
        elif type(item) is dict:
            stack += item.values()
        elif type(item) is list:
            stack += item
    return found


async def resolved(value: Any, store: ArtifactStore) -> Any:
    """The value with values for references; itself if it has none.

    Raises ArtifactMissing, StorageUnavailable, and PayloadTooLarge for more than `RESOLVED_BYTES_MAX` in all.
    """
    return await _Resolution(store).of(value) if has_references(value) else value


class _Resolution:
    """Resolves one value."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._bytes = 0

    async def of(self, value: Any) -> Any:
        if type(value) is dict:
            if is_reference(value):
                return await self._fetched(value)
            return {key: await self.of(item) if _is_container(item) else item for key, item in value.items()}
        if type(value) is list:
            return [await self.of(item) if _is_container(item) else item for item in value]
        return value

    async def _fetched(self, reference: dict[str, Any]) -> Any:
        data = await self._store.get(reference)
        self._bytes += len(data)
        if self._bytes > RESOLVED_BYTES_MAX:
            raise PayloadTooLarge("what the references stand for", self._bytes, RESOLVED_BYTES_MAX)
        try:
            value = decode(data)
        except Undecodable as error:
            raise ArtifactMissing(target_of(reference)[0], f"it is no JSON: {error}") from error
        # The whole of a wide join has references in it. There is no circle: the hash would have to be known before.
        return await self.of(value) if may_have_references(data) and has_references(value) else value


def _is_container(value: Any) -> bool:
    return type(value) is dict or type(value) is list
