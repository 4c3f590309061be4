"""The store of schedules: what a schedule is and where it stands, in one record each, replaced by compare-and-set.

One record and not two, so that nobody claims a due time by a definition that was replaced meanwhile.
"""

import re
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import StorageUnavailable
from infinity_matrix_actors.fact import Priority
from infinity_matrix_actors.schedule import Overlap, Schedule
from infinity_matrix_actors.schedule_state import ScheduleState, Tick, TickKind

from infinity_matrix_bus.api import JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import Undecodable, decode_record, encode, parse_rfc3339, parse_server_time, rfc3339
from infinity_matrix_bus.definitions import WRONG_LAST_SEQUENCE
from infinity_matrix_bus.direct_client import MessageCallback
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import (
    NoResponders,
    RequestTimeout,
    Session,
    SessionLost,
    Subscription,
)
from infinity_matrix_bus.subjects import Subjects, is_name

RECORD_VERSION = 1
TIMEOUT_S = 5.0
#: The rest of a record, the ticks that wait, needs room as well.
INPUT_BYTES_MAX = 256 * 1024
_EXPECTED = re.compile(rb"\r\nNats-Expected-Last-Subject-Sequence: *([0-9]{1,19})\r\n")
log = get_logger("infinity_matrix.bus")


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """A schedule, where it stands, and the revision that replaces it."""

    schedule: Schedule
    state: ScheduleState
    revision: int


class ScheduleStore:
    """Schedules on one session."""

    def __init__(self, session: Session, subjects: Subjects) -> None:
        self._session = session
        self._api = JetStreamApi(session)
        self._stream = f"KV_{subjects.bucket('schedules')}"
        self._keys = f"$KV.{subjects.bucket('schedules')}."

    async def read(self, name: str) -> StoredSchedule | None:
        """A schedule by a leader read, None when there is none of that name; raises StorageUnavailable."""
        return (await self._read(name))[0]

    async def all(self) -> list[StoredSchedule]:
        """All schedules, by name; raises StorageUnavailable."""
        try:
            entries = await read_all(self._session, self._stream, (self._keys + "*",))
        except (JetStreamError, RequestTimeout, SessionLost) as error:
            raise StorageUnavailable(f"the schedules could not be reached: {error}") from error
        found = {entry.subject: (entry.data, entry.sequence) for entry in entries}
        stored = [self._decoded(subject, data, revision) for subject, (data, revision) in sorted(found.items())]
        return [one for one in stored if one is not None]

    async def create(self, schedule: Schedule, state: ScheduleState) -> bool:
        """Stores a schedule whose name is free; False when it is taken. Raises as `write`."""
        stored, revision = await self._read(schedule.name)
        return stored is None and await self.write(StoredSchedule(schedule, state, revision)) is not None

    async def write(self, stored: StoredSchedule) -> StoredSchedule | None:
        """Replaces the revision a schedule was read at; None when another was quicker.

        Raises StorageUnavailable, PayloadTooLarge, PayloadNotEncodable.
        """
        data = encode(_record(stored.schedule, stored.state), f"the schedule {stored.schedule.name!r}")
        revision = await self._put(
            stored.schedule.name, data, f"Nats-Expected-Last-Subject-Sequence: {stored.revision}"
        )
        return None if revision is None else StoredSchedule(stored.schedule, stored.state, revision)

    async def delete(self, stored: StoredSchedule) -> bool:
        """Deletes a schedule at the revision it was read at; False when another was quicker."""
        headers = f"KV-Operation: DEL\r\nNats-Expected-Last-Subject-Sequence: {stored.revision}"
        return await self._put(stored.schedule.name, b"", headers) is not None

    async def watch(self, callback: MessageCallback) -> Subscription:
        """Calls back at every attempt to change a schedule, also one that is refused: read what it is now."""
        return await self._session.subscribe(self._keys + "*", callback)

    @staticmethod
    def replaced_by(headers: bytes | None) -> int | None:
        """The revision that a watched message was written to take the place of; None where it does not say."""
        found = _EXPECTED.search(headers or b"")
        return None if found is None else int(found[1])

    def name_of(self, subject: str) -> str:
        """The schedule a watched subject is of."""
        return subject[len(self._keys) :]

    async def now(self) -> float:
        """The server's time, in seconds since the epoch; raises StorageUnavailable."""
        try:
            info = await self._api.stream_info(self._stream)
        except (JetStreamError, RequestTimeout, SessionLost) as error:
            raise StorageUnavailable(f"the schedules could not be reached: {error}") from error
        if info is None:
            raise StorageUnavailable(f"the bucket {self._stream[3:]} is gone")
        return parse_server_time(info["ts"])

    async def _read(self, name: str) -> tuple[StoredSchedule | None, int]:
        if not is_name(name):
            return None, 0
        subject = self._keys + name
        try:
            message = await self._api.last_message(self._stream, subject)
        except (JetStreamError, RequestTimeout, SessionLost) as error:
            raise StorageUnavailable(f"the schedules could not be reached: {error}") from error
        if message is None:
            return None, 0
        return self._decoded(subject, message.data, message.sequence), message.sequence

    async def _put(self, name: str, data: bytes, headers: str) -> int | None:
        """The new revision; None when it was refused for another's."""
        block = f"NATS/1.0\r\n{headers}\r\n\r\n".encode()
        try:
            reply = decode_record(await self._session.request(self._keys + name, data, TIMEOUT_S, block))
        except (NoResponders, RequestTimeout, SessionLost) as error:
            raise StorageUnavailable(f"the schedules could not be reached: {error}") from error
        problem = reply.get("error")
        if problem is None:
            return int(reply["seq"])
        if problem.get("err_code") == WRONG_LAST_SEQUENCE:
            return None
        raise StorageUnavailable(f"the schedule {name!r} was not stored: {problem.get('description')}")

    def _decoded(self, subject: str, data: bytes, revision: int) -> StoredSchedule | None:
        if not data:
            return None
        name = self.name_of(subject)
        try:
            record = decode_record(data)
            if record.get("v") != RECORD_VERSION:
                raise ValueError(f"its version is {record.get('v')!r}")
            return StoredSchedule(_schedule(name, record["schedule"]), _state(record["state"]), revision)
        except (Undecodable, ValueError, KeyError, TypeError) as error:
            # One that cannot be read must not stop the others.
            log.error("schedule_unreadable", schedule=name, reason=str(error))
            return None


