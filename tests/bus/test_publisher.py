"""Publishes and their fates on a real stream, and the outbox that does not give up."""

import asyncio
import os
import signal
from collections import Counter

import pytest
from bus_world import WRITE_ONCE, connected, eventually, freeze, make_stream, messages_in
from infinity_matrix_actors.errors import PayloadTooLarge, StorageUnavailable
from infinity_matrix_bus import publisher as publisher_module
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import MESSAGE_BYTES_MAX
from infinity_matrix_bus.publisher import IN_FLIGHT_MAX, Ack, Fate, Outbox, Publisher, read_ack
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import InvalidSubject, Session, SessionLost

MESSAGE_ID = b"NATS/1.0\r\nNats-Msg-Id: once\r\n\r\n"


async def fate_of(publisher: Publisher, subject: str, payload: bytes = b"a", headers: bytes = b"") -> Ack:
    future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
    publisher.publish(subject, payload, future.set_result, headers)
    return await asyncio.wait_for(future, 10)


async def subjects_in(session: Session, stream: str) -> dict[str, int]:
    """Every subject of a stream, and how many messages it has."""
    counts: dict[str, int] = {}
    api = JetStreamApi(session)
    while True:
        record = await api.call(f"STREAM.INFO.{stream}", {"subjects_filter": ">", "offset": len(counts)})
        counts |= record["state"].get("subjects") or {}
        if len(counts) >= int(record.get("total", 0)):
            return counts


# One publish.


async def test_five_thousand_pipelined_publishes_are_all_acknowledged_in_order(session: Session) -> None:
    await make_stream(session, "L", "l.>")
    publisher = Publisher(session)
    acks: list[Ack] = []
    for number in range(5000):
        publisher.publish(f"l.{number}", b"x" * 100, acks.append)
    assert publisher.in_flight == 5000
    await eventually(lambda: len(acks) == 5000, "all acks")
    assert [ack.sequence for ack in acks] == list(range(1, 5001))
    assert {ack.fate for ack in acks} == {Fate.STORED}
    assert publisher.in_flight == 0
    assert not session._replies
    assert await messages_in(session, "L") == 5000


def test_a_copy_of_a_publish_that_is_not_yet_stored_has_an_unknown_fate() -> None:
    # What a cluster's leader answers the second of two owners; the first may still come to nothing.
    answer = b'{"error":{"code":400,"err_code":10201,"description":"duplicate message id is in process"}}'
    assert read_ack(answer, None).fate is Fate.UNKNOWN


async def test_a_write_once_subject_is_taken_by_the_first(session: Session) -> None:
    await make_stream(session, "L", "l.>", **WRITE_ONCE)
    publisher = Publisher(session)
    assert (await fate_of(publisher, "l.a", b"first")).fate is Fate.STORED
    second = await fate_of(publisher, "l.a", b"second")
    assert second.fate is Fate.TAKEN
    assert second.is_there
    stored = await JetStreamApi(session).last_message("L", "l.a")
    assert stored is not None
    assert stored.data == b"first"


@pytest.mark.parametrize("limit", [{"max_msgs": 3}, {"max_bytes": 400}, {"max_msg_size": 100}])
async def test_a_full_stream_refuses_and_that_is_not_taken(session: Session, limit: dict[str, int]) -> None:
    await make_stream(session, "L", "l.>", **WRITE_ONCE, **limit)
    publisher = Publisher(session)
    for number in range(3):
        await fate_of(publisher, f"l.{number}", b"x" * 50)
    ack = await fate_of(publisher, "l.new", b"x" * 300)
    assert ack.fate is Fate.REFUSED
    assert not ack.is_there
    assert "max" in ack.reason


