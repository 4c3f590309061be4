"""One execution's facts, read from the log: at once, or as they come."""

import asyncio
from collections.abc import AsyncIterator, Callable

from infinity_matrix_actors.errors import StorageUnavailable
from infinity_matrix_actors.fact import Fact

from infinity_matrix_bus.codec import parse_server_time
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.log_reader import Entry, LogReader
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, shard_of

READ_TIMEOUT_S = 30.0
#: Silence after which a reader is asked whether there is anything left to come.
READ_STALL_S = 2.0
#: Entries a follower may be behind before the reader pauses.
FOLLOW_QUEUE_MAX = 10_000


async def read_facts(
    reads: GatheredReads, subjects: Subjects, shards: int, execution: str, *, newest: int = 0
) -> list[tuple[int, Fact]]:
    """All facts of an execution in log order, each with its sequence.

    One direct get up to 1,024 facts (0.7 ms among a million subjects), a filtered reader beyond. Any replica may answer
    it: who goes on from what is read gives the sequence of the `newest`, and StorageUnavailable is raised where that
    is not there yet.
    """
    shard = shard_of(execution, shards)
    stream = subjects.facts_stream(shard)
    pattern = subjects.facts_of(shard, execution)
    messages = await reads.read(stream, pattern)
    if messages is None:
        return await _read_long(reads.session, subjects, stream, pattern)
    if newest and all(message.sequence < newest for message in messages):
        raise StorageUnavailable(f"the facts of {execution} end before {newest}: who was asked lags")
    facts = []
    for message in messages:
        subject = subjects.parse_fact(message.subject)
        fact = decode_fact(subject, message.data, parse_server_time(message.at)) if subject is not None else None
        if fact is not None:
            facts.append((message.sequence, fact))
    facts.sort(key=lambda item: item[0])
    return facts


async def _read_long(session: Session, subjects: Subjects, stream: str, pattern: str) -> list[tuple[int, Fact]]:
    facts: list[tuple[int, Fact]] = []
    for entry in await read_all(session, stream, (pattern,)):
        subject = subjects.parse_fact(entry.subject)
        fact = decode_fact(subject, entry.data, entry.at) if subject is not None else None
        if fact is not None:
            facts.append((entry.sequence, fact))
    return facts


async def read_all(session: Session, stream: str, filters: tuple[str, ...]) -> list[Entry]:
    """Everything in a stream now that matches `filters`, in order.

    What comes while it is read may be in it or not. Raises SessionLost, StorageUnavailable, JetStreamError.
    """
    entries: list[Entry] = []
    await read_each(session, stream, filters, entries.append)
    return entries


async def read_each(session: Session, stream: str, filters: tuple[str, ...], on_entry: Callable[[Entry], None]) -> None:
    """`read_all`, entry by entry: for streams that are larger than what is kept of them."""
    done = asyncio.Event()
    wanted = count = 0

    def take(entry: Entry) -> None:
        nonlocal count
        count += 1
        on_entry(entry)
        # On a busy stream there is always one more: what was there at first is enough. Of that some may expire.
        if entry.pending == 0 or count >= wanted > 0:
            done.set()

    reader = await LogReader(session, stream, take, filters=filters).open()
    wanted = reader.pending
    session.when_lost(done.set)
    try:
        if wanted and not session.is_lost:
            await _all_read(reader, lambda: count, done)
    except TimeoutError:
        raise StorageUnavailable(f"{stream} gave nothing for {READ_TIMEOUT_S:g} s") from None
    finally:
        session.not_when_lost(done.set)
        await reader.close()
    if session.is_lost:
        raise SessionLost(f"the connection was lost while {stream} was read")


async def _all_read(reader: LogReader, count: Callable[[], int], done: asyncio.Event) -> None:
    """Waits until all is read, for as long as something comes; raises TimeoutError when nothing does."""
    quiet_s = 0.0
    while not done.is_set():
        seen = count()
        try:
            async with asyncio.timeout(READ_STALL_S):
                await done.wait()
        except TimeoutError:
            # What was to come was purged meanwhile, perhaps: then nothing comes.
            if count() == seen and await reader.remaining() == 0:
                return
            quiet_s = quiet_s + READ_STALL_S if count() == seen else 0.0
            if quiet_s >= READ_TIMEOUT_S:
                raise


async def follow_facts(
    session: Session, subjects: Subjects, shards: int, execution: str, from_sequence: int = 1
) -> AsyncIterator[tuple[int, Fact]]:
    """The facts of an execution from a sequence on, as they come, for ever; raises SessionLost."""
    shard = shard_of(execution, shards)
    queue: asyncio.Queue[Entry | None] = asyncio.Queue()
    reader = LogReader(
        session,
        subjects.facts_stream(shard),
        queue.put_nowait,
        from_sequence=from_sequence,
        filters=(subjects.facts_of(shard, execution),),
        capacity=lambda: FOLLOW_QUEUE_MAX - queue.qsize(),
    )
    await reader.open()

    def lose() -> None:
        queue.put_nowait(None)

    session.when_lost(lose)
    try:
        while True:
            entry = await queue.get()
            if entry is None:
                raise SessionLost("the connection was lost while following an execution")
            if queue.empty():
                reader.resume()
            subject = subjects.parse_fact(entry.subject)
            fact = decode_fact(subject, entry.data, entry.at) if subject is not None else None
            if fact is not None:
                yield entry.sequence, fact
    finally:
        session.not_when_lost(lose)
        await reader.close()
