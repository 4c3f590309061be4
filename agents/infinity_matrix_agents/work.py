"""What a handler is given: one attempt of one task."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from infinity_matrix_bus.codec import parse_rfc3339

if TYPE_CHECKING:
    from infinity_matrix_agents.work_log import WorkLog

PROGRESS_TEXT_MAX = 4096


class Work:
    """One attempt to do. Everything the task needs stands here; nothing else is shared with the workflow."""

    __slots__ = (
        "_is_cancelled",
        "_log",
        "_log_of",
        "_record",
        "_report",
        "agent",
        "attempt",
        "cancel_reason",
        "cause",
        "compensates",
        "config",
        "deadline",
        "execution",
        "idempotency_key",
        "input",
        "task",
        "timeout",
        "upstream",
        "workflow",
    )

    def __init__(
        self,
        record: dict[str, Any],
        log_of: Callable[[dict[str, Any]], "WorkLog"],
        report: Callable[["Work", float, str], None],
    ) -> None:
        self._record = record
        self.execution: str = record["execution"]
        self.workflow: str = record["workflow"]
        self.task: str = record["task"]
        self.attempt: int = record["attempt"]
        self.agent: str = record["agent"]
        #: The workflow's input.
        self.input: Any = record.get("input")
        #: The task's own config.
        self.config: dict[str, Any] = record.get("config") or {}
        #: The results of the direct upstream tasks, by id; None for one that was skipped or failed.
        self.upstream: dict[str, Any] = record.get("upstream") or {}
        #: Of a compensation: `task`, `result`, `config`, `upstream`, `idempotency_key` of the task it undoes, and
        #: `"forward": "unknown"` when nobody knows whether that was done. None for any other work.
        self.compensates: dict[str, Any] | None = record.get("compensates")
        #: Of work in `on_failure`: the error for which the execution ends.
        self.cause: dict[str, Any] | None = record.get("cause")
        #: The same for every attempt of this task: give it to whatever must not be done twice.
        self.idempotency_key: str = record["idempotency_key"]
        #: Seconds this attempt may take, or None.
        self.timeout: float | None = record.get("timeout")
        #: When the task must be done, in seconds since the epoch.
        self.deadline: float | None = parse_rfc3339(record.get("deadline"))
        self._log_of = log_of
        self._log: WorkLog | None = None
        self.cancel_reason = ""
        self._is_cancelled = False
        self._report = report

    @property
    def record(self) -> dict[str, Any]:
        """The whole work message; not to be changed."""
        return self._record

    @property
    def log(self) -> "WorkLog":
        """Structured log lines, as `log.info("rows", n=3)`. Made when first asked for: most works log nothing."""
        if self._log is None:
            self._log = self._log_of(self._record)
        return self._log

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was cancelled or closed; a handler that sees it should stop."""
        return self._is_cancelled

    async def progress(self, percent: float, message: str = "") -> None:
        """Reports how far the attempt is, 0 to 100, as a status message, best effort; raises ValueError otherwise."""
        self.report_progress(percent, message)

    def report_progress(self, percent: float, message: str = "") -> None:
        """`progress` for plain functions; safe from any thread."""
        if not 0 <= percent <= 100:
            raise ValueError(f"percent is {percent}, it must be 0 to 100")
        self._report(self, float(percent), str(message)[:PROGRESS_TEXT_MAX])

    def mark_cancelled(self, reason: str) -> None:
        """Called by the runner."""
        self.cancel_reason = reason
        self._is_cancelled = True
