"""Artifacts as values that are kept: for who looks at the same ones again and again, and changes none of them.

A coordinator asks conditions and picks items of large results, for each of a thousand tasks the same one: to read the
JSON of 5 MB takes 6 ms each time.
"""

from collections import OrderedDict
from typing import Any

from infinity_matrix_bus.artifacts import ArtifactStore, target_of

#: By the size of their JSON; as values they take several times as much.
VALUES_BYTES_MAX = 32 * 1024 * 1024


class ArtifactValues:
    """The values used last, of one store. What it answers is shared: it is not to be changed."""

    def __init__(self, store: ArtifactStore, bytes_max: int = VALUES_BYTES_MAX) -> None:
        self._store = store
        self._bytes_max = bytes_max
        self._values: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, reference: dict[str, Any]) -> bool:
        return target_of(reference)[0] in self._values

    def known(self, reference: dict[str, Any]) -> Any:
        """The value of a reference that was loaded and is still kept; raises KeyError for another."""
        name, _ = target_of(reference)
        self._values.move_to_end(name)
        return self._values[name][1]

    async def get_json(self, reference: dict[str, Any]) -> Any:
        """The value of a reference; raises ArtifactMissing, StorageUnavailable."""
        name, _ = target_of(reference)
        if name in self._values:
            return self.known(reference)
        value = await self._store.get_json(reference)
        # Not the size the reference says: that is anyone's word.
        self._keep(name, len(await self._store.get(reference)), value)
        return value

    def _keep(self, name: str, size_bytes: int, value: Any) -> None:
        if name in self._values:
            return
        self._values[name] = (size_bytes, value)
        self._bytes += size_bytes
        # The newest stays whatever its size: who loaded it is about to look at it.
        while self._bytes > self._bytes_max and len(self._values) > 1:
            _, (oldest_bytes, _) = self._values.popitem(last=False)
            self._bytes -= oldest_bytes
