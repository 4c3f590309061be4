"""Lineage: where an execution comes from, what was started from it, and how often it was taken up again."""

from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.errors import UnknownExecution
from infinity_matrix_actors.fact import Command, CommandKind, Started

from infinity_matrix_coordinator.forks import Forks
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.runs import Runs, run_of


@dataclass(frozen=True, slots=True)
class Reopening:
    """A command that took an execution up again; `at` is in seconds since the epoch."""

    kind: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """The relations of one execution."""

    execution_id: str
    #: The id it is a further run of, and which run it is; None and 1 for a first.
    rerun_of: str | None = None
    run: int = 1
    #: The last run of that id; itself if it is the last.
    latest_run: str = ""
    #: The execution it was forked from, and the task from which on it does everything again.
    fork_of: str | None = None
    from_task: str | None = None
    #: The executions forked from it that are named after it.
    forks: list[str] = field(default_factory=list)
    #: Retries and compensations that were asked for, oldest first.
    reopened: list[Reopening] = field(default_factory=list)
    #: All that its start says of why it was started.
    cause: dict[str, Any] = field(default_factory=dict)


async def lineage_of(operations: Operations, execution: str) -> Lineage:
    """The relations of an execution, from its own log and the names of others; raises UnknownExecution."""
    facts = await operations.facts_of(execution)
    started = next((fact for _, fact in facts if isinstance(fact, Started)), None)
    if started is None:
        raise UnknownExecution(execution)
    run = run_of(started)
    origin = started.cause.get("fork")
    origin = origin if isinstance(origin, dict) else {}
    return Lineage(
        execution,
        run.base if run.number > 1 else None,
        run.number,
        (await Runs(operations).latest(execution)).execution,
        origin.get("execution"),
        origin.get("from_task"),
        await Forks(operations).of(execution),
        [
            Reopening(str(fact.kind), fact.at, fact.reason)
            for _, fact in facts
            if isinstance(fact, Command) and fact.kind in (CommandKind.RETRY, CommandKind.COMPENSATE)
        ],
        started.cause,
    )
