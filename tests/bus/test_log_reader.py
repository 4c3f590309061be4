"""Reading a real stream in order, once, from anywhere, whatever becomes of the consumer."""

import asyncio
from typing import Any

import pytest
from bus_world import eventually, freeze, make_stream
from infinity_matrix_bus import puller as puller_module
from infinity_matrix_bus.api import JetStreamApi, JetStreamError
from infinity_matrix_bus.log_reader import Entry, LogReader, parse_ack_reply
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Session

STREAM = "L"


async def fill(session: Session, count: int, first: int = 0, subject: str = "l") -> None:
    for number in range(first, first + count - 1):
        session.publish(f"{subject}.{number}", b"%d" % number)
    await session.request(f"{subject}.{first + count - 1}", b"%d" % (first + count - 1))


class Reading:
    """A reader and what it has read."""

    def __init__(self, session: Session, **options: Any) -> None:
        self.entries: list[Entry] = []
        self.reader = LogReader(session, STREAM, self.entries.append, **options)

    @property
    def numbers(self) -> list[int]:
        return [int(entry.data) for entry in self.entries]

    async def __aenter__(self) -> "Reading":
        await self.reader.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.reader.close()

    async def has(self, count: int) -> None:
        await eventually(lambda: len(self.entries) >= count, f"{count} entries")


async def consumers(session: Session) -> list[str]:
    return [item["name"] async for item in JetStreamApi(session).paged(f"CONSUMER.LIST.{STREAM}", "consumers")]


async def test_twenty_thousand_messages_are_read_in_order_and_once(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 20_000)
    async with Reading(session) as reading:
        assert reading.reader.pending == 20_000
        await reading.has(20_000)
        # And what comes later.
        await fill(session, 1000, first=20_000)
        await reading.has(21_000)
    assert reading.numbers == list(range(21_000))
    assert [entry.sequence for entry in reading.entries] == list(range(1, 21_001))
    assert [entry.pending for entry in reading.entries[:20_000]] == list(range(19_999, -1, -1))
    times = [entry.at for entry in reading.entries]
    assert times == sorted(times)
    assert reading.entries[7].subject == "l.7"
    assert not await consumers(session)


async def test_reading_begins_at_the_sequence_asked_for(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 100)
    async with Reading(session, from_sequence=91) as reading:
        assert reading.reader.pending == 10
        await reading.has(10)
    assert reading.numbers == list(range(90, 100))
    async with Reading(session, from_sequence=101) as reading:
        assert reading.reader.pending == 0
        await fill(session, 1, first=100)
        await reading.has(1)
    assert reading.numbers == [100]


async def test_filters_choose_what_is_read(session: Session) -> None:
    await make_stream(session, STREAM, "", subjects=["a.>", "b.>", "c.>"])
    for number in range(30):
        await session.request(f"{'abc'[number % 3]}.{number}", b"%d" % number)
    async with Reading(session, filters=("a.*", "c.>")) as reading:
        assert reading.reader.pending == 20
        await reading.has(20)
    assert reading.numbers == [number for number in range(30) if number % 3 != 1]
    assert reading.reader.next_sequence == 31


async def test_new_only_reads_what_comes_from_now_on(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 50)
    async with Reading(session, new_only=True) as reading:
        await fill(session, 10, first=50)
        await reading.has(10)
    assert reading.numbers == list(range(50, 60))


async def test_new_only_misses_nothing_when_its_consumer_breaks_before_the_first_message(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 50)
    async with Reading(session, new_only=True) as reading:
        [name] = await consumers(session)
        await JetStreamApi(session).delete_consumer(STREAM, name)
        await fill(session, 10, first=50)
        await reading.has(10)
    assert reading.numbers == list(range(50, 60))


async def test_a_reader_whose_consumers_are_deleted_mends_itself_and_misses_nothing(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 20_000)
    api = JetStreamApi(session)
    async with Reading(session, filters=("l.>",)) as reading:
        for share in (1, 7000, 14_000, 20_000):
            await reading.has(share)
            await eventually(lambda: reading.reader._mending is None, "the reader mended")
            await api.delete_consumer(STREAM, reading.reader._consumer)
        await fill(session, 100, first=20_000)
        await reading.has(20_100)
        assert await consumers(session)
    assert reading.numbers == list(range(20_100))
    assert not await consumers(session)


async def test_a_reader_finds_its_stream_again_after_it_was_away(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 5)
    async with Reading(session) as reading:
        await reading.has(5)
        await JetStreamApi(session).call(f"STREAM.DELETE.{STREAM}")
        await make_stream(session, STREAM, "l.>", first_seq=6)
        await fill(session, 5, first=5)
        await reading.has(10)
    assert reading.numbers == list(range(10))


async def test_a_frozen_moment_of_the_server_loses_and_doubles_nothing(
    server: EmbeddedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(puller_module, "SILENCE_MAX_S", 0.3)
    await make_stream(session, STREAM, "l.>")
    await fill(session, 5000)
    async with Reading(session) as reading:
        await reading.has(1000)
        first = reading.reader._consumer
        await freeze(server)
        await eventually(lambda: reading.reader._mending is not None, "the reader noticing")
        server.resume()
        await eventually(lambda: reading.reader._mending is None, "the reader mended")
        assert reading.reader._consumer != first
        await fill(session, 100, first=5000)
        await reading.has(5100)
    assert reading.numbers == list(range(5100))


async def test_a_paused_reader_reads_no_more_than_it_has_room_for_and_goes_on(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 1000)
    room = 100
    reading = Reading(session, capacity=lambda: room - len(reading.entries))
    async with reading:
        await reading.has(100)
        await session.client.flush()
        assert len(reading.entries) == 100
        room = 250
        reading.reader.resume()
        await reading.has(250)
        await session.client.flush()
        assert len(reading.entries) == 250
        room = 10_000
        reading.reader.resume()
        await reading.has(1000)
    assert reading.numbers == list(range(1000))


async def test_remaining_says_what_is_still_to_come(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    await fill(session, 100)
    room = 30
    reading = Reading(session, capacity=lambda: room - len(reading.entries))
    async with reading:
        await reading.has(30)
        assert await reading.reader.remaining() == 70
        await JetStreamApi(session).purge(STREAM, "l.>")
        assert await reading.reader.remaining() == 0


async def test_a_stream_that_is_not_there_is_told_at_once(session: Session) -> None:
    with pytest.raises(JetStreamError, match="stream not found"):
        await LogReader(session, "NONE", lambda entry: None).open()


async def test_a_closed_reader_reads_nothing_more(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    async with Reading(session) as reading:
        await fill(session, 1)
        await reading.has(1)
        await reading.reader.close()
        await fill(session, 5, first=1)
        reading.reader.resume()
        await session.client.flush()
    assert reading.numbers == [0]


async def test_closing_while_it_mends_leaves_nothing(session: Session) -> None:
    await make_stream(session, STREAM, "l.>")
    before = asyncio.all_tasks()
    async with Reading(session) as reading:
        await JetStreamApi(session).call(f"STREAM.DELETE.{STREAM}")
        await eventually(lambda: reading.reader._mending is not None, "the mending")
        await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before


def test_ack_replies_are_read_in_both_forms() -> None:
    assert parse_ack_reply("$JS.ACK.S.c.2.30.4.1500000000.6") == (2, 30, 4, 1.5, 6)
    assert parse_ack_reply("$JS.ACK.hub.ACC.S.c.2.30.4.1500000000.6.rnd") == (2, 30, 4, 1.5, 6)
