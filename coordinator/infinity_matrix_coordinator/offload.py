"""Offloading: what is too large for one message goes to the object store, and references take its place.

Deterministic but for the storing: two owners of a shard make the same references of the same work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import PayloadTooLarge
from infinity_matrix_bus.artifacts import ARTIFACT_BYTES_MAX, OFFLOAD_BYTES, ArtifactStore, is_reference
from infinity_matrix_bus.codec import MESSAGE_BYTES_MAX, encode

#: Beside a work's payload a message has headers, and a repair says that it is one.
MARGIN_BYTES = 4096
#: Values of one work stored one by one; if more had to be, the whole map they stand in is one artifact.
VALUES_MAX = 16
#: Of a map or list that no artifact holds, the values above this become artifacts of their own: of 10,000 values, the
#: most there are in one, the rest is then at most 40 MiB.
PART_BYTES = 4096
#: Fields whose values stand on their own.
_MAPS = ("upstream", "compensates")
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class _Part:
    """A value that could be stored: a field of a work, or a value in one that is a map."""

    size_bytes: int
    field: str
    key: str | None


async def fitting(encoded: Callable[[Any], bytes], value: Any, store: ArtifactStore, what: str) -> bytes:
    """The payload `encoded` makes of a value, or of its reference when it is large.

    Raises what `encoded` raises, PayloadTooLarge for what no artifact holds, and StorageUnavailable.
    """
    try:
        payload = encoded(value)
    except PayloadTooLarge:
        pass
    else:
        if len(payload) <= OFFLOAD_BYTES:
            return payload
    return encoded(await store.put_json(value, what))


async def offloaded(
    work_record: dict[str, Any], store: ArtifactStore, limit_bytes: int = MESSAGE_BYTES_MAX
) -> dict[str, Any]:
    """A work that fits a message: its largest values are stored until it does; itself when it fits as it is.

    Raises PayloadTooLarge when that is not possible, StorageUnavailable, PayloadNotEncodable.
    """
    room = limit_bytes - MARGIN_BYTES
    total = _size(work_record)
    if total <= room:
        return work_record
    what = f"the work of task {work_record.get('task')!r}"
    chosen = _largest(_parts(work_record), total - room)
    if not chosen:
        chosen = _largest(_fields(work_record), total - room)
    if not chosen:
        raise PayloadTooLarge(what, total, room)
    record = dict(work_record)
    for part in chosen:
        if part.key is None:
            record[part.field] = await _stored(record[part.field], store, f"{part.field} of {what}")
        else:
            value = await _stored(record[part.field][part.key], store, f"{part.field} {part.key!r} of {what}")
            record[part.field] = {**record[part.field], part.key: value}
    return record


def _parts(record: dict[str, Any]) -> list[_Part]:
    parts = []
    for field, value in record.items():
        if field in _MAPS and type(value) is dict and not is_reference(value):
            parts += [_Part(_size(inner), field, key) for key, inner in value.items()]
        else:
            parts.append(_Part(_size(value), field, None))
    return sorted(parts, key=lambda part: part.size_bytes, reverse=True)[:VALUES_MAX]


def _fields(record: dict[str, Any]) -> list[_Part]:
    parts = [_Part(_size(value), field, None) for field, value in record.items()]
    return sorted(parts, key=lambda part: part.size_bytes, reverse=True)[:VALUES_MAX]


def _largest(parts: list[_Part], excess_bytes: int) -> list[_Part]:
    """As many of the parts as save that much; none when all of them do not."""
    chosen: list[_Part] = []
    for part in parts:
        if excess_bytes <= 0:
            break
        chosen.append(part)
        excess_bytes -= part.size_bytes - _REFERENCE_BYTES
    return chosen if excess_bytes <= 0 else []


async def _stored(value: Any, store: ArtifactStore, what: str) -> Any:
    """The reference of a value; of one that no artifact holds the large values are stored on their own."""
    if _size(value) > ARTIFACT_BYTES_MAX:
        if type(value) is dict:
            value = {key: await _part_stored(inner, store, f"{key!r} in {what}") for key, inner in value.items()}
        elif type(value) is list:
            value = [await _part_stored(inner, store, f"an item of {what}") for inner in value]
    return await store.put_json(value, what)


async def _part_stored(value: Any, store: ArtifactStore, what: str) -> Any:
    return await store.put_json(value, what) if _size(value) > PART_BYTES else value


def _size(value: Any) -> int:
    return len(encode(value, limit_bytes=_UNBOUNDED))


#: The JSON of a reference: `{"$artifact":{"name":"<64>","bytes":<8>}}`, and some.
_REFERENCE_BYTES = 120