def _record(schedule: Schedule, state: ScheduleState) -> dict[str, Any]:
    priority = {} if schedule.priority is Priority.NORMAL else {"priority": str(schedule.priority)}
    return {
        "v": RECORD_VERSION,
        "schedule": {
            **priority,
            "workflow": schedule.workflow,
            "definition": schedule.definition,
            "cron": schedule.cron,
            "run_at": _text(schedule.run_at),
            "timezone": schedule.timezone,
            "overlap": str(schedule.overlap),
            "catch_up": schedule.catch_up_s,
            "jitter": schedule.jitter_s,
            "start": _text(schedule.start_at),
            "end": _text(schedule.end_at),
            "limit": schedule.limit,
            "input": schedule.input,
        },
        "state": {
            "next": _text(state.next_at),
            "waiting": [_tick_record(tick) for tick in state.waiting],
            "running": list(state.running),
            "started": state.started,
            "skipped": state.skipped,
            "last": _text(state.last_at),
            "paused": state.is_paused,
            "reason": state.reason,
        },
    }


def _tick_record(tick: Tick) -> dict[str, Any]:
    record: dict[str, Any] = {"due": rfc3339(tick.due_at), "kind": str(tick.kind)}
    if tick.request:
        record["request"] = tick.request
    if tick.overlap is not None:
        record["overlap"] = str(tick.overlap)
    return record


def _schedule(name: str, record: dict[str, Any]) -> Schedule:
    return Schedule(
        name,
        str(record["workflow"]),
        record["cron"],
        _time(record["run_at"]),
        str(record["timezone"]),
        Overlap(record["overlap"]),
        float(record["catch_up"]),
        float(record["jitter"]),
        _time(record["start"]),
        _time(record["end"]),
        record["limit"],
        record["input"],
        record["definition"],
        Priority(record.get("priority", Priority.NORMAL)),
    )


def _state(record: dict[str, Any]) -> ScheduleState:
    return ScheduleState(
        _time(record["next"]),
        tuple(_tick(tick) for tick in record["waiting"]),
        tuple(map(str, record["running"])),
        int(record["started"]),
        int(record["skipped"]),
        _time(record["last"]),
        record["paused"] is True,
        str(record["reason"]),
    )


def _tick(record: dict[str, Any]) -> Tick:
    due_at = _time(record["due"])
    if due_at is None:
        raise ValueError("a tick without its time")
    overlap = record.get("overlap")
    return Tick(
        due_at, TickKind(record["kind"]), str(record.get("request", "")), None if overlap is None else Overlap(overlap)
    )


def _text(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)


def _time(text: Any) -> float | None:
    if text is None:
        return None
    at = parse_rfc3339(text)
    if at is None:
        raise ValueError(f"{text!r} is no time")
    return at
