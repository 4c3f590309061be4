"""A tick of a schedule in the log: its execution's id, its place there as started or skipped, and what it waits for."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import StorageUnavailable
from infinity_matrix_actors.fact import CommandKind, Priority, Started
from infinity_matrix_actors.schedule import Schedule
from infinity_matrix_actors.schedule_state import Tick, TickKind
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import Undecodable, decode_record, rfc3339
from infinity_matrix_bus.facts import command_payload, started_payload
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.publisher import Fate, read_ack
from infinity_matrix_bus.session import NoResponders, RequestTimeout, Session, SessionLost
from infinity_matrix_bus.subjects import Subjects, shard_of

WRITE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """What the log has of a tick; `is_new`: since just now."""

    is_skipped: bool
    is_new: bool


def execution_of(subjects: Subjects, schedule: str, tick: Tick) -> str:
    """The id of a tick's execution; only who has the secret can know it."""
    if tick.kind is TickKind.TRIGGERED:
        # Asked for again, because the answer was lost and the tick has begun meanwhile, it has another time.
        return subjects.derived_id("schedule", schedule, "request", tick.request)
    request = (tick.request,) if tick.request else ()
    return subjects.derived_id("schedule", schedule, rfc3339(tick.due_at), *request)


def cause_of(schedule: str, tick: Tick) -> dict[str, Any]:
    """What stands as the cause in the `started` fact of a tick."""
    return {"schedule": schedule, "due": rfc3339(tick.due_at), "by": str(tick.kind)}


def input_of(schedule: Schedule, tick: Tick) -> Any:
    """What the execution of a tick is given."""
    if schedule.input is not None:
        return schedule.input
    return {"schedule": schedule.name, "due": rfc3339(tick.due_at)}


async def write_tick(
    session: Session, subjects: Subjects, shards: int, schedule: Schedule, tick: Tick, definition: str, *, skips: bool
) -> Place:
    """Gives a tick its place in the log, as started or as skipped, unless it has one; answers which it has.

    Raises StorageUnavailable, PayloadTooLarge. Nothing is tried again here: what is published later was decided anew.
    """
    execution = execution_of(subjects, schedule.name, tick)
    shard = shard_of(execution, shards)
    subject = subjects.started(shard, execution)
    cause, input = cause_of(schedule.name, tick), None if skips else input_of(schedule, tick)
    priority = Priority.NORMAL if skips else schedule.priority
    fact = Started(execution, 0.0, schedule.workflow, definition, input, cause, priority=priority, skipped=skips)
    if await _publish(session, subject, started_payload(fact)) is Fate.STORED:
        return Place(skips, is_new=True)
    stored = await JetStreamApi(session).last_message(subjects.facts_stream(shard), subject)
    if stored is None:
        raise StorageUnavailable(f"{subject} is taken and cannot be read")
    try:
        return Place(decode_record(stored.data).get("skipped") is True, is_new=False)
    except Undecodable as error:
        raise StorageUnavailable(f"{subject} cannot be read: {error}") from error


async def open_executions(
    session: Session, subjects: Subjects, shards: int, reads: GatheredReads, executions: Iterable[str]
) -> set[str]:
    """Those of `executions` that the log has and that have not ended."""

    async def is_open(execution: str) -> bool:
        shard = shard_of(execution, shards)
        stream = subjects.facts_stream(shard)
        if await reads.read(stream, subjects.finished_of(shard, execution)) != []:
            return False
        # By a leader read: a follower may not have a start that another coordinator made a moment ago.
        return await JetStreamApi(session).last_message(stream, subjects.started(shard, execution)) is not None

    wanted = list(executions)
    return {name for name, found in zip(wanted, await asyncio.gather(*map(is_open, wanted)), strict=True) if found}


async def stop_for(
    session: Session,
    subjects: Subjects,
    shards: int,
    schedule: Schedule,
    tick: Tick,
    executions: Iterable[str],
    *,
    terminates: bool,
) -> None:
    """Asks open executions to end, as many as ask on behalf of this tick ask once; raises StorageUnavailable."""
    payload = command_payload(
        CommandKind.CANCEL, f"the schedule {schedule.name} is due again", 0.0 if terminates else None
    )
    kind = "schedule" if tick.kind is TickKind.SCHEDULED else f"schedule-{tick.kind}"
    for execution in executions:
        shard = shard_of(execution, shards)
        subject = subjects.command(shard, execution, str(CommandKind.CANCEL), f"{kind}-{int(tick.due_at)}")
        await _publish(session, subject, payload)


async def _publish(session: Session, subject: str, payload: bytes) -> Fate:
    """Publishes a fact; answers whether it was stored or was there already."""
    try:
        ack = read_ack(await session.request(subject, payload, WRITE_TIMEOUT_S), None)
    except (NoResponders, RequestTimeout, SessionLost) as error:
        raise StorageUnavailable(f"{subject} was not confirmed: {error}") from error
    if ack.fate not in (Fate.STORED, Fate.TAKEN):
        raise StorageUnavailable(f"{subject} was not written: {ack.reason}")
    return ack.fate
