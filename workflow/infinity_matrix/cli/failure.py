"""How the command line tells what went wrong: a line, a hint, an exit code; never a traceback for a user's mistake."""

import json
import os
import sys

from infinity_matrix_actors import errors

WORKFLOW_FAILED = 1
USAGE = 2
NO_SERVER = 3
UNKNOWN = 4
#: A fault of this program, as in sysexits.h.
FAULT = 70

DEBUG_VARIABLE = "IM_DEBUG"

_HINTS: dict[type[Exception], str] = {
    errors.UnknownWorkflow: "'imx deploy FILE' stores a workflow under its name",
    errors.UnknownExecution: "'imx ls' lists the executions",
    errors.UnknownDeadLetter: "'imx dead ls' lists those that are there",
    errors.UnknownSchedule: "'imx schedule ls' lists the schedules",
    errors.ExecutionExists: "choose another --id, or say what to do with --if-exists",
    errors.RestoreRefused: "stop its coordinators and agents; --force deletes what is there and restores",
    errors.ArtifactMissing: "'imx artifacts ls' lists those that are there",
}


class UsageProblem(errors.InfinityMatrixError):
    """Raised when what was typed cannot be meant. Correct the command."""

    def __init__(self, problem: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(problem)


_MISTAKES = (
    UsageProblem,
    errors.InvalidDefinition,
    errors.InvalidInput,
    errors.PayloadNotEncodable,
    errors.PayloadTooLarge,
    errors.ExecutionExists,
    errors.BackupUnusable,
    errors.RestoreRefused,
    errors.WorkflowPaused,
    errors.WrongState,
    errors.NotAnAssignee,
    errors.PurgeRefused,
)

_UNKNOWN = (
    errors.ArtifactMissing,
    errors.UnknownAgent,
    errors.UnknownDeadLetter,
    errors.UnknownExecution,
    errors.UnknownSchedule,
    errors.UnknownTask,
    errors.UnknownVersion,
    errors.UnknownWorkflow,
)


def wants_traceback() -> bool:
    """Whether errors are to be shown as Python shows them."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def exit_code(error: Exception) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, _MISTAKES):
        return USAGE
    if isinstance(error, _UNKNOWN):
        return UNKNOWN
    if not isinstance(error, errors.InfinityMatrixError):
        return FAULT
    from infinity_matrix_agents import InvalidAgent

    from infinity_matrix.nats_context import BadContext

    return USAGE if isinstance(error, InvalidAgent | BadContext) else NO_SERVER


def report(error: Exception, *, as_json: bool) -> int:
    """Writes the error to stderr; answers its exit code."""
    code = exit_code(error)
    message, hint = _texts(error)
    if code == FAULT:
        message, hint = (
            f"{type(error).__name__}: {error}",
            f"a fault of infinity-matrix; {DEBUG_VARIABLE}=1 shows where",
        )
    if as_json:
        record = {"type": type(error).__name__, "message": message, **({"hint": hint} if hint else {})}
        sys.stderr.write(json.dumps({"error": record}, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return code


def _texts(error: Exception) -> tuple[str, str]:
    if isinstance(error, errors.InvalidDefinition):
        return (f"{error.where}: {error.problem}" if error.where else error.problem), error.hint
    hint = error.hint if isinstance(error, UsageProblem) else _HINTS.get(type(error), "")
    return str(error), hint
