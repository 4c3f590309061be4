"""`work.log`: structured log lines of one attempt. Best effort, to `IM_LOGS` and this process's log."""

import time
import traceback
from collections.abc import Callable
from typing import Any

from infinity_matrix_actors.errors import PayloadNotEncodable, PayloadTooLarge
from infinity_matrix_bus.codec import encode, rfc3339
from infinity_matrix_bus.log import get_logger

LINE_BYTES_MAX = 64 * 1024
_local = get_logger("infinity_matrix.work")


class WorkLog:
    """A logger in structlog's style: `log.info("rows", n=3)`."""

    __slots__ = ("_base", "_fields", "_publish")

    def __init__(self, publish: Callable[[bytes], None], base: dict[str, Any], fields: dict[str, Any]) -> None:
        self._publish = publish
        self._base = base
        self._fields = fields

    def bind(self, **fields: Any) -> "WorkLog":
        """A logger with these fields on every line."""
        return WorkLog(self._publish, self._base, {**self._fields, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error line with the traceback of the exception being handled."""
        self._write("error", event, {"traceback": traceback.format_exc(), **fields})

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        fields = {**self._fields, **fields}
        line = {**self._base, "at": rfc3339(time.time()), "level": level, "event": str(event), "fields": fields}
        try:
            data = encode(line, "the log line", LINE_BYTES_MAX)
        except (PayloadNotEncodable, PayloadTooLarge):
            # A log line must never fail the work: what has no JSON form is shown as text, and cut.
            texts = {key: str(value)[:1000] for key, value in fields.items()}
            data = encode({**line, "fields": dict(list(texts.items())[:50])})
        _local.debug(event, level_wanted=level, **{f"work_{key}": value for key, value in fields.items()})
        self._publish(data)
