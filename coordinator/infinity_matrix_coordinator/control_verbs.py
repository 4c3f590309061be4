"""The verbs of the API that control executions and workflows: the JSON of a request in, the JSON of its answer out."""

from dataclasses import asdict
from typing import Any

from infinity_matrix_actors.fact import CommandKind, Priority

from infinity_matrix_coordinator.approvals import APPROVE, REJECT, Approvals
from infinity_matrix_coordinator.choices import chosen
from infinity_matrix_coordinator.controls import Asked, Controls
from infinity_matrix_coordinator.forks import Forks
from infinity_matrix_coordinator.lineage import lineage_of
from infinity_matrix_coordinator.listing import LISTED_STATES, Selection
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.purges import Purges
from infinity_matrix_coordinator.requests import (
    BadRequest,
    Verb,
    flag,
    limit,
    optional_number,
    optional_text,
    optional_texts,
    reason,
    taking,
    text,
)
from infinity_matrix_coordinator.runs import IfExists, Runs
from infinity_matrix_coordinator.versions import Versions

_FILTERS = ("workflow", "state", "older_than")
#: Executions in an answer of `list`, unless the request says otherwise.
LIST_LIMIT = 100
#: Executions that one `purge` purges, unless the request says otherwise: they must be gone before it is answered.
PURGE_LIMIT = 1000


