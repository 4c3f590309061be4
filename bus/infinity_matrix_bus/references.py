"""References in payloads: where they may stand, and the values in their place.

A reference counts where a whole value stands, or an item of a list that is one: a map's results are a list, each of
them another's result. Deeper it is left alone: to look for it everywhere would cost every small payload its time.
"""

from typing import Any

from infinity_matrix_bus.artifacts import ArtifactStore, is_reference, target_of


def has_references(value: Any) -> bool:
    """Whether `resolved` would answer something else."""
    if type(value) is list:
        return any(map(is_reference, value))
    return is_reference(value)


def artifacts_in(value: Any) -> dict[str, int]:
    """The artifacts a value names, by name, each with its size in bytes."""
    if type(value) is list:
        return dict(target_of(item) for item in value if is_reference(item))
    return dict((target_of(value),)) if is_reference(value) else {}


async def resolved(value: Any, store: ArtifactStore) -> Any:
    """The value with values for references; itself if it has none. Raises ArtifactMissing, StorageUnavailable."""
    if is_reference(value):
        # An offloaded list may have references as its items.
        value = await store.get_json(value)
    if type(value) is list and has_references(value):
        return [await store.get_json(item) if is_reference(item) else item for item in value]
    return value


async def resolved_map(values: dict[str, Any], store: ArtifactStore) -> dict[str, Any]:
    """`resolved`, for each value of a map."""
    if not any(map(has_references, values.values())):
        return values
    return {key: await resolved(value, store) for key, value in values.items()}
