"""Runs: what becomes of a start whose execution id is there already.

An id is never started twice. A further run of `<id>` is `<id>-r2`, then `<id>-r3`, each with `{"rerun_of": <id>,
"run": n}` as its cause, so that whoever knows the first id finds the last run without reading any other execution.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from infinity_matrix_actors.errors import ExecutionExists, UnknownExecution
from infinity_matrix_actors.fact import Priority, Started
from infinity_matrix_actors.names import NAME, check_name
from infinity_matrix_actors.state import ExecutionState

from infinity_matrix_coordinator.controls import Controls
from infinity_matrix_coordinator.operations import Operations

#: Runs of one execution id; the next is refused with ExecutionExists.
RUNS_MAX = 1000
#: Others may start the same run meanwhile with other content; so often the next one is tried.
PLACES_MAX = 20


class IfExists(StrEnum):
    """What a start does when its execution id is there."""

    REJECT = "reject"  #: the same definition and input answer it, anything else is refused
    RETURN = "return"  #: its last run is answered, whatever its content
    CANCEL = "cancel"  #: its last run is cancelled if it is open, and the next run started
    RERUN_FAILED = "rerun_failed"  #: the next run is started if the last one failed or was cancelled; else as `reject`


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an execution id; `number` counts from 1, which is the id itself."""

    execution: str
    base: str
    number: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a start goes; `is_settled` when there is nothing left to start. `to_end` is the run to be cancelled."""

    execution: str
    cause: dict[str, Any]
    is_settled: bool = False
    to_end: str | None = None


class Runs:
    """The runs of the execution ids of one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def latest(self, execution: str) -> Run:
        """The last run of the id that `execution` is a run of; raises UnknownExecution.

        One read for each further run; one more that finds nothing.
        """
        return (await self._last(execution))[0]

    async def _last(self, execution: str) -> tuple[Run, int]:
        """The last run, and the number after it that nobody has taken."""
        started = await self._operations.started_of(execution)
        if started is None:
            raise UnknownExecution(execution)
        run = run_of(started)
        for number in range(run.number + 1, RUNS_MAX + 1):
            candidate = run_id(run.base, number)
            following = await self._operations.started_of(candidate) if NAME.fullmatch(candidate) else None
            if following is None:
                return run, number
            found = run_of(following)
            # Somebody else's execution may happen to have the name.
            if found.base == run.base:
                run = found
        return run, RUNS_MAX + 1

    async def start(
        self,
        workflow: str,
        definition: str,
        input: Any,
        execution: str,
        if_exists: IfExists,
        priority: Priority = Priority.NORMAL,
    ) -> str:
        """Starts an execution as `Operations.start` does, or what `if_exists` says; answers the run's own id."""
        if if_exists is IfExists.REJECT:
            return await self._operations.start(workflow, definition, input, execution, priority=priority)
        for tries_left in reversed(range(PLACES_MAX)):
            place = await self._place(execution, if_exists)
            if place.is_settled:
                return place.execution
            if place.to_end is not None:
                # Not before it is known that the new one can be started: else there would be neither.
                new = Started(place.execution, 0.0, workflow, definition, input, place.cause, priority=priority)
                await self._operations.check_start(new)
                await Controls(self._operations).cancel(place.to_end, f"another run of {execution} was started")
            try:
                return await self._operations.start(
                    workflow, definition, input, place.execution, place.cause, priority=priority
                )
            except ExecutionExists:
                # Somebody was quicker; then the question is asked again, unless the answer is known.
                is_answered = if_exists is IfExists.RERUN_FAILED and not place.cause
                if is_answered or not tries_left:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def _place(self, execution: str, if_exists: IfExists) -> _Place:
        try:
            run, free = await self._last(execution)
        except UnknownExecution:
            return _Place(execution, {})
        if if_exists is IfExists.RETURN:
            return _Place(run.execution, {}, is_settled=True)
        actor = await self._operations.fold(run.execution)
        if if_exists is IfExists.RERUN_FAILED and actor.state not in (ExecutionState.FAILED, ExecutionState.CANCELLED):
            return _Place(run.execution, {})
        if free > RUNS_MAX:
            raise ExecutionExists(run.base, f"input, {RUNS_MAX} times")
        to_end = run.execution if if_exists is IfExists.CANCEL and not actor.is_decided else None
        # Found free, it goes to whoever is first; with the same content the others are answered with it.
        id = check_name("execution id", run_id(run.base, free))
        return _Place(id, {"rerun_of": run.base, "run": free}, to_end=to_end)


def run_id(base: str, number: int) -> str:
    """The execution id of a run; the first is the id itself."""
    return base if number == 1 else f"{base}-r{number}"


def run_of(started: Started) -> Run:
    """Which run an execution is, by its cause; one that only looks like a run is the first of its own id."""
    base, number = started.cause.get("rerun_of"), started.cause.get("run")
    if isinstance(base, str) and isinstance(number, int) and run_id(base, number) == started.execution:
        return Run(started.execution, base, number)
    return Run(started.execution, started.execution, 1)
