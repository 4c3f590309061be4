"""Log lines of agents, read back from `IM_LOGS`."""

from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.errors import UnknownExecution
from infinity_matrix_bus.codec import Undecodable, decode_record, parse_rfc3339
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.log_reader import Entry

from infinity_matrix_coordinator.operations import Operations, check_id


@dataclass(frozen=True, slots=True)
class LogLine:
    """One structured log line; `at` is seconds since the epoch."""

    execution_id: str
    task_id: str
    attempt: int
    at: float
    level: str
    event: str
    fields: dict[str, Any] = field(default_factory=dict)


async def lines_of(operations: Operations, execution: str, task: str | None = None) -> list[LogLine]:
    """The log lines of an execution's agents, or of one task's, oldest first.

    Raises UnknownExecution where there are none of an execution that is not there, StorageUnavailable.
    """
    subjects = operations.subjects
    pattern = subjects.logs("*", check_id(execution), check_id(task)) if task else subjects.logs_of(check_id(execution))
    entries = await read_all(await operations.session(), subjects.logs_stream, (pattern,))
    lines = [line for line in map(read_line, entries) if line is not None]
    if not lines and await operations.started_of(execution) is None:
        raise UnknownExecution(execution)
    return sorted(lines, key=lambda line: line.at)


def read_line(entry: Entry) -> LogLine | None:
    """The line in a message of `IM_LOGS`; None when it is none."""
    try:
        record = decode_record(entry.data)
        fields = record.get("fields")
        return LogLine(
            str(record["execution"]),
            str(record["task"]),
            int(record.get("attempt", 0)),
            parse_rfc3339(record.get("at")) or entry.at,
            str(record.get("level", "info")),
            str(record.get("event", "")),
            fields if isinstance(fields, dict) else {},
        )
    except (Undecodable, KeyError, TypeError, ValueError):
        return None
