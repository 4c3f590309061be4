"""The store of checkpoints on a real server: what an owner that lags cannot set back, and what holds the mark."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from harness import until
from infinity_matrix_actors.definition import TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.fact import DECIDE_VERSION, Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator import checkpoints as checkpoints_module
from infinity_matrix_coordinator.checkpoint_store import Checkpoint, CheckpointStore, Mark
from infinity_matrix_coordinator.checkpoints import Checkpoints
from infinity_matrix_coordinator.clock import StreamClock
from infinity_matrix_coordinator.log_identity import LogIdentity
from infinity_matrix_coordinator.mailbox import Mailbox, Quarantine

PLAN = Plan.of(WorkflowDefinition("w", (TaskDefinition("a", wait_for="go"),)))
CHECKPOINT = Checkpoint("e1", PLAN.digest, 5, (), True, 0, None)
HEAD = 100


@dataclass
class Target:
    """What the checkpoints need of a shard."""

    mailbox: Mailbox = field(default_factory=lambda: Mailbox({PLAN.digest: PLAN}.get))
    clock: StreamClock = field(default_factory=StreamClock)
    is_live: bool = True
    next_sequence: int = HEAD
    awaited: set[str] = field(default_factory=set)
    reads: int = 0

    def position(self) -> int:
        return HEAD

    def note_identity(self) -> LogIdentity | None:
        return None

    def read_on(self) -> None:
        self.reads += 1

    def is_awaited(self, execution: str) -> bool:
        return execution in self.awaited

    async def plan_of_digest(self, digest: str) -> Plan | None:
        return PLAN


@pytest.fixture
async def connection(server: EmbeddedServer) -> AsyncIterator[Connection]:
    connection = await Connection(Endpoint(server.connect_url)).open()
    await install(connection.session, shards=1)
    yield connection
    await connection.close()


def store_on(session: Session, kind: type[CheckpointStore] = CheckpointStore) -> CheckpointStore:
    async def now() -> Session:
        return session

    return kind(session, Subjects("im"), 0, ArtifactStore(now, Subjects("im")))


def checkpoints_on(
    connection: Connection, target: Target, kind: type[CheckpointStore] = CheckpointStore
) -> Checkpoints:
    session = connection.session
    return Checkpoints(store_on(session, kind), target, JetStreamApi(session), Subjects("im"), 0)


async def test_a_checkpoint_is_replaced_only_by_who_knows_it(connection: Connection) -> None:
    store = store_on(connection.session)
    first = await store.save(CHECKPOINT, {"v": 1})
    assert first is not None
    assert await store.save(CHECKPOINT, {"v": 1}) is None
    newer = await store.save(replace(CHECKPOINT, folded=9, revision=first), {"v": 1})
    assert newer is not None
    assert await store.save(replace(CHECKPOINT, folded=7, revision=first), {"v": 1}) is None
    kept = await store.read("e1")
    assert kept is not None
    assert (kept.folded, kept.revision) == (9, newer)


async def test_a_mark_is_not_set_back_by_an_owner_that_lags(connection: Connection) -> None:
    store = store_on(connection.session)
    raised = await store.raise_mark(Mark(), 50, None)
    assert await store.raise_mark(Mark(), 20, None) == raised
    assert (await store.mark()).sequence == 50


async def test_the_mark_does_not_pass_what_is_being_stored(connection: Connection) -> None:
    gate = asyncio.Event()

    class SlowStore(CheckpointStore):
        async def save(self, checkpoint: Checkpoint, snapshot: dict[str, Any]) -> int | None:
            await gate.wait()
            return await super().save(checkpoint, snapshot)

    target = Target()
    checkpoints = checkpoints_on(connection, target, SlowStore)
    target.mailbox.deliver(Started("e1", 1.0, "w", PLAN.digest), 7)
    saving = asyncio.create_task(checkpoints.save(HEAD))
    for _ in range(5):
        assert min(checkpoints.position(HEAD), target.mailbox.position(HEAD)) == 7
        await asyncio.sleep(0)
    gate.set()
    await saving
    assert min(checkpoints.position(HEAD), target.mailbox.position(HEAD)) == HEAD


async def test_a_checkpoint_of_another_version_is_left_where_it_is(connection: Connection) -> None:
    store = store_on(connection.session)
    await store.save(replace(CHECKPOINT, decide=DECIDE_VERSION + 1), {"v": 1})
    target = Target()
    assert await checkpoints_on(connection, target).load(lambda *timer: None) == []
    assert "e1" in target.mailbox.quarantined
    assert target.mailbox.position(HEAD) == HEAD
    assert not target.mailbox.passive
    assert await store.read("e1") is not None


async def test_what_only_waits_is_let_go_when_there_are_too_many(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "ACTIVE_MAX", 10)
    target = Target()
    mailbox = target.mailbox
    checkpoints = checkpoints_on(connection, target)
    for number in range(14):
        mailbox.deliver(Started(f"e{number}", 1.0, "w", PLAN.digest), number + 1)
    working, awaited, soon = mailbox.executions["e0"], "e1", mailbox.executions["e2"]
    working.open.add("a")
    target.awaited.add(awaited)
    soon.tasks["a"].retry_at = target.clock.now() + 1.0
    await checkpoints.thin_out()
    # Down to nine tenths: the oldest that only wait and are not called already.
    assert list(mailbox.passive) == ["e3", "e4", "e5", "e6"]
    assert {"e0", "e1", "e2"} < mailbox.executions.keys()
    assert (await store_on(connection.session).read("e3")) is not None


async def test_the_log_is_read_no_faster_than_a_crowd_leaves(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "ACTIVE_MAX", 10)
    monkeypatch.setattr(checkpoints_module, "IN_MEMORY_MAX", 15)
    gate = asyncio.Event()

    class SlowStore(CheckpointStore):
        async def save(self, checkpoint: Checkpoint, snapshot: dict[str, Any]) -> int | None:
            await gate.wait()
            return await super().save(checkpoint, snapshot)

    target = Target()
    checkpoints = checkpoints_on(connection, target, SlowStore)
    calls: list[int] = []
    target.mailbox.on_crowd = lambda: calls.append(len(target.mailbox.executions))
    for number in range(20):
        target.mailbox.deliver(Started(f"e{number}", 1.0, "w", PLAN.digest), number + 1)
    assert calls == list(range(11, 21))
    assert not checkpoints.is_behind
    thinning = asyncio.create_task(checkpoints.thin_out())
    await asyncio.sleep(0)
    assert checkpoints.is_behind
    gate.set()
    await thinning
    assert (len(target.mailbox.executions), checkpoints.is_behind, target.reads) == (9, False, 1)


async def test_a_crowd_at_work_is_not_looked_through_at_each_start(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "ACTIVE_MAX", 10)
    target = Target()
    checkpoints = checkpoints_on(connection, target)
    calls: list[int] = []
    looks: list[int] = []
    target.mailbox.on_crowd = lambda: calls.append(len(target.mailbox.executions))
    for number in range(40):
        target.mailbox.deliver(Started(f"e{number}", 1.0, "w", PLAN.digest), number + 1)
        target.mailbox.executions[f"e{number}"].open.add("a")
        if calls:
            await checkpoints.thin_out()
            calls.clear()
            looks.append(number + 1)
    assert looks == [11, 14, 18, 23, 29, 37]
    assert not target.mailbox.passive
    assert not checkpoints.is_behind


async def test_the_record_of_what_stands_still_is_kept_when_others_end(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "ENDED_KEPT_S", 0.0)
    target, store = Target(), store_on(connection.session)
    mailbox = target.mailbox
    checkpoints = Checkpoints(store, target, JetStreamApi(connection.session), Subjects("im"), 0, after_s=0.02)
    for number, execution in enumerate(("still", "over"), 1):
        mailbox.deliver(Started(execution, 1.0, "w", PLAN.digest), number)
    await checkpoints.save(HEAD)
    assert mailbox.passive.keys() == {"still", "over"}
    del mailbox.passive["still"]
    mailbox.quarantined["still"] = Quarantine(1, "its actor raised")
    mailbox.forget("over")
    running = asyncio.create_task(checkpoints.run())
    try:
        await until(lambda: is_gone(store, "over"), 5.0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await store.read("still") is not None


async def is_gone(store: CheckpointStore, execution: str) -> bool:
    return await store.read(execution) is None