class ControlVerbs:
    """The verbs by name, on one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._controls = Controls(operations)

    def verbs(self) -> dict[str, Verb]:
        """Each takes the object of a request, and raises InfinityMatrixError for one it refuses."""
        return {
            "start": taking(self.start, "workflow", "input", "execution", "if_exists", "priority"),
            "list": taking(
                self.list, "workflow", "state", "started_after", "started_before", "needs_attention", "limit"
            ),
            "cancel": taking(self.cancel, "execution", "reason", "grace"),
            "pause": taking(self.pause, "execution", "reason"),
            "resume": taking(self.resume, "execution", "reason"),
            "retry": taking(self.retry, "execution", "reason"),
            "compensate": taking(self.compensate, "execution", "reason"),
            "bulk": taking(self.bulk, "command", *_FILTERS, "all", "reason", "grace", "dry_run"),
            "purge": taking(self.purge, "executions", *_FILTERS, "all", "limit", "dry_run"),
            "fork": taking(self.fork, "execution", "from_task", "changes", "new_id"),
            "lineage": taking(self.lineage, "execution"),
            "workflow.pause": taking(self.pause_workflow, "workflow", "running"),
            "workflow.resume": taking(self.resume_workflow, "workflow", "running"),
            "approvals": taking(self.approvals, "workflow", "limit"),
            "approve": taking(self.approve, "execution", "task", "by", "comment", "data"),
            "reject": taking(self.reject, "execution", "task", "by", "comment", "data"),
            "workflow.versions": taking(self.versions, "workflow"),
            "workflow.diff": taking(self.diff, "workflow", "before", "after"),
        }

    async def start(self, body: dict[str, Any]) -> Any:
        workflow = text(body, "workflow")
        execution = optional_text(body, "execution")
        if_exists = chosen(IfExists, optional_text(body, "if_exists") or IfExists.REJECT, "if_exists")
        priority = chosen(Priority, optional_text(body, "priority") or Priority.NORMAL, "priority")
        digest = await self._operations.definition_to_start(workflow)
        if execution is None:
            return {"execution": await self._operations.start(workflow, digest, body.get("input"), priority=priority)}
        runs = Runs(self._operations)
        return {"execution": await runs.start(workflow, digest, body.get("input"), execution, if_exists, priority)}

    async def list(self, body: dict[str, Any]) -> Any:
        state = optional_text(body, "state")
        if state is not None and state not in LISTED_STATES:
            raise BadRequest(f"state must be one of {', '.join(LISTED_STATES)}")
        selection = Selection(
            optional_text(body, "workflow"),
            state,
            optional_number(body, "started_after"),
            optional_number(body, "started_before"),
            flag(body, "needs_attention"),
            limit(body, LIST_LIMIT),
        )
        return [asdict(summary) for summary in await self._operations.select(selection)]

    async def cancel(self, body: dict[str, Any]) -> Any:
        execution = text(body, "execution")
        await self._controls.cancel(execution, reason(body), optional_number(body, "grace"))
        return {"execution": execution}

    async def pause(self, body: dict[str, Any]) -> Any:
        return await self._ask(CommandKind.PAUSE, body)

    async def resume(self, body: dict[str, Any]) -> Any:
        return await self._ask(CommandKind.RESUME, body)

    async def retry(self, body: dict[str, Any]) -> Any:
        return await self._ask(CommandKind.RETRY, body)

    async def compensate(self, body: dict[str, Any]) -> Any:
        return await self._ask(CommandKind.COMPENSATE, body)

    async def bulk(self, body: dict[str, Any]) -> Any:
        _check_meant(body, *_FILTERS)
        asked = await self._controls.bulk(
            text(body, "command"),
            workflow=optional_text(body, "workflow"),
            state=optional_text(body, "state"),
            older_than_s=optional_number(body, "older_than"),
            reason=reason(body),
            grace_s=optional_number(body, "grace"),
            dry_run=flag(body, "dry_run"),
        )
        return _records(asked)

    async def purge(self, body: dict[str, Any]) -> Any:
        _check_meant(body, "executions", *_FILTERS)
        purged = await Purges(self._operations).purge(
            optional_texts(body, "executions"),
            workflow=optional_text(body, "workflow"),
            state=optional_text(body, "state"),
            older_than_s=optional_number(body, "older_than"),
            limit=limit(body, PURGE_LIMIT),
            dry_run=flag(body, "dry_run"),
        )
        return _records(purged)

    async def fork(self, body: dict[str, Any]) -> Any:
        fork = Forks(self._operations).fork(
            text(body, "execution"),
            optional_text(body, "from_task"),
            body.get("changes"),
            optional_text(body, "new_id"),
        )
        return {"execution": await fork}

    async def lineage(self, body: dict[str, Any]) -> Any:
        return asdict(await lineage_of(self._operations, text(body, "execution")))

    async def pause_workflow(self, body: dict[str, Any]) -> Any:
        return _records(await self._controls.pause_workflow(text(body, "workflow"), running=flag(body, "running")))

    async def resume_workflow(self, body: dict[str, Any]) -> Any:
        return _records(await self._controls.resume_workflow(text(body, "workflow"), running=flag(body, "running")))

    async def approvals(self, body: dict[str, Any]) -> Any:
        found = await Approvals(self._operations).pending(optional_text(body, "workflow"), limit(body, LIST_LIMIT))
        return [asdict(approval) for approval in found]

    async def approve(self, body: dict[str, Any]) -> Any:
        return await self._decide(APPROVE, body)

    async def reject(self, body: dict[str, Any]) -> Any:
        return await self._decide(REJECT, body)

    async def versions(self, body: dict[str, Any]) -> Any:
        found = await Versions(self._operations).summaries(optional_text(body, "workflow"))
        return [asdict(version) for version in found]

    async def diff(self, body: dict[str, Any]) -> Any:
        versions = Versions(self._operations)
        found = await versions.diff(text(body, "workflow"), text(body, "before"), text(body, "after"))
        return [asdict(difference) for difference in found]

    async def _decide(self, decision: str, body: dict[str, Any]) -> Any:
        execution = text(body, "execution")
        task = await Approvals(self._operations).decide(
            execution,
            optional_text(body, "task"),
            decision,
            by=optional_text(body, "by") or "",
            comment=optional_text(body, "comment") or "",
            data=body.get("data"),
        )
        return {"execution": execution, "task": task}

    async def _ask(self, kind: CommandKind, body: dict[str, Any]) -> Any:
        execution = text(body, "execution")
        await self._controls.ask(kind, execution, reason(body))
        return {"execution": execution}


def _check_meant(body: dict[str, Any], *filters: str) -> None:
    """Raises BadRequest where all would be meant and nobody said so."""
    if not flag(body, "all") and all(body.get(name) is None for name in filters):
        raise BadRequest(f'it would mean all: give one of {", ".join(filters)}, or "all": true')


def _records(asked: list[Asked]) -> Any:
    return [asdict(each) for each in asked]
