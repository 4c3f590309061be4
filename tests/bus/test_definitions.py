"""Definitions in the real bucket: by their hash, and by the name that stands for one."""

import asyncio
import random
import time
import zlib
from dataclasses import replace

import pytest
from infinity_matrix_actors.definition import (
    RetryDefinition,
    RunWhen,
    TaskDefinition,
    TriggerDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.errors import PayloadTooLarge, StorageUnavailable
from infinity_matrix_bus import definitions
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.definitions import CHANGES_MAX, DefinitionStore, Deployment
from infinity_matrix_bus.installation import bucket, install
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

SMALL = WorkflowDefinition(
    "etl",
    (
        TaskDefinition("extract", "a", config={"query": "é", "n": [1, None, 2.5]}),
        TaskDefinition(
            "load", "b", ("extract",), condition="extract.result.n > 0", run_when=RunWhen.ANY_FAILED,
            retry=RetryDefinition(max_attempts=3, non_retryable=("x", "y")), timeout=1.5,
        ),
    ),
    triggers=(TriggerDefinition("orders.created", "event.total > 100"),),
)  # fmt: skip


@pytest.fixture
async def store(session: Session) -> DefinitionStore:
    installed = await install(session, shards=1)
    return DefinitionStore(session, installed.subjects())


async def stored_messages(session: Session) -> int:
    return await JetStreamApi(session).last_sequence("KV_IM_DEFINITIONS")


async def test_what_was_stored_is_loaded_by_its_hash(store: DefinitionStore) -> None:
    digest = await store.store(SMALL)
    assert digest == SMALL.digest()
    assert await store.load(digest) == SMALL


@pytest.mark.parametrize("digest", ["0" * 64, "*", ">", "", "a b", "x" * 600])
async def test_an_unknown_or_malformed_hash_is_none(store: DefinitionStore, digest: str) -> None:
    await store.deploy(SMALL, is_armed=True)
    assert await store.load(digest) is None
    assert await store.deployment(digest) is None


async def test_storing_again_writes_nothing(store: DefinitionStore, session: Session) -> None:
    await store.store(SMALL)
    written = await stored_messages(session)
    assert await store.store(SMALL) == SMALL.digest()
    assert await stored_messages(session) == written


async def test_two_thousand_tasks_fit(store: DefinitionStore) -> None:
    tasks = tuple(
        TaskDefinition(
            f"task-{number}",
            f"agent-{number % 7}",
            tuple(f"task-{above}" for above in range(max(0, number - 3), number)),
            config={"number": number, "path": f"/data/{number * 7919 % 10_007}.fits"},
        )
        for number in range(2000)
    )
    definition = WorkflowDefinition("large", tasks)
    assert len(definition.canonical()) > 512 * 1024
    assert await store.load(await store.store(definition)) == definition


def noisy(characters: int) -> WorkflowDefinition:
    """A definition that compression does not make much smaller."""
    noise = random.Random(characters).randbytes(characters // 2).hex()
    return WorkflowDefinition("noise", (TaskDefinition("a", "b", config={"noise": noise}),))


async def test_one_that_fits_no_message_is_stored_in_parts(store: DefinitionStore, session: Session) -> None:
    definition = noisy(4_000_000)
    digest = await store.store(definition)
    assert await store.load(digest) == definition
    written = await stored_messages(session)
    assert await store.store(definition) == digest
    assert await stored_messages(session) == written
    assert [deployment.workflow for deployment in await store.deployments()] == []
    await JetStreamApi(session).purge("KV_IM_DEFINITIONS", "$KV.IM_DEFINITIONS.part.*.3")
    with pytest.raises(StorageUnavailable, match="a part of it is missing"):
        await store.load(digest)


async def test_one_that_is_too_large_is_refused_with_its_size(
    store: DefinitionStore, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "PACKED_BYTES_MAX", 600_000)
    written = await stored_messages(session)
    with pytest.raises(PayloadTooLarge, match="the definition of noise is"):
        await store.store(noisy(1_400_000))
    assert await stored_messages(session) == written


async def test_a_name_stands_for_what_was_deployed_last(store: DefinitionStore) -> None:
    assert await store.deployment("etl") is None
    first = await store.deploy(SMALL, is_armed=True)
    assert first == Deployment("etl", SMALL.digest(), "1", True)
    assert await store.deployment("etl") == first
    second = await store.deploy(replace(SMALL, version="2"), is_armed=False)
    assert second.definition != first.definition
    assert await store.deployment("etl") == second
    # The earlier one is still there: executions of it go on.
    assert await store.load(first.definition) == SMALL


async def test_disarming_keeps_what_the_name_stands_for(store: DefinitionStore) -> None:
    assert await store.disarm("etl") is False
    deployed = await store.deploy(SMALL, is_armed=True)
    assert await store.disarm("etl") is True
    assert await store.deployment("etl") == replace(deployed, is_armed=False)


async def test_a_paused_workflow_stays_paused_when_it_is_deployed_again(store: DefinitionStore) -> None:
    assert await store.pause("etl", is_paused=True) is False
    deployed = await store.deploy(SMALL, is_armed=True)
    assert await store.pause("etl", is_paused=True) is True
    assert await store.deployment("etl") == replace(deployed, is_paused=True)
    again = await store.deploy(replace(SMALL, version="2"), is_armed=True)
    assert again.is_paused
    assert await store.deployment("etl") == again
    assert await store.pause("etl", is_paused=False) is True
    assert await store.deployment("etl") == replace(again, is_paused=False)


async def test_changes_at_the_same_time_are_all_made(store: DefinitionStore) -> None:
    await store.deploy(SMALL, is_armed=True)
    second = replace(SMALL, version="2")
    await asyncio.gather(
        store.pause("etl", is_paused=True), store.disarm("etl"), *(store.deploy(second, is_armed=False) for _ in "123")
    )
    assert await store.deployment("etl") == Deployment("etl", second.digest(), "2", False, is_paused=True)


async def test_a_change_that_others_always_forestall_is_given_up(store: DefinitionStore, session: Session) -> None:
    await store.deploy(SMALL, is_armed=True)
    record = Deployment("etl", SMALL.digest(), "1", True).record()
    changes = 0

    def forestall(found: Deployment | None) -> Deployment | None:
        nonlocal changes
        changes += 1
        session.publish("$KV.IM_DEFINITIONS.name.etl", encode(record))
        return found

    with pytest.raises(StorageUnavailable, match="changed by others 20 times"):
        await store._change("etl", forestall)
    assert changes == CHANGES_MAX


async def test_all_versions_of_a_workflow_are_listed_oldest_first(store: DefinitionStore) -> None:
    assert await store.versions() == []
    third, second = replace(SMALL, version="3"), replace(SMALL, version="2")
    await store.deploy(SMALL, is_armed=True)
    await store.deploy(third, is_armed=True)
    await store.store(second)
    await store.deploy(SMALL, is_armed=True)
    await store.store(replace(SMALL, name="etl-2"))
    listed = await store.versions("etl")
    assert [(each.version, each.definition) for each in listed] == [
        ("1", SMALL.digest()),
        ("3", third.digest()),
        ("2", second.digest()),
    ]
    assert [each.stored_at for each in listed] == sorted(each.stored_at for each in listed)
    assert abs(listed[0].stored_at - time.time()) < 60
    assert [each.workflow for each in await store.versions()] == ["etl"] * 3 + ["etl-2"]
    assert await store.versions("*") == []


async def test_all_deployments_are_listed_once(store: DefinitionStore) -> None:
    assert await store.deployments() == []
    await store.store(replace(SMALL, name="only-stored"))
    for name in ("c", "a", "b"):
        await store.deploy(replace(SMALL, name=name), is_armed=False)
    await store.deploy(replace(SMALL, name="a", version="2"), is_armed=True)
    listed = await store.deployments()
    assert [(each.workflow, each.version, each.is_armed) for each in listed] == [
        ("a", "2", True),
        ("b", "1", False),
        ("c", "1", False),
    ]


async def test_three_thousand_deployments_are_listed(store: DefinitionStore, session: Session) -> None:
    record = b'{"definition":"d","version":"1","armed":true}'
    for number in range(2999):
        session.publish(f"$KV.IM_DEFINITIONS.name.w{number}", record)
    await session.request("$KV.IM_DEFINITIONS.name.w2999", record)
    assert len({each.workflow for each in await store.deployments()}) == 3000


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (b"garbage", "incorrect header"),
        (zlib.compress(b"[]"), ""),
        (zlib.compress(b"{}"), "tasks"),
        (zlib.compress(SMALL.canonical())[:-9], "it is cut off"),
    ],
)
async def test_a_definition_that_cannot_be_read_is_told_as_such(
    store: DefinitionStore, session: Session, packed: bytes, why: str
) -> None:
    await (await bucket(session, "IM_DEFINITIONS")).put("hash.bad", packed)
    with pytest.raises(StorageUnavailable, match=f"the definition bad cannot be read: .*{why}"):
        await store.load("bad")


async def test_without_a_server_the_definitions_cannot_be_reached(
    server: EmbeddedServer, store: DefinitionStore
) -> None:
    await server.kill()
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        await store.store(SMALL)
    with pytest.raises(StorageUnavailable):
        await store.load("0" * 64)
    assert time.monotonic() - began < 2


async def test_without_an_installation_the_definitions_cannot_be_reached(session: Session) -> None:
    store = DefinitionStore(session, Subjects())
    with pytest.raises(StorageUnavailable):
        await store.store(SMALL)
    with pytest.raises(StorageUnavailable):
        await store.load("0" * 64)
    with pytest.raises(StorageUnavailable):
        await store.deployment("etl")
