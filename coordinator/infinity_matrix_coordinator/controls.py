"""Controls: the commands that stop, hold and take up executions, one by one and many at a time.

A command is a fact that says what somebody wants; what follows from it the core decides. What cannot follow is told
here at once, from a fold, so that nobody waits for what will not come.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from infinity_matrix_actors.errors import (
    ExecutionQuarantined,
    InfinityMatrixError,
    InvalidDefinition,
    UnknownExecution,
    UnknownWorkflow,
    WrongState,
)
from infinity_matrix_actors.fact import CommandKind
from infinity_matrix_actors.names import check_name
from infinity_matrix_actors.state import ExecutionState
from infinity_matrix_bus.definitions import DefinitionStore

from infinity_matrix_coordinator.choices import chosen
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.listing import (
    INCOMPLETE,
    LISTED_STATES,
    ExecutionSummary,
    Selection,
    last_runs,
)
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.patience import patiently
from infinity_matrix_coordinator.standing import refold

#: A cancel's own grace; the log takes no longer one.
GRACE_MAX_S = 365 * 86_400.0
#: An end that is decided but not written yet is waited for; its coordinator writes it within milliseconds.
END_WAIT_S = 10.0
END_POLL_S = 0.02
#: Executions of a bulk command that are asked at once.
BULK_AT_ONCE = 64


class Bulk(StrEnum):
    """The commands anyone may give."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    COMPENSATE = "compensate"

    @property
    def kind(self) -> CommandKind:
        return CommandKind(self.value)


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one execution in a bulk command; `problem` is None when it was asked."""

    execution_id: str
    workflow: str
    state: str
    problem: str | None = None


class Controls:
    """Commands on executions and workflows of one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def cancel(self, execution: str, reason: str = "", grace_s: float | None = None) -> None:
        """Asks for an execution to be cancelled; `grace_s` goes before the workflow's own.

        Raises UnknownExecution, InvalidDefinition for a grace that is none. Nothing happens to one that has ended.
        """
        if grace_s is not None and not 0 <= grace_s <= GRACE_MAX_S:
            raise InvalidDefinition(f"{grace_s:g} s is no grace", where="grace", hint="0 s to a year")
        await self._operations.command(execution, CommandKind.CANCEL, reason, grace_s)

    async def pause(self, execution: str, reason: str = "") -> None:
        """Holds an execution: what runs goes on, nothing more is begun. Raises UnknownExecution, WrongState."""
        self._check_open(await self._fold(execution), "there is nothing to pause")
        await self._operations.command(execution, CommandKind.PAUSE, reason)

    async def resume(self, execution: str, reason: str = "") -> None:
        """Lets a paused execution go on; does nothing to one that runs. One that is quarantined is folded again.

        Raises UnknownExecution, WrongState; ExecutionQuarantined where it still cannot be folded.
        """
        try:
            actor = await self._fold(execution)
        except ExecutionQuarantined:
            # Who asks may have older rules than who runs it.
            if not await self._refold(execution):
                raise
            return
        self._check_open(actor, "there is nothing to resume")
        if actor.state is not ExecutionState.PAUSED and await self._refold(execution):
            return
        await self._operations.command(execution, CommandKind.RESUME, reason)

    async def retry(self, execution: str, reason: str = "") -> None:
        """Reopens an execution that failed or was cancelled; results of tasks that completed are kept.

        Raises UnknownExecution, and WrongState for one that runs or completed.
        """
        actor = await self._ended(execution)
        if actor.state not in (ExecutionState.FAILED, ExecutionState.CANCELLED):
            raise WrongState(f"execution {execution!r}", str(actor.state), "only one that failed or was cancelled")
        await self._operations.command(execution, CommandKind.RETRY, reason)

    async def compensate(self, execution: str, reason: str = "") -> None:
        """Takes an incomplete compensation up again: what failed of it is tried once more.

        Raises UnknownExecution, and WrongState for one that runs or has nothing left to undo.
        """
        actor = await self._ended(execution)
        if actor.compensation != INCOMPLETE:
            raise WrongState(f"execution {execution!r}", str(actor.state), "nothing of it is left to be undone")
        await self._operations.command(execution, CommandKind.COMPENSATE, reason)

    async def pause_workflow(self, workflow: str, *, running: bool = False) -> list[Asked]:
        """Nothing starts a workflow any more; with `running` its open executions are paused, too, and answered.

        Raises UnknownWorkflow.
        """
        await self._set_paused(workflow, is_paused=True)
        return await self.bulk(CommandKind.PAUSE, workflow=workflow) if running else []

    async def resume_workflow(self, workflow: str, *, running: bool = False) -> list[Asked]:
        """Lets a workflow be started again; with `running` its paused executions go on, too, and are answered.

        Raises UnknownWorkflow.
        """
        await self._set_paused(workflow, is_paused=False)
        return await self.bulk(CommandKind.RESUME, workflow=workflow) if running else []

    async def bulk(
        self,
        command: str,
        *,
        workflow: str | None = None,
        state: str | None = None,
        older_than_s: float | None = None,
        reason: str = "",
        grace_s: float | None = None,
        dry_run: bool = False,
    ) -> list[Asked]:
        """Gives a command to all executions it has a meaning for, and answers what came of each; newest first.

        With `dry_run` none is asked. Raises InvalidDefinition for an unknown command or state, StorageUnavailable.
        """
        kind = chosen(Bulk, command, "command").kind
        if state is not None and state not in LISTED_STATES:
            raise InvalidDefinition(f"{state!r} is none", where="state", hint=f"one of {', '.join(LISTED_STATES)}")
        before = None if older_than_s is None else time.time() - older_than_s
        found = await self.selected(kind, Selection(workflow, state, started_before=before))
        if dry_run:
            return [Asked(each.execution_id, each.workflow, each.state) for each in found]
        return await self.ask_all(kind, found, reason, grace_s)

    async def selected(self, kind: CommandKind, selection: Selection) -> list[ExecutionSummary]:
        """Those of a selection that the command has a meaning for, newest first."""
        everything = await self._operations.select(Selection())
        meant = (summary for summary in everything if is_meant(kind, summary))
        if kind is CommandKind.RETRY:
            # What a later run has taken the place of would be done twice.
            last = last_runs(everything)
            meant = (summary for summary in meant if last[summary.base] == summary.run)
        return selection.select(meant)

    async def ask_all(
        self, kind: CommandKind, summaries: Iterable[ExecutionSummary], reason: str = "", grace_s: float | None = None
    ) -> list[Asked]:
        """Gives each of these the command, and answers what came of it; one that is refused holds up no other.

        Raises what `cancel` raises for a grace that is none, and StorageUnavailable.
        """
        room = asyncio.Semaphore(BULK_AT_ONCE)

        async def ask(summary: ExecutionSummary) -> Asked:
            problem: str | None = None
            async with room:
                try:
                    await self.ask(kind, summary.execution_id, reason, grace_s)
                except (UnknownExecution, WrongState) as error:
                    problem = str(error)
            return Asked(summary.execution_id, summary.workflow, summary.state, problem)

        asking = [asyncio.create_task(ask(summary)) for summary in summaries]
        try:
            return list(await asyncio.gather(*asking))
        except InfinityMatrixError:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            raise

    async def ask(self, kind: CommandKind, execution: str, reason: str = "", grace_s: float | None = None) -> None:
        """The command of that kind; raises as it does."""
        match kind:
            case CommandKind.CANCEL:
                await self.cancel(execution, reason, grace_s)
            case CommandKind.PAUSE:
                await self.pause(execution, reason)
            case CommandKind.RESUME:
                await self.resume(execution, reason)
            case CommandKind.RETRY:
                await self.retry(execution, reason)
            case CommandKind.COMPENSATE:
                await self.compensate(execution, reason)
            case CommandKind.DEADLINE:
                raise AssertionError("a deadline is the coordinators' own")

    async def _set_paused(self, workflow: str, *, is_paused: bool) -> None:
        check_name("workflow", workflow)
        store = DefinitionStore(await self._operations.session(), self._operations.subjects)
        if not await store.pause(workflow, is_paused=is_paused):
            raise UnknownWorkflow(workflow)

    @staticmethod
    def _check_open(actor: ExecutionActor, problem: str) -> None:
        if actor.is_decided:
            raise WrongState(f"execution {actor.id!r}", str(actor.state), problem)

    async def _refold(self, execution: str) -> bool:
        return await refold(await self._operations.session(), self._operations.subjects, execution)

    async def _fold(self, execution: str) -> ExecutionActor:
        return await patiently(lambda: self._operations.fold(execution))

    async def _ended(self, execution: str) -> ExecutionActor:
        """The state of an execution whose end is in the log: a command before that end would not reopen it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_WAIT_S
        while True:
            actor = await self._fold(execution)
            if actor.finished is not None and actor.is_decided:
                return actor
            if not actor.is_decided:
                raise WrongState(f"execution {execution!r}", str(actor.state), "it has not ended yet")
            if loop.time() >= deadline:
                raise WrongState(f"execution {execution!r}", str(actor.state), "no coordinator has written its end yet")
            await asyncio.sleep(END_POLL_S)


def is_meant(kind: CommandKind, summary: ExecutionSummary) -> bool:
    """Whether a command has a meaning for an execution in this state."""
    match kind:
        case CommandKind.CANCEL | CommandKind.DEADLINE:
            return summary.is_open
        case CommandKind.PAUSE:
            return summary.state == ExecutionState.RUNNING
        case CommandKind.RESUME:
            return summary.state == ExecutionState.PAUSED
        case CommandKind.RETRY:
            return summary.state in (ExecutionState.FAILED, ExecutionState.CANCELLED)
        case CommandKind.COMPENSATE:
            return summary.is_undone_in_part
