"""What a handler is given: one attempt of one task."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from infinity_matrix_bus.codec import decode, encode, parse_rfc3339

if TYPE_CHECKING:
    from infinity_matrix_agents.work_log import WorkLog

PROGRESS_TEXT_MAX = 4096
#: What may be a reference on the wire, or have some in it.
_RESOLVED = ("input", "config", "upstream", "item", "previous", "compensates", "cause")
PROGRESS_BYTES_MAX = 64 * 1024


class Work:
    """One attempt to do. Everything the task needs stands here; nothing else is shared with the workflow."""

    __slots__ = (
        "_is_cancelled",
        "_is_looking",
        "_log",
        "_log_of",
        "_record",
        "_report",
        "_whole_record",
        "agent",
        "attempt",
        "cancel_grace",
        "cancel_reason",
        "cause",
        "compensates",
        "config",
        "deadline",
        "execution",
        "has_ended",
        "heartbeat_timeout",
        "idempotency_key",
        "index",
        "input",
        "item",
        "iteration",
        "previous",
        "task",
        "timeout",
        "upstream",
        "version",
        "workflow",
    )

    def __init__(
        self,
        record: dict[str, Any],
        log_of: Callable[[dict[str, Any]], "WorkLog"],
        report: Callable[["Work", dict[str, Any]], None],
    ) -> None:
        self._record = self._whole_record = record
        self.execution: str = record["execution"]
        self.workflow: str = record["workflow"]
        self.task: str = record["task"]
        self.attempt: int = record["attempt"]
        self.agent: str = record["agent"]
        #: The workflow's version, or None.
        self.version: str | None = record.get("version")
        #: The workflow's input.
        self.input: Any = record.get("input")
        #: The task's own config.
        self.config: dict[str, Any] = record.get("config") or {}
        #: The results of the direct upstream tasks, by id; None for one that was skipped or failed.
        self.upstream: dict[str, Any] = record.get("upstream") or {}
        #: Of an instance of a map: its item, and the item's place in the list, from 0. None for any other work.
        self.item: Any = record.get("item")
        self.index: int | None = record.get("index")
        #: Of a turn of a loop: which it is, from 0, and the last one's result. None for any other work.
        self.iteration: int | None = record.get("iteration")
        self.previous: Any = record.get("previous")
        #: Of a compensation: `task`, `result`, `config`, `upstream`, `idempotency_key` of the task it undoes, and
        #: `"forward": "unknown"` when nobody knows whether that was done. None for any other work.
        self.compensates: dict[str, Any] | None = record.get("compensates")
        #: Of work in `on_failure`: the error for which the execution ends.
        self.cause: dict[str, Any] | None = record.get("cause")
        #: The same for every attempt of this task: give it to whatever must not be done twice.
        self.idempotency_key: str = record["idempotency_key"]
        #: Seconds this attempt may take, or None.
        self.timeout: float | None = record.get("timeout")
        #: The attempt fails when it shows no `progress` or `heartbeat` for this many seconds; None: it need not.
        self.heartbeat_timeout: float | None = record.get("heartbeat_timeout")
        #: When the task must be done, in seconds since the epoch.
        self.deadline: float | None = parse_rfc3339(record.get("deadline"))
        self._log_of = log_of
        self._log: WorkLog | None = None
        self.cancel_reason = ""
        #: Seconds it was given to end by itself when it was cancelled; 0 when it was closed already, None until then.
        self.cancel_grace: float | None = None
        self.has_ended = False
        self._is_cancelled = False
        self._is_looking = False
        self._report = report

    @property
    def record(self) -> dict[str, Any]:
        """The whole work message as on the wire, large values as references; not to be changed."""
        return self._record

    @property
    def whole_record(self) -> dict[str, Any]:
        """The whole work message with values in the place of references; not to be changed."""
        return self._whole_record

    @property
    def log(self) -> "WorkLog":
        """Structured log lines, as `log.info("rows", n=3)`. Made when first asked for: most works log nothing."""
        if self._log is None:
            self._log = self._log_of(self._record)
        return self._log

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was cancelled or closed; a handler that sees it should stop."""
        self._is_looking = True
        return self._is_cancelled

    async def progress(self, percent_or_data: Any, message: str = "") -> None:
        """Reports how far the attempt is, as a status message: a number is percent, 0 to 100, anything else is data.

        Best effort; of what comes quicker than 4 times a second the last is sent. It is a heartbeat as well. Raises
        ValueError, PayloadNotEncodable, and PayloadTooLarge for data above 64 KiB.
        """
        self.report_progress(percent_or_data, message)

    async def heartbeat(self) -> None:
        """Shows that the attempt is alive, for its `heartbeat_timeout`; as often as you like. Nothing does it for you:
        that the process lives says nothing of the handler."""
        self.report_heartbeat()

    def report_progress(self, percent_or_data: Any, message: str = "") -> None:
        """`progress` for plain functions; safe from any thread."""
        fields: dict[str, Any]
        if isinstance(percent_or_data, int | float) and not isinstance(percent_or_data, bool):
            if not 0 <= percent_or_data <= 100:
                raise ValueError(f"percent is {percent_or_data}, it must be 0 to 100")
            fields = {"percent": float(percent_or_data)}
        else:
            # Encoded here, where a mistake can be told, and as it is now.
            fields = {"data": decode(encode(percent_or_data, "the progress", PROGRESS_BYTES_MAX))}
        self._report(self, {**fields, "message": str(message)[:PROGRESS_TEXT_MAX]})

    def report_heartbeat(self) -> None:
        """`heartbeat` for plain functions; safe from any thread."""
        self._report(self, {})

    @property
    def is_looking(self) -> bool:
        """Whether the handler ever looked at `cancelled`: then it is left the time to end by itself."""
        return self._is_looking

    def resolve(self, whole_record: dict[str, Any]) -> None:
        """Called by the runner: takes over the same work with values in the place of references."""
        self._whole_record = whole_record
        for key in _RESOLVED:
            if key in whole_record:
                setattr(self, key, whole_record[key])

    def mark_cancelled(self, reason: str, grace_s: float = 0.0) -> None:
        """Called by the runner."""
        self.cancel_reason = reason
        self.cancel_grace = grace_s
        self._is_cancelled = True
