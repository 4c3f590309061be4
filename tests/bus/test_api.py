"""JetStream requests on the real server: reads that are whole or say that they are not."""

import asyncio

import pytest
from bus_world import freeze, make_stream
from infinity_matrix_bus.api import MULTI_LAST_MAX, PAGE_BYTES, JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import MESSAGE_BYTES_MAX
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Session, SessionLost


@pytest.fixture
async def api(session: Session) -> JetStreamApi:
    await make_stream(session, "L", "l.>")
    return JetStreamApi(session)


async def write(session: Session, subjects: list[str], payload: bytes = b"a") -> None:
    for subject in subjects:
        await session.request(subject, payload)


async def test_multi_last_answers_the_last_of_each_subject_in_stream_order(api: JetStreamApi, session: Session) -> None:
    await write(session, ["l.a", "l.b.c", "l.d", "l.a"])
    found = await api.multi_last("L", ["l.>"])
    assert found is not None
    assert [(message.subject, message.sequence) for message in found] == [("l.b.c", 2), ("l.d", 3), ("l.a", 4)]
    assert found[0].data == b"a"
    assert found[0].at.startswith("20")
    some = await api.multi_last("L", ["l.d", "l.none", "l.b.*"])
    assert some is not None
    assert [message.subject for message in some] == ["l.b.c", "l.d"]


async def test_multi_last_of_nothing_is_empty(api: JetStreamApi) -> None:
    assert await api.multi_last("L", ["l.>"]) == []
    assert await api.multi_last("L", []) == []


@pytest.mark.parametrize("count", [MULTI_LAST_MAX, MULTI_LAST_MAX + 1])
async def test_multi_last_answers_none_above_the_servers_limit(api: JetStreamApi, session: Session, count: int) -> None:
    for number in range(count - 1):
        session.publish(f"l.{number}", b"")
    await session.request("l.last")
    found = await api.multi_last("L", ["l.>"])
    if count > MULTI_LAST_MAX:
        assert found is None
    else:
        assert found is not None
        assert len(found) == MULTI_LAST_MAX


async def test_multi_last_is_whole_beyond_what_the_server_sends_at_once(api: JetStreamApi, session: Session) -> None:
    # Above its `max_pending` of 64 MB the server ends the answer as if it were complete.
    count = 64 * 1024 * 1024 // MESSAGE_BYTES_MAX + 12
    payload = b"x" * MESSAGE_BYTES_MAX
    assert count * len(payload) > 8 * PAGE_BYTES
    await write(session, [f"l.{number}" for number in range(count)], payload)
    found = await api.multi_last("L", ["l.>"])
    assert found is not None
    assert [message.subject for message in found] == [f"l.{number}" for number in range(count)]
    assert all(message.data == payload for message in found)


async def test_multi_last_of_no_stream_is_an_error_and_not_too_much(api: JetStreamApi) -> None:
    with pytest.raises(JetStreamError, match="no such stream") as caught:
        await api.multi_last("NONE", ["l.>"])
    assert caught.value.code == 503


async def test_three_hundred_reads_at_once_do_not_mix(api: JetStreamApi, session: Session) -> None:
    await write(session, [f"l.{number % 50}.{number}" for number in range(200)])
    answers = await asyncio.gather(*(api.multi_last("L", [f"l.{number % 50}.>"]) for number in range(300)))
    for number, answer in enumerate(answers):
        assert answer is not None
        assert [message.subject for message in answer] == [
            f"l.{number % 50}.{number % 50 + step}" for step in (0, 50, 100, 150)
        ]
    assert len(session.client.direct) == 1
    assert not session._on_lost


async def test_a_read_is_told_when_the_session_is_lost(server: EmbeddedServer, api: JetStreamApi) -> None:
    await freeze(server)
    reading = asyncio.create_task(api.multi_last("L", ["l.>"]))
    await asyncio.sleep(0.05)
    await server.kill()
    with pytest.raises(SessionLost):
        await reading


async def test_a_leader_read_sees_the_last_message(api: JetStreamApi, session: Session) -> None:
    assert await api.last_message("L", "l.a") is None
    for payload in (b"one", b"", b"\x00\xff"):
        await session.request("l.a", payload)
        stored = await api.last_message("L", "l.a")
        assert stored is not None
        assert (stored.subject, stored.data) == ("l.a", payload)
    assert stored.sequence == 3
    assert await api.last_sequence("L") == 3
    with pytest.raises(JetStreamError, match="stream not found"):
        await api.last_message("NONE", "l.a")


async def test_purging_takes_what_matches(api: JetStreamApi, session: Session) -> None:
    await write(session, ["l.a.1", "l.a.2", "l.b.1"])
    assert await api.purge("L", "l.*.2") == 1
    assert await api.purge("L", "l.a.>") == 1
    assert await api.purge("L", "l.a.>") == 0
    left = await api.multi_last("L", ["l.>"])
    assert left is not None
    assert [message.subject for message in left] == ["l.b.1"]


async def test_a_paged_listing_is_complete(api: JetStreamApi) -> None:
    names = [f"c{number:03d}" for number in range(300)]
    for name in names:
        await api.create_consumer("L", name, {"ack_policy": "none", "mem_storage": True})
    assert sorted([item async for item in api.paged("CONSUMER.NAMES.L", "consumers")]) == names
    assert sorted([item["name"] async for item in api.paged("CONSUMER.LIST.L", "consumers")]) == names


async def test_consumers_are_found_updated_and_deleted(api: JetStreamApi) -> None:
    assert await api.consumer_info("L", "c") is None
    await api.create_consumer("L", "c", {"durable_name": "c", "ack_policy": "explicit"})
    await api.create_consumer("L", "c", {"durable_name": "c", "ack_policy": "explicit", "max_ack_pending": 7})
    info = await api.consumer_info("L", "c")
    assert info is not None
    assert info["config"]["max_ack_pending"] == 7
    await api.delete_consumer("L", "c")
    assert await api.consumer_info("L", "c") is None
    with pytest.raises(JetStreamError, match="consumer not found"):
        await api.delete_consumer("L", "c")


async def test_a_stream_is_found_or_not(api: JetStreamApi) -> None:
    assert await api.stream_info("NONE") is None
    info = await api.stream_info("L")
    assert info is not None
    assert info["config"]["subjects"] == ["l.>"]
