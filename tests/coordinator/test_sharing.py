"""Who runs which shard, and which events start what: small pure rules of the coordinator's shell."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infinity_matrix_coordinator.members import owner_of, shards_of
from infinity_matrix_coordinator.triggers import matches

MEMBERS = st.lists(st.uuids().map(str), min_size=1, max_size=8, unique=True)


def _owners(members: list[str], shards: int) -> dict[int, str]:
    return {shard: member for member in members for shard in shards_of(member, members, shards)}


@settings(max_examples=60)
@given(members=MEMBERS, shards=st.integers(1, 32))
def test_every_shard_has_one_owner_and_nobody_more_than_its_part(members: list[str], shards: int) -> None:
    owned = [shards_of(member, members, shards) for member in members]
    assert sorted(shard for one in owned for shard in one) == list(range(shards))
    assert max(map(len, owned)) <= -(-shards // len(members))


@pytest.mark.parametrize("shards", [4, 8, 32])
def test_two_members_always_have_half_each(shards: int) -> None:
    for number in range(100):
        members = [f"one-{number}", f"two-{number}"]
        assert {len(shards_of(member, members, shards)) for member in members} == {shards // 2}


@settings(max_examples=60)
@given(members=MEMBERS, data=st.data())
def test_everyone_finds_the_same_owners_however_they_heard_of_the_members(
    members: list[str], data: st.DataObject
) -> None:
    heard = data.draw(st.permutations([*members, members[0]]))
    assert _owners(members, 8) == {s: member for member in members for s in shards_of(member, heard, 8)}


def test_a_member_that_joins_leaves_most_shards_where_they_are() -> None:
    moved = 0
    for number in range(30):
        members = [f"{number}-{index}" for index in range(5)]
        before, after = _owners(members[:4], 64), _owners(members, 64)
        moved += sum(before[shard] != after[shard] for shard in before)
    # A fifth must move (12.8); all over again would be four fifths (51).
    assert moved / 30 < 20


def test_a_member_alone_has_everything_and_a_stranger_nothing() -> None:
    assert shards_of("a", ["a"], 4) == frozenset(range(4))
    assert shards_of("stranger", ["a", "b"], 4) == frozenset()
    assert shards_of("a", [], 4) == frozenset()
    assert owner_of(0, []) is None


@pytest.mark.parametrize(
    ("pattern", "event", "expected"),
    [
        ("orders.created", "orders.created", True),
        ("orders.created", "orders.deleted", False),
        ("orders.created", "orders", False),
        ("orders", "orders.created", False),
        ("orders.*", "orders.created", True),
        ("orders.*", "orders", False),
        ("orders.*", "orders.created.eu", False),
        ("*.created", "orders.created", True),
        ("*.created", "orders.deleted", False),
        ("orders.>", "orders.created", True),
        ("orders.>", "orders.created.eu.west", True),
        ("orders.>", "orders", False),
        ("orders.*.>", "orders.created", False),
        ("orders.*.>", "orders.created.eu", True),
        (">", "orders", True),
        (">", "orders.created", True),
        ("*", "orders.created", False),
    ],
)
def test_an_event_matches_as_a_nats_subject_does(pattern: str, event: str, expected: bool) -> None:
    assert matches(tuple(pattern.split(".")), tuple(event.split("."))) is expected
