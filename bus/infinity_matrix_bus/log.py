"""Loggers in structlog's style on the standard library's logging: silent in a user's program unless it asks for more.

A line is `event key=value ...` for people; the same facts are in the record's `facts`, for `log_json`.
"""

import json
import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog


def get_logger(name: str) -> Any:
    """A logger whose methods take an event name and facts: `log.info("shard_taken", shard=3)`."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.processors.format_exc_info, _render],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def log_lines(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Sends the log of this process to `stream`, a line an event, for people."""
    _handle(stream, level, logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))


def log_json(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Sends the log of this process to `stream`, a JSON object an event."""
    _handle(stream, level, _JsonFormatter())


def _handle(stream: TextIO, level: int, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger("infinity_matrix")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False


def _render(logger: Any, method: str, facts: MutableMapping[str, Any]) -> Any:
    event = facts.pop("event", "")
    exception = facts.pop("exception", None)
    text = " ".join([str(event), *(f"{key}={value}" for key, value in facts.items())])
    if exception:
        text += f"\n{exception}"
    return (text,), {"extra": {"event": event, "facts": dict(facts)}}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"at": at, "level": record.levelname.lower(), "event": getattr(record, "event", record.getMessage())}
        line.update(getattr(record, "facts", {}))
        if "\n" in record.getMessage():
            line["traceback"] = record.getMessage().split("\n", 1)[1]
        return json.dumps(line, default=str)