async def test_a_remembered_message_id_is_a_duplicate_and_does_not_say_it_is_there(session: Session) -> None:
    await make_stream(session, "W", "w.>", **WRITE_ONCE, retention="workqueue")
    publisher = Publisher(session)
    assert (await fate_of(publisher, "w.a", headers=MESSAGE_ID)).fate is Fate.STORED
    await JetStreamApi(session).purge("W", "w.a")
    ack = await fate_of(publisher, "w.a", headers=MESSAGE_ID)
    assert ack.fate is Fate.DUPLICATE
    assert not ack.is_there


async def test_a_subject_that_no_stream_takes_is_refused(session: Session) -> None:
    ack = await fate_of(Publisher(session), "nowhere")
    assert ack.fate is Fate.REFUSED
    assert "no stream" in ack.reason


async def test_an_answer_that_is_no_pub_ack_leaves_the_fate_unknown(session: Session) -> None:
    await session.subscribe("odd", lambda _, reply, data, __: session.publish(reply, data))
    publisher = Publisher(session)
    for answer in (b"", b"[]", b"hello", b"\xff", b'{"seq": "x"}'):
        assert (await fate_of(publisher, "odd", answer)).fate is Fate.UNKNOWN


async def test_what_cannot_be_sent_raises_and_is_not_in_flight(session: Session) -> None:
    publisher = Publisher(session)
    with pytest.raises(PayloadTooLarge):
        publisher.publish("l.a", b"x" * (MESSAGE_BYTES_MAX + 1), lambda ack: None)
    with pytest.raises(InvalidSubject):
        publisher.publish("l a", b"", lambda ack: None)
    assert publisher.in_flight == 0
    assert not session._replies


async def test_when_the_server_dies_every_fate_is_told_exactly_once(server: EmbeddedServer, session: Session) -> None:
    await make_stream(session, "L", "l.>", **WRITE_ONCE)
    publisher = Publisher(session)
    fates: dict[int, list[Ack]] = {number: [] for number in range(20_000)}
    for number in range(10_000):
        publisher.publish(f"l.{number}", b"x" * 1000, fates[number].append)
    await eventually(lambda: any(fates.values()), "the first ack")
    for number in range(10_000, 20_000):
        publisher.publish(f"l.{number}", b"x" * 1000, fates[number].append)
    # Before the loop's turn ends, so that the last ones are not sent yet.
    os.kill(server.pid, signal.SIGKILL)
    await eventually(lambda: all(fates.values()), "all fates")
    assert {len(acks) for acks in fates.values()} == {1}
    assert publisher.in_flight == 0
    known = Counter(acks[0].fate for acks in fates.values())
    assert set(known) == {Fate.STORED, Fate.UNKNOWN}
    with pytest.raises(SessionLost):
        publisher.publish("l.a", b"", lambda ack: None)
    # What was acknowledged is there after the crash.
    await server.kill()
    await server.start()
    async with connected(server) as connection:
        there = await subjects_in(connection.session, "L")
        for number, acks in fates.items():
            assert acks[0].fate is Fate.UNKNOWN or f"l.{number}" in there


async def test_without_an_ack_in_time_the_fate_is_unknown_and_told_once(
    server: EmbeddedServer, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher_module, "ACK_TIMEOUT_S", 0.3)
    await make_stream(session, "L", "l.>")
    publisher = Publisher(session)
    acks: list[str] = []

    def on_ack(name: str, ack: Ack) -> None:
        acks.append(f"{name} {ack.fate.value}")
        if name == "a":
            raise RuntimeError("a fault of its owner")

    await freeze(server)
    for name in "abc":
        publisher.publish(f"l.{name}", b"", lambda ack, name=name: on_ack(name, ack))  # type: ignore[misc]
    await eventually(lambda: len(acks) == 3, "their fates")
    server.resume()
    # The late acks come before this one, and are nobody's.
    assert (await fate_of(publisher, "l.d")).sequence == 4
    assert acks == ["a unknown", "b unknown", "c unknown"]
    assert "a fault of its owner" in caplog.text
    assert not session._replies


# The outbox.


