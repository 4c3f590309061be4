"""The facts of one execution, read from a real log at once or followed as they come."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from bus_world import eventually
from infinity_matrix_actors.fact import Command, CommandKind, Fact, Finished, Outcome, Started, TaskError
from infinity_matrix_bus import history as history_module
from infinity_matrix_bus.api import MULTI_LAST_MAX, JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.facts import command_payload, failed_payload, finished_payload, started_payload
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import follow_facts, read_all, read_facts
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.log_reader import LogReader
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, shard_of

SHARDS = 2
EXECUTION = "exec-1"
SHARD = shard_of(EXECUTION, SHARDS)


@pytest.fixture
async def subjects(session: Session) -> Subjects:
    return (await install(session, shards=SHARDS)).subjects()


async def write(session: Session, subject: str, payload: bytes) -> None:
    assert b"error" not in await session.request(subject, payload)


async def begin(session: Session, subjects: Subjects) -> None:
    started = Started(EXECUTION, 0.0, "etl", "d" * 64, {"n": 1}, {})
    await write(session, subjects.started(SHARD, EXECUTION), started_payload(started))


async def give_outcomes(session: Session, subjects: Subjects, count: int, first: int = 0) -> None:
    """Outcomes of tasks t<n>, the last one confirmed."""
    for number in range(first, first + count):
        subject = subjects.outcome(SHARD, EXECUTION, "a", f"t{number}", 1)
        if number < first + count - 1:
            session.publish(subject, encode({"result": number}))
        else:
            await write(session, subject, encode({"result": number}))


async def read(session: Session, subjects: Subjects) -> list[tuple[int, Fact]]:
    return await read_facts(GatheredReads(session), subjects, SHARDS, EXECUTION)


def results(facts: list[tuple[int, Fact]]) -> list[object]:
    return [fact.result for _, fact in facts if isinstance(fact, Outcome)]


async def test_the_facts_of_an_execution_are_read_in_order_and_no_others(session: Session, subjects: Subjects) -> None:
    await begin(session, subjects)
    await give_outcomes(session, subjects, 2)
    stranger = next(f"x{n}" for n in range(100) if shard_of(f"x{n}", SHARDS) == SHARD)
    await write(
        session, subjects.started(SHARD, stranger), started_payload(Started(stranger, 0.0, "etl", "d", None, {}))
    )
    failed = failed_payload(TaskError("boom", "it broke", retryable=False))
    await write(session, subjects.outcome(SHARD, EXECUTION, "a", "t2", 1), failed)
    await write(session, subjects.command(SHARD, EXECUTION, "cancel", "c1"), command_payload(CommandKind.CANCEL, "why"))
    finished = Finished(EXECUTION, 0.0, 1, "failed", {"type": "boom"})
    await write(session, subjects.finished(SHARD, EXECUTION, 1), finished_payload(finished, {}))
    facts = await read(session, subjects)
    assert [type(fact).__name__ for _, fact in facts] == [
        "Started", "Outcome", "Outcome", "Outcome", "Command", "Finished",
    ]  # fmt: skip
    assert [sequence for sequence, _ in facts] == [1, 2, 3, 5, 6, 7]
    started, command = facts[0][1], facts[4][1]
    assert isinstance(started, Started)
    assert (started.workflow, started.input) == ("etl", {"n": 1})
    assert abs(started.at - time.time()) < 60
    assert isinstance(command, Command)
    assert command.reason == "why"
    assert results(facts) == [0, 1, None]


async def test_an_execution_without_facts_has_none(session: Session, subjects: Subjects) -> None:
    assert await read(session, subjects) == []


async def test_forged_and_strange_messages_are_no_facts(session: Session, subjects: Subjects) -> None:
    await begin(session, subjects)
    genuine = subjects.outcome(SHARD, EXECUTION, "a", "t1", 1)
    await write(session, genuine[:-16] + "0" * 16, encode({"result": "forged"}))
    await write(session, f"im.fact.{SHARD}.{EXECUTION}.nonsense", b"{}")
    await write(session, subjects.command(SHARD, EXECUTION, "cancel", "c1"), b"garbage")
    assert [type(fact).__name__ for _, fact in await read(session, subjects)] == ["Started"]


@pytest.mark.parametrize("count", [MULTI_LAST_MAX - 1, MULTI_LAST_MAX, 3000])
async def test_long_histories_are_read_whole(session: Session, subjects: Subjects, count: int) -> None:
    await begin(session, subjects)
    await give_outcomes(session, subjects, count)
    facts = await read(session, subjects)
    assert isinstance(facts[0][1], Started)
    assert results(facts) == list(range(count))
    sequences = [sequence for sequence, _ in facts]
    assert sequences == sorted(sequences)


async def test_times_are_the_streams_whichever_way_they_are_read(session: Session, subjects: Subjects) -> None:
    await begin(session, subjects)
    await give_outcomes(session, subjects, 5)
    at_once = await read(session, subjects)
    async with following(session, subjects) as facts:
        followed = [await anext(facts) for _ in range(6)]
    assert [sequence for sequence, _ in followed] == [sequence for sequence, _ in at_once]
    for (_, one), (_, other) in zip(at_once, followed, strict=True):
        assert one.at == pytest.approx(other.at, abs=1e-6)


# read_all


async def test_reading_all_of_nothing_is_empty_at_once(session: Session, subjects: Subjects) -> None:
    began = time.monotonic()
    assert await read_all(session, subjects.facts_stream(SHARD), ("im.fact.>",)) == []
    assert time.monotonic() - began < 1


async def test_reading_all_ends_although_there_is_always_one_more(
    session: Session, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await give_outcomes(session, subjects, 5000)
    opened = LogReader.open

    async def open_and_write(reader: LogReader) -> LogReader:
        await opened(reader)
        # The server has all these before it sees the second pull.
        for number in range(20_000):
            session.publish(subjects.started(SHARD, f"more{number}"), b"{}")
        return reader

    monkeypatch.setattr(LogReader, "open", open_and_write)
    entries = await read_all(session, subjects.facts_stream(SHARD), (subjects.facts_of_shard(SHARD),))
    assert 5000 <= len(entries) < 10_000
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))


async def test_reading_all_ends_when_what_was_to_come_is_purged(
    session: Session, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "READ_STALL_S", 0.1)
    await give_outcomes(session, subjects, 10)
    stream = subjects.facts_stream(SHARD)
    opened = LogReader.open

    async def open_and_purge(reader: LogReader) -> LogReader:
        # Between the consumer's making, which counts what is to come, and the first pull's arrival.
        await opened(reader)
        await JetStreamApi(session).purge(stream, "im.fact.>")
        return reader

    monkeypatch.setattr(LogReader, "open", open_and_purge)
    monkeypatch.setattr("infinity_matrix_bus.puller.Puller.pull", lambda puller: None)
    assert await asyncio.wait_for(read_all(session, stream, ("im.fact.>",)), 5) == []


async def test_reading_all_of_a_stream_that_is_not_there_is_an_error(session: Session) -> None:
    with pytest.raises(JetStreamError, match="stream not found"):
        await read_all(session, "NONE", ())


async def test_who_reads_all_is_told_when_the_session_is_lost(
    server: EmbeddedServer, session: Session, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await give_outcomes(session, subjects, 10)
    monkeypatch.setattr("infinity_matrix_bus.puller.Puller.pull", lambda puller: None)
    reading = asyncio.create_task(read_all(session, subjects.facts_stream(SHARD), ("im.fact.>",)))
    await eventually(lambda: session._on_lost, "the reading")
    await server.kill()
    began = time.monotonic()
    with pytest.raises(SessionLost):
        await reading
    assert time.monotonic() - began < 1


# follow_facts


@asynccontextmanager
async def following(
    session: Session, subjects: Subjects, from_sequence: int = 1
) -> AsyncIterator[AsyncIterator[tuple[int, Fact]]]:
    facts = follow_facts(session, subjects, SHARDS, EXECUTION, from_sequence)
    try:
        yield facts
    finally:
        await facts.aclose()  # type: ignore[attr-defined]


async def test_facts_are_followed_from_the_beginning_and_as_they_come(session: Session, subjects: Subjects) -> None:
    await begin(session, subjects)
    await give_outcomes(session, subjects, 3)
    async with following(session, subjects) as facts:
        old = [await anext(facts) for _ in range(4)]
        assert results(old) == [0, 1, 2]
        coming = asyncio.ensure_future(anext(facts))
        await asyncio.sleep(0.05)
        assert not coming.done()
        began = time.monotonic()
        await give_outcomes(session, subjects, 1, first=3)
        assert results([await coming]) == [3]
        assert time.monotonic() - began < 0.5
    assert not [name async for name in JetStreamApi(session).paged("CONSUMER.NAMES.IM_FACTS_1", "consumers")]


async def test_facts_are_followed_from_where_one_was(session: Session, subjects: Subjects) -> None:
    await begin(session, subjects)
    await give_outcomes(session, subjects, 5)
    async with following(session, subjects, from_sequence=5) as facts:
        assert results([await anext(facts), await anext(facts)]) == [3, 4]


async def test_a_slow_follower_pauses_the_reader_and_misses_nothing(
    session: Session, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "FOLLOW_QUEUE_MAX", 20)
    await give_outcomes(session, subjects, 1000)
    async with following(session, subjects) as facts:
        seen: list[object] = []
        while len(seen) < 1000:
            seen += results([await anext(facts)])
            if len(seen) % 100 == 0:
                await session.client.flush()
    assert seen == list(range(1000))


async def test_a_follower_is_told_when_the_session_is_lost(
    server: EmbeddedServer, session: Session, subjects: Subjects
) -> None:
    await begin(session, subjects)
    async with following(session, subjects) as facts:
        assert isinstance((await anext(facts))[1], Started)
        coming = asyncio.ensure_future(anext(facts))
        await server.kill()
        with pytest.raises(SessionLost):
            await coming
    assert not session._on_lost
