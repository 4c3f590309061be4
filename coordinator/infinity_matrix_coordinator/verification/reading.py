"""Reading what is to be checked from a live installation: log streams, definitions, the work queue. Writes nothing.

A log is checked shard by shard, because only two rules look at two executions, and at little of them: memory holds one
shard's facts at a time. While a system runs, a log's beginning up to some fact is as good a history as all of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from infinity_matrix_actors.errors import StorageUnavailable, UnknownExecution
from infinity_matrix_actors.fact import Started
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import parse_server_time
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.installation import Installation
from infinity_matrix_bus.log_reader import Entry, LogReader
from infinity_matrix_bus.session import Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, shard_of

from infinity_matrix_coordinator.verification.check import partly_checked, verify
from infinity_matrix_coordinator.verification.child_rules import Kin, check_children, kin_of
from infinity_matrix_coordinator.verification.history import History, QueuedWork, Violation
from infinity_matrix_coordinator.verification.log_rules import cause_of, check_causes

#: A reader that gets nothing for this long asks whether anything is left to come.
STALL_S = 2.0
#: And gives up after this long without an entry that should have come.
SILENCE_MAX_S = 30.0


@dataclass(slots=True)
class Report:
    """What a check of an installation found, and what it looked at."""

    violations: list[Violation] = field(default_factory=list)
    facts: int = 0
    executions: int = 0
    open: int = 0
    #: Checked without their graph.
    partly: int = 0
    #: Messages that are no facts, forged ones among them, and messages in the queue that are no works.
    garbage: int = 0


class Queue(NamedTuple):
    """What is queued or out, the stream's time at which it was, and how many messages there are no works."""

    works: list[QueuedWork]
    read_at: float
    garbage: int


async def verify_installation(
    session: Session,
    installation: Installation,
    execution: str | None = None,
    on_shard: Callable[[int], None] = lambda shard: None,
) -> Report:
    """Checks all that is in the log now, or one execution of it; `on_shard` is told each shard before it is read.

    Raises UnknownExecution, StorageUnavailable, JetStreamError, SessionLost.
    """
    subjects = installation.subjects()
    shards = range(installation.shards) if execution is None else [shard_of(execution, installation.shards)]
    report = Report()
    # The queue first: of what it held then, the log that is read afterwards knows the end.
    queue = await read_queue(session, subjects)
    report.garbage += queue.garbage
    starts: dict[str, Started] = {}
    kin: dict[str, Kin] = {}
    for shard in shards:
        on_shard(shard)
        history = await read_shard(session, subjects, shard, execution)
        history.queued, history.queue_read_at = queue.works, queue.read_at
        report.violations += await asyncio.to_thread(verify, history, has_all_shards=False)
        kin.update(kin_of(history))
        report.facts += sum(map(len, history.facts.values()))
        report.executions += len(history.facts)
        report.open += len(history.open())
        report.partly += len(partly_checked(history))
        report.garbage += history.garbage
        for name in history.facts:
            started = history.started(name)
            if started is not None and cause_of(started) is not None:
                starts[name] = started
    if execution is not None and not report.executions:
        raise UnknownExecution(execution)
    report.violations += [found for found in check_causes(starts) if found not in report.violations]
    if execution is None:
        # Finished executions may have been purged to make room, so what is missing is not missed.
        report.violations += check_children(kin, queue.read_at, is_whole=False)
    return report


async def read_history(session: Session, installation: Installation) -> History:
    """The whole log as one history, for who has journals to hold against it."""
    subjects = installation.subjects()
    whole = History()
    queue = await read_queue(session, subjects)
    whole.queued, whole.queue_read_at = queue.works, queue.read_at
    for shard in range(installation.shards):
        history = await read_shard(session, subjects, shard)
        whole.facts.update(history.facts)
        whole.definitions.update(history.definitions)
        whole.garbage += history.garbage
        whole.is_whole &= history.is_whole
    return whole


async def read_shard(session: Session, subjects: Subjects, shard: int, execution: str | None = None) -> History:
    """What is in one log now, with the definitions it names; raises StorageUnavailable, JetStreamError, SessionLost."""
    stream = subjects.facts_stream(shard)
    history = History()

    def take(entry: Entry) -> None:
        subject = subjects.parse_fact(entry.subject)
        fact = decode_fact(subject, entry.data, entry.at) if subject is not None else None
        if fact is None:
            history.garbage += 1
        else:
            history.facts[fact.execution].append((entry.sequence, fact))

    state = (await JetStreamApi(session).call(f"STREAM.INFO.{stream}"))["state"]
    history.is_whole = int(state["first_seq"]) <= 1
    filters = (subjects.facts_of(shard, execution),) if execution is not None else ()
    await _read(session, stream, filters, int(state["last_seq"]), take)
    store = DefinitionStore(session, subjects)
    for name in history.facts:
        started = history.started(name)
        if started is not None and started.definition not in history.definitions:
            definition = await store.load(started.definition)
            if definition is not None:
                history.definitions[started.definition] = definition
    return history


async def read_queue(session: Session, subjects: Subjects) -> Queue:
    """The works that are queued or out."""
    api = JetStreamApi(session)
    found: list[str] = []
    read_at = 0.0
    while True:
        body = {"subjects_filter": ">", "offset": len(found)}
        info = await api.call(f"STREAM.INFO.{subjects.work_stream}", body)
        read_at = read_at or parse_server_time(str(info["ts"]))
        names = info["state"].get("subjects") or {}
        found += names
        if not names or len(found) >= int(info.get("total", 0)):
            break
    works = [QueuedWork(*work) for name in found if (work := subjects.parse_work(name)) is not None]
    return Queue(works, read_at, len(found) - len(works))


async def _read(
    session: Session, stream: str, filters: tuple[str, ...], head: int, take: Callable[[Entry], None]
) -> None:
    """Gives `take` every entry up to `head` that matches, in order."""
    done = asyncio.Event()
    seen = 0

    def receive(entry: Entry) -> None:
        nonlocal seen
        seen += 1
        if entry.sequence <= head:
            take(entry)
        if entry.sequence >= head or entry.pending == 0:
            done.set()

    reader = await LogReader(session, stream, receive, filters=filters).open()
    session.when_lost(done.set)
    try:
        if reader.pending:
            silent_s = 0.0
            while not done.is_set():
                before = seen
                try:
                    async with asyncio.timeout(STALL_S):
                        await done.wait()
                except TimeoutError:
                    # What was to come has expired meanwhile, perhaps: then nothing comes.
                    if seen == before and await reader.remaining() == 0:
                        break
                silent_s = silent_s + STALL_S if seen == before else 0.0
                if silent_s > SILENCE_MAX_S:
                    raise StorageUnavailable(f"{stream} gave nothing for {SILENCE_MAX_S:g} s")
    finally:
        session.not_when_lost(done.set)
        await reader.close()
    if session.is_lost:
        raise SessionLost(f"the connection was lost while {stream} was read")
