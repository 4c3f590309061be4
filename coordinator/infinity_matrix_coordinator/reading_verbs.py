"""The verbs of the API that read one execution: its status, its log, its figures, its log lines and artifacts."""

from dataclasses import asdict
from typing import Any

from infinity_matrix_actors.errors import UnknownExecution

from infinity_matrix_coordinator.artifact_listing import artifacts_of
from infinity_matrix_coordinator.log_lines import lines_of
from infinity_matrix_coordinator.operations import Operations, check_id
from infinity_matrix_coordinator.requests import (
    Verb,
    flag,
    limit,
    optional_number,
    optional_text,
    optional_texts,
    taking,
    text,
)
from infinity_matrix_coordinator.views import metrics_of, status_of

#: Facts in an answer of `history`, unless the request says otherwise.
HISTORY_LIMIT = 10_000
#: Lines in an answer of `logs`, unless the request says otherwise.
LINES_LIMIT = 1000


class ReadingVerbs:
    """The verbs by name, on one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def verbs(self) -> dict[str, Verb]:
        """Each takes the object of a request, and raises InfinityMatrixError for one it refuses."""
        return {
            "status": taking(self.status, "execution", "tasks", "results"),
            "history": taking(self.history, "execution", "after", "limit"),
            "metrics": taking(self.metrics, "execution"),
            "logs": taking(self.logs, "execution", "task", "limit"),
            "artifacts": taking(self.artifacts, "execution"),
        }

    async def status(self, body: dict[str, Any]) -> Any:
        status = asdict(status_of(await self._operations.fold(text(body, "execution"))))
        tasks, has_results = optional_texts(body, "tasks"), flag(body, "results", True)
        if tasks is not None:
            status["tasks"] = {name: task for name, task in status["tasks"].items() if name in tasks}
        if not has_results:
            for task in status["tasks"].values():
                task["result"] = None
        return status

    async def history(self, body: dict[str, Any]) -> Any:
        execution, after = check_id(text(body, "execution")), optional_number(body, "after") or 0.0
        most = limit(body, HISTORY_LIMIT)
        facts = await self._operations.facts_of(execution)
        if not facts and await self._operations.started_of(execution) is None:
            raise UnknownExecution(execution)
        later = [(sequence, fact) for sequence, fact in facts if sequence > after][:most]
        return [{"sequence": sequence, "kind": type(fact).__name__.lower(), **asdict(fact)} for sequence, fact in later]

    async def metrics(self, body: dict[str, Any]) -> Any:
        return asdict(metrics_of(await self._operations.fold(text(body, "execution"))))

    async def logs(self, body: dict[str, Any]) -> Any:
        lines = await lines_of(self._operations, text(body, "execution"), optional_text(body, "task"))
        return [asdict(line) for line in lines[-limit(body, LINES_LIMIT) :]]

    async def artifacts(self, body: dict[str, Any]) -> Any:
        return [asdict(artifact) for artifact in await artifacts_of(self._operations, text(body, "execution"))]