async def opened(connection: object) -> Outbox:
    outbox = Outbox(connection)  # type: ignore[arg-type]
    await connection.add_listener(outbox.on_session)  # type: ignore[attr-defined]
    return outbox


async def test_the_outbox_delivers_everything_exactly_once_over_crashes(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        outbox = await opened(connection)
        done: Counter[int] = Counter()
        for number in range(12_000):
            outbox.post(f"l.{number}", b"x" * 500, lambda ack, number=number: done.update([number]))  # type: ignore[misc]
        assert outbox.pending == 12_000
        assert outbox.is_full
        assert len(connection.session._replies) == IN_FLIGHT_MAX
        for share in (1000, 6000):
            await eventually(lambda share=share: len(done) > share, f"{share} of them")  # type: ignore[misc]
            await server.kill()
            # One more, so that there is something under way even where the others were all done by then.
            late = 12_000 + share
            outbox.post(f"l.{late}", b"x", lambda ack, number=late: done.update([number]))  # type: ignore[misc]
            assert await outbox.drained(0.1) is False
            await server.start()
        assert await outbox.drained(30)
        assert outbox.pending == 0
        assert len(done) == 12_002
        assert set(done.values()) == {1}
        stored = await subjects_in(await connection.connected(5), "L")
        assert len(stored) == 12_002
        assert set(stored.values()) == {1}
        outbox.close()


async def test_facts_posted_without_a_connection_go_out_with_the_next(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        outbox = await opened(connection)
        await server.kill()
        await eventually(lambda: not connection.is_connected, "the loss")
        acks: list[Ack] = []
        outbox.post("l.a", b"", acks.append)
        assert outbox.pending == 1
        await server.start()
        assert await outbox.drained(10)
        assert [ack.fate for ack in acks] == [Fate.STORED]


async def test_a_full_stream_is_tried_again_until_there_is_room(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(server) as connection:
        session = connection.session
        await make_stream(session, "L", "l.>", **WRITE_ONCE, max_msgs=5)
        outbox = await opened(connection)
        acks: list[Ack] = []
        for number in range(8):
            outbox.post(f"l.{number}", b"", acks.append)
        await eventually(lambda: "maximum messages exceeded" in caplog.text, "the refusal in the log")
        assert len(acks) == 5
        assert outbox.pending == 3
        assert await outbox.drained(0.2) is False
        assert await JetStreamApi(session).purge("L", "l.0") == 1
        await eventually(lambda: len(acks) == 6, "one more")
        assert await JetStreamApi(session).purge("L", "l.1") == 1
        assert await JetStreamApi(session).purge("L", "l.2") == 1
        assert await outbox.drained(10)
        assert {ack.fate for ack in acks} == {Fate.STORED}
        assert caplog.text.count("fact_refused") <= 2


async def test_posting_from_within_on_done_keeps_the_count(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        outbox = await opened(connection)
        seen: list[tuple[int, bool]] = []

        def next_one(number: int) -> None:
            if number < 50:
                outbox.post(f"l.{number}", b"", lambda ack: next_one(number + 1))
                seen.append((outbox.pending, outbox._empty.is_set()))

        next_one(0)
        assert await outbox.drained(10)
        assert len(seen) == 50
        assert set(seen) == {(1, False)}
        assert await messages_in(connection.session, "L") == 50


async def test_an_owner_that_raises_does_not_hold_up_the_others(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(server) as connection:
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        outbox = await opened(connection)

        def fail(ack: Ack) -> None:
            raise RuntimeError("a fault of its owner")

        acks: list[Ack] = []
        outbox.post("l.a", b"", fail)
        outbox.post("l.b", b"", acks.append)
        outbox.post("l.c", b"", fail)
        assert await outbox.drained(5)
        assert len(acks) == 1
        assert "a fault of its owner" in caplog.text


async def test_a_fact_that_no_server_would_take_is_refused_and_the_next_goes_out(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        outbox = await opened(connection)
        acks: list[Ack] = []
        outbox.post("l.a", b"x" * (MESSAGE_BYTES_MAX + 1), acks.append)
        outbox.post("l.a b", b"", acks.append)
        outbox.post("l.c", b"", acks.append)
        assert await outbox.drained(5)
        assert [ack.fate for ack in acks] == [Fate.REFUSED, Fate.REFUSED, Fate.STORED]
        with pytest.raises(StorageUnavailable, match="the limit is"):
            await outbox.publish("l.d", b"x" * (MESSAGE_BYTES_MAX + 1), 5)


async def test_an_awaited_fact_is_stored_then_taken(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        outbox = await opened(connection)
        assert (await outbox.publish("l.a", b"", 5)).fate is Fate.STORED
        assert (await outbox.publish("l.a", b"", 5)).fate is Fate.TAKEN


async def test_an_awaited_fact_that_is_not_confirmed_in_time_raises_and_is_still_tried(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        outbox = await opened(connection)
        with pytest.raises(StorageUnavailable, match=r"no write to l\.a within 0\.2 s"):
            await outbox.publish("l.a", b"", 0.2)
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        assert await outbox.drained(5)
        assert await messages_in(connection.session, "L") == 1


async def test_who_awaits_a_fact_is_told_after_its_own_time_whatever_others_wait_for(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        outbox = await opened(connection)
        loop = asyncio.get_running_loop()
        took_s: dict[float, float] = {}

        async def publish(timeout_s: float) -> None:
            began = loop.time()
            with pytest.raises(StorageUnavailable):
                await outbox.publish(f"l.{timeout_s * 10:g}", b"", timeout_s)
            took_s[timeout_s] = loop.time() - began

        longest = asyncio.create_task(outbox.publish("l.longest", b"", 60))
        async with asyncio.timeout(10):
            await asyncio.gather(*(publish(timeout_s) for timeout_s in (1.0, 0.2, 0.6)))
        assert list(took_s) == [0.2, 0.6, 1.0]
        assert all(took >= timeout_s for timeout_s, took in took_s.items()), took_s
        assert not longest.done()
        outbox.close()
        with pytest.raises(StorageUnavailable, match="closed"):
            await longest


async def test_a_fact_of_a_few_tries_is_given_up_and_holds_nothing_up(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        outbox = await opened(connection)
        acks: list[Ack] = []
        outbox.post("l.a", b"", acks.append, 3)
        outbox.post("l.b", b"", acks.append)
        await eventually(lambda: len(acks) == 1, "it was tried three times")
        assert acks[0].fate is Fate.REFUSED
        assert outbox.pending == 1
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        assert await outbox.drained(5)
        assert await messages_in(connection.session, "L") == 1


async def test_a_closed_outbox_gives_up_and_says_so(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        outbox = await opened(connection)
        acks: list[Ack] = []
        outbox.post("l.a", b"", acks.append)
        awaited = asyncio.create_task(outbox.publish("l.b", b"", 60))
        draining = asyncio.create_task(outbox.drained(60))
        await eventually(lambda: len(outbox._timers) == 2, "both waiting to be tried again")
        outbox.close()
        with pytest.raises(StorageUnavailable, match="closed"):
            await awaited
        assert await draining is False
        outbox.post("l.c", b"", acks.append)
        with pytest.raises(StorageUnavailable, match="closed"):
            await outbox.publish("l.d", b"", 60)
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        assert (await fate_of(Publisher(connection.session), "l.end")).fate is Fate.STORED
        assert not acks
        assert await messages_in(connection.session, "L") == 1


async def test_acks_that_come_after_closing_are_nobodys(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await make_stream(connection.session, "L", "l.>", **WRITE_ONCE)
        outbox = await opened(connection)
        acks: list[Ack] = []
        outbox.post("l.a", b"", acks.append)
        outbox.close()
        assert (await fate_of(Publisher(connection.session), "l.end")).sequence == 2
        assert not acks
