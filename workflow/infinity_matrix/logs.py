"""Log lines of agents, read back from `IM_LOGS`."""

from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_bus.codec import Undecodable, decode_record, parse_rfc3339
from infinity_matrix_bus.log_reader import Entry


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
