"""Schedules in the real bucket: one record each, replaced only by who has read it as it is."""

import asyncio

import pytest
from bus_world import eventually
from infinity_matrix_actors.errors import PayloadTooLarge, StorageUnavailable
from infinity_matrix_actors.schedule import Overlap, Schedule
from infinity_matrix_actors.schedule_state import ScheduleState, Tick, TickKind
from infinity_matrix_bus.codec import MESSAGE_BYTES_MAX
from infinity_matrix_bus.installation import bucket, install
from infinity_matrix_bus.schedules import ScheduleStore, StoredSchedule
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Session

SCHEDULE = Schedule(
    "nightly", "etl", "0 2 * * *", None, "Europe/Berlin", Overlap.BUFFER_ONE, 3600.0, 2.5, 1.5e9, 2.5e9 + 0.125, 7,
    {"day": "é", "n": [1, None]}, "ab" * 32,
)  # fmt: skip
STATE = ScheduleState(
    1_800_000_000.0,
    (Tick(1_799_999_940.000001), Tick(1_799_999_000.5, TickKind.BACKFILLED, "r-1", Overlap.ALLOW_ALL)),
    ("e-1", "e-2"), 3, 4, 1_799_999_880.0, True, "holidays",
)  # fmt: skip
BARE = Schedule("once", "etl", run_at=1_800_000_000.25)


@pytest.fixture
async def store(session: Session) -> ScheduleStore:
    return ScheduleStore(session, (await install(session, shards=1)).subjects())


async def read(store: ScheduleStore, name: str) -> StoredSchedule:
    stored = await store.read(name)
    assert stored is not None
    return stored


async def test_a_schedule_comes_back_as_it_was(store: ScheduleStore) -> None:
    assert await store.create(SCHEDULE, STATE)
    assert await store.create(BARE, ScheduleState(BARE.run_at))
    assert (await read(store, "nightly")).schedule == SCHEDULE
    assert (await read(store, "nightly")).state == STATE
    assert [(one.schedule, one.state) for one in await store.all()] == [
        (SCHEDULE, STATE),
        (BARE, ScheduleState(BARE.run_at)),
    ]


async def test_a_name_is_taken_once(store: ScheduleStore) -> None:
    made = await asyncio.gather(*(store.create(SCHEDULE, STATE) for _ in range(5)))
    assert sorted(made) == [False] * 4 + [True]


async def test_of_ten_who_read_the_same_one_replaces_it(store: ScheduleStore) -> None:
    await store.create(SCHEDULE, STATE)
    stored = await read(store, "nightly")
    written = await asyncio.gather(*(store.write(stored) for _ in range(10)))
    winner = [one for one in written if one is not None]
    assert len(winner) == 1
    assert await read(store, "nightly") == winner[0]
    assert await store.write(winner[0]) is not None


async def test_what_is_deleted_is_gone_and_its_name_is_free(store: ScheduleStore) -> None:
    await store.create(SCHEDULE, STATE)
    stored = await read(store, "nightly")
    assert await store.write(stored) is not None
    assert not await store.delete(stored)
    current = await read(store, "nightly")
    assert await store.delete(current)
    assert await store.read("nightly") is None
    assert await store.all() == []
    assert await store.write(current) is None
    assert await store.create(SCHEDULE, STATE)


async def test_a_record_that_cannot_be_read_hides_no_other(store: ScheduleStore, session: Session) -> None:
    await store.create(SCHEDULE, STATE)
    keys = await bucket(session, "IM_SCHEDULES")
    for number, data in enumerate([b"no JSON", b"{}", b'{"v":2}', b'{"v":1,"schedule":{},"state":{}}', b"[]"]):
        await keys.put(f"bad-{number}", data)
        assert await store.read(f"bad-{number}") is None
    assert [one.schedule.name for one in await store.all()] == ["nightly"]


async def test_names_that_are_none_are_nobodys(store: ScheduleStore) -> None:
    await store.create(SCHEDULE, STATE)
    for name in ("*", ">", "", "a.b", "night ly"):
        assert await store.read(name) is None


async def test_every_change_is_heard(store: ScheduleStore) -> None:
    heard: list[str] = []
    watching = await store.watch(lambda subject, reply, data, headers: heard.append(store.name_of(subject)))
    await store.create(SCHEDULE, STATE)
    await store.delete(await read(store, "nightly"))
    await eventually(lambda: heard == ["nightly", "nightly"], "two changes")
    await watching.close()


async def test_what_is_too_large_is_refused(store: ScheduleStore) -> None:
    with pytest.raises(PayloadTooLarge):
        await store.create(Schedule("large", "etl", "@daily", input="x" * MESSAGE_BYTES_MAX), STATE)


async def test_without_a_server_it_is_unavailable(store: ScheduleStore, server: EmbeddedServer) -> None:
    await store.create(SCHEDULE, STATE)
    stored = await read(store, "nightly")
    assert await store.now() > 1.7e9
    await server.stop()
    for call in (store.read("nightly"), store.all(), store.write(stored), store.now()):
        with pytest.raises(StorageUnavailable):
            await call
