"""Which coordinators are alive, and which of them owns a shard.

Members put a key that expires after 5 s; the owner of a shard is the rendezvous hash of the live members. Being wrong
for a moment is harmless: two owners do the same. Members of different versions each have an owner of a shard: an
execution is for the one that has the rules it was started with.
"""

from collections.abc import Iterable
from hashlib import blake2b

from infinity_matrix_actors import fact
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import Undecodable, decode_record, encode
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

HEARTBEAT_S = 1.0


def owner_of(shard: int, members: Iterable[str]) -> str | None:
    """The member with the highest hash for this shard."""
    return max(members, key=lambda member: (_weight(shard, member), member), default=None)


def shards_of(member: str, members: Iterable[str], shards: int) -> frozenset[int]:
    """The shards a member owns, shared out evenly: nobody owns more than one more than anybody else.

    Rendezvous hashing alone leaves one of two members without a shard in one case of eight when there are 4; here each
    shard goes to its best member that has room left.
    """
    ordered = sorted(set(members))
    if not ordered:
        return frozenset()
    fair, extra = divmod(shards, len(ordered))
    count = dict.fromkeys(ordered, 0)
    owned: set[int] = set()
    for shard in range(shards):
        owner = owner_of(shard, [name for name in ordered if count[name] < fair + (1 if extra else 0)])
        assert owner is not None
        if count[owner] == fair:
            extra -= 1
        count[owner] += 1
        if owner == member:
            owned.add(shard)
    return frozenset(owned)


def _weight(shard: int, member: str) -> bytes:
    return blake2b(f"{shard}/{member}".encode(), digest_size=8).digest()


class Membership:
    """This member's heartbeat, and the view of the others."""

    def __init__(self, session: Session, subjects: Subjects, member: str) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        name = subjects.bucket("members")
        self._stream = f"KV_{name}"
        self._key = f"$KV.{name}."
        self._member = member

    def heartbeat(self) -> None:
        """Says that this member is alive; raises SessionLost."""
        self._session.publish(self._key + self._member, encode({"member": self._member, "decide": fact.DECIDE_VERSION}))

    def leave(self) -> None:
        """Takes the member out at once, so that the others need not wait for the key to expire."""
        self._session.publish(self._key + self._member, b"", headers=b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n")

    async def members(self) -> set[str]:
        """The live members with this one's rules, this one included."""
        stored = await self._api.multi_last(self._stream, [self._key + "*"])
        alive = {message.subject[len(self._key) :] for message in stored or () if _has_these_rules(message.data)}
        return alive | {self._member}


def _has_these_rules(data: bytes) -> bool:
    try:
        return bool(data) and decode_record(data).get("decide", fact.DECIDE_VERSION) == fact.DECIDE_VERSION
    except Undecodable:
        return False
