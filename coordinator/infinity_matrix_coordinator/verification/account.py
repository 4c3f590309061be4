"""What one execution's facts mean, worked out a second time and in another way than the execution actor does it.

The actor goes through the facts and routes each to who waits for it. Here the graph is gone through instead: a task's
fate follows from the fates of those before it, and from where in the order of facts its own outcomes stand. Both must
come to the same; a fault of one is hardly one of the other. A place is an index into `order`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any

from infinity_matrix_actors.condition import ConditionError
from infinity_matrix_actors.definition import CompensateWhen, RunWhen, TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.fact import (
    RELEASED_SIGNAL,
    Command,
    Due,
    ErrorType,
    Fact,
    Finished,
    Outcome,
    Signal,
    Started,
    Taken,
    TaskError,
)
from infinity_matrix_actors.graph import topological_order
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.retry import delay_s
from infinity_matrix_bus.artifacts import is_reference

from infinity_matrix_coordinator.saga import LEASE_S
from infinity_matrix_coordinator.verification.history import Entry, is_reopened_by

#: Fields of a task that are understood here; a task that sets another is of a kind that is not.
_KNOWN_FIELDS = frozenset(
    {
        *("id", "agent", "depends_on", "config", "condition", "run_when", "retry"),
        *("timeout", "queue_timeout", "total_timeout", "compensates", "compensate_when"),
        *("wait_for", "sleep", "until", "on_timeout"),
        # These change who does a task, or when its attempt is closed: to the rules that is an attempt like any other.
        *("service", "heartbeat_timeout"),
    }
)
_KNOWN_WORKFLOW_FIELDS = frozenset(
    {"name", "tasks", "version", "description", "timeout", "grace", "triggers", "on_failure"}
)
#: A config that is filled in may fail its task before any attempt.
_TEMPLATE = "${{"
#: What an attempt ends with that was interrupted, or that had a result nobody was given.
_DOUBTFUL = frozenset({"cancelled", "ResultNotEncodable", "PayloadTooLarge"})
_KNOWN_COMMANDS = frozenset({"cancel", "deadline"})
#: The place of a cancel that is older than `started`: nothing begins.
BEFORE_START = -1
#: Commands that open an execution again after its end.
REOPENING = frozenset({"retry", "compensate"})


@dataclass(slots=True)
class Attempt:
    """The places of one attempt's facts; several outcomes where there should be one."""

    taken: list[int] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)
    due: list[int] = field(default_factory=list)

    @property
    def first(self) -> int | None:
        """The first sign of the attempt having been begun."""
        return min([*self.taken, *self.outcomes], default=None)


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a task ended, and the place of the fact that says so."""

    state: str
    place: int
    result: Any = None
    error: TaskError | None = None

    def view(self) -> dict[str, Any]:
        """What a condition sees."""
        return {
            "result": self.result,
            "state": self.state,
            "error": self.error.record() if self.error is not None else None,
        }


def is_understood(definition: WorkflowDefinition, facts: Sequence[Entry]) -> bool:
    """Whether all that happened here is of the kinds this account covers."""
    tasks = (*definition.tasks, *definition.on_failure)
    waited_for = [task.wait_for for task in definition.tasks if task.wait_for is not None]
    return (
        # Which of several gets a signal is for the actor to say.
        len(waited_for) == len(set(waited_for))
        and not asks_artifacts(definition, facts)
        and not _sets_others(definition, _KNOWN_WORKFLOW_FIELDS)
        and not any(_sets_others(task, _KNOWN_FIELDS) or _TEMPLATE in repr(task.config) for task in tasks)
        and all(_is_known(fact) for _, fact in facts)
    )


def asks_artifacts(definition: WorkflowDefinition, facts: Sequence[Entry]) -> bool:
    """Whether a condition may look into a value of which only a reference is in the log."""
    if not any(task.condition for task in definition.tasks):
        return False
    values = [fact.result for _, fact in facts if isinstance(fact, Outcome)]
    values += [fact.input for _, fact in facts if isinstance(fact, Started)]
    return any(is_reference(one) for value in values for one in (value if isinstance(value, list) else [value]))


def _sets_others(definition: WorkflowDefinition | TaskDefinition, known: frozenset[str]) -> bool:
    """Whether a field that is not among the known says anything."""
    for one in fields(definition):
        if one.name in known:
            continue
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if getattr(definition, one.name) != default:
            return True
    return False


def _is_known(fact: Fact) -> bool:
    if isinstance(fact, Command):
        return str(fact.kind) in _KNOWN_COMMANDS | REOPENING
    if isinstance(fact, Started):
        return not fact.seed and not fact.skipped
    return not isinstance(fact, Signal) or fact.name == RELEASED_SIGNAL or not fact.name.startswith("im-")


def first_life(facts: Sequence[Entry]) -> list[Entry]:
    """The facts before a command that came after an end: from there on the execution is another one."""
    end: Finished | None = None
    for place, (_, fact) in enumerate(facts):
        if isinstance(fact, Finished):
            end = fact
        elif end is not None and isinstance(fact, Command) and is_reopened_by(end, fact):
            return list(facts[:place])
    return list(facts)


def reordered(facts: Sequence[Entry]) -> list[Entry]:
    """The facts with `started` first, from which places count, also where a cancel or a signal is older."""
    starts = [entry for entry in facts if isinstance(entry[1], Started)][:1]
    return [*starts, *(entry for entry in facts if not starts or entry is not starts[0])]


class Account:
    """One execution up to where it was taken up again. Made only of what `is_understood`, with a `started`."""

    def __init__(self, facts: Sequence[Entry], plan: Plan) -> None:
        self.plan = plan
        self.definition = plan.definition
        lived = first_life(facts)
        self.is_reopened = len(lived) < len(facts)
        self.order = reordered(lived)
        started = self.order[0][1]
        assert isinstance(started, Started)
        self.started = started
        self.tasks: dict[str, TaskDefinition] = {task.id: task for task in self.definition.tasks}
        self.undoing: dict[str, TaskDefinition] = {task.id: task for task in self.definition.on_failure}
        self.attempts: dict[str, dict[int, Attempt]] = {}
        self.finishes: list[int] = []
        self._stops: list[tuple[int, str]] = []
        self._signals: dict[str, list[int]] = {}
        #: By task where an agent let go of an attempt that was closed.
        self._released: dict[str, list[int]] = {}
        self._undo_settled: dict[str, tuple[int, bool] | None] = {}
        self._sort()
        #: The place at which a task's upstream tasks are all settled.
        self.ready: dict[str, int] = {}
        #: The place from which an attempt may begin.
        self.dispatched: dict[tuple[str, int], int] = {}
        self.settled: dict[str, Settlement] = {}
        #: The forward tasks, each after all it depends on.
        self.ordered = topological_order({name: task.depends_on for name, task in self.tasks.items()})
        for name in self.ordered:
            self._settle(self.tasks[name])
        self.stop, self.stopped_by = self._find_stop()
        #: Attempts that were out when the execution was stopped, each with the place of its outcome, or None.
        self.open_at_stop = self._find_open() if self.stop is not None else {}
        self.barrier = self._find_barrier()

    def fact(self, place: int) -> Fact:
        return self.order[place][1]

    def sequence(self, place: int) -> int:
        return self.order[place][0]

    def outcome(self, task: str, attempt: int) -> tuple[int, Outcome] | None:
        """The outcome of an attempt that counts, with its place."""
        found = self.attempts.get(task, {}).get(attempt)
        if found is None or not found.outcomes:
            return None
        fact = self.fact(found.outcomes[0])
        assert isinstance(fact, Outcome)
        return found.outcomes[0], fact

    def state_at_end(self, task: str) -> str | None:
        """The state of a forward task when the execution is decided; None while that is open."""
        settled = self.settled.get(task)
        if self.stop is None:
            return settled.state if settled is not None else None
        if settled is not None and settled.place <= self.stop:
            return settled.state
        if task not in self.open_at_stop:
            return "cancelled"
        found = self.outcome(task, self.open_at_stop[task][0])
        if found is None:
            return None
        error = found[1].error
        if error is None:
            return "completed"
        return "cancelled" if error.type == ErrorType.CANCELLED else "failed"

    def state_of(self, task: str) -> str | None:
        """The state of any task when the execution is decided; None while that is open, or of one that is not known."""
        if task in self.tasks:
            return self.state_at_end(task)
        settled = self.undo_settled(task) if task in self.undoing else None
        return None if settled is None else "completed" if settled[1] else "failed"

    def results(self) -> dict[str, Any]:
        """The results of the forward tasks that completed, as they travel."""
        return {name: self.settled[name].result for name in self.tasks if self.state_at_end(name) == "completed"}

    def attempt_count(self, task: str) -> int:
        """The attempts of a task that were dispatched."""
        return sum(1 for name, number in self.dispatched if name == task and self._was_dispatched(name, number))

    def is_undone(self, task: TaskDefinition, undo: TaskDefinition) -> bool:
        """Whether a forward task is to be compensated, once the barrier is reached."""
        if undo.compensate_when is CompensateWhen.ATTEMPTED:
            return self.attempt_count(task.id) > 0
        if self.state_at_end(task.id) == "completed":
            return True
        return undo.compensate_when is CompensateWhen.DEFAULT and self._is_unknown(task.id)

    def undone_before(self, undo: str) -> list[str]:
        """The undoing tasks that must be over before this one begins: of what came later, and then the plain ones."""
        forward = self.undoing[undo].compensates
        if forward is not None:
            return [name for name, task in self.wanted.items() if task in self.downstream[forward]]
        plain = [task.id for task in self.undoing.values() if task.compensates is None]
        return [*self.wanted, *plain[: plain.index(undo)]]

    @cached_property
    def wanted(self) -> dict[str, str]:
        """The undoing tasks that must run, each with what it undoes."""
        return {
            undo.id: undo.compensates
            for undo in self.undoing.values()
            if undo.compensates is not None and self.is_undone(self.tasks[undo.compensates], undo)
        }

    @cached_property
    def downstream(self) -> dict[str, set[str]]:
        """All tasks that come after each task."""
        found: dict[str, set[str]] = {task: set() for task in self.tasks}
        # From the end of the graph: what comes after a task is known by then.
        for task in reversed(self.ordered):
            for above in self.tasks[task].depends_on:
                found[above] |= {task} | found[task]
        return found

    def undo_settled(self, undo: str) -> tuple[int, bool] | None:
        """The place at which an undoing task was settled, and whether it completed; None when it was not."""
        if undo not in self._undo_settled:
            self._undo_settled[undo] = self._settle_undo(undo)
        return self._undo_settled[undo]

    def _settle_undo(self, undo: str) -> tuple[int, bool] | None:
        for number in range(1, len(self.attempts.get(undo, {})) + 2):
            found = self.outcome(undo, number)
            if found is None:
                return None
            place, outcome = found
            if outcome.error is None:
                return place, True
            begun = self._undo_dispatched_at(undo)
            if not self.is_retried(self.undoing[undo], number, place, outcome.error, begun):
                return place, False
        return None

    def _undo_dispatched_at(self, undo: str) -> float | None:
        """When an undoing task was sent out first: when its turn came and, of what is unknown, the lease was over."""
        settled = [self.undo_settled(other) for other in self.undone_before(undo)]
        if self.barrier is None or any(one is None for one in settled):
            return None
        place = max([self.barrier, *(one[0] for one in settled if one is not None)])
        first = self.attempts.get(undo, {}).get(1, Attempt())
        ends = [*first.due[:1], *self._released.get(self.undoing[undo].compensates or "", [])[:1]]
        later = [end for end in ends if end > place]
        if later and self._is_leased(undo, place):
            place = min(later)
        return self.fact(place).at

    def _is_leased(self, undo: str, place: int) -> bool:
        closed = [
            fact.at
            for _, fact in self.order[: place + 1]
            if isinstance(fact, Outcome) and fact.closed and fact.task == self.undoing[undo].compensates
        ]
        return bool(closed) and closed[-1] + LEASE_S > self.fact(place).at

    def is_retried(
        self, task: TaskDefinition, attempt: int, place: int, error: TaskError, first_at: float | None
    ) -> bool:
        """Whether another attempt follows one that failed at `place`."""
        if not error.retryable or attempt >= task.retry.max_attempts or error.type in task.retry.non_retryable:
            return False
        if first_at is None:
            return True
        retry_at = self.fact(place).at + delay_s(task.retry, attempt, error, self.started.execution, task.id)
        return retry_at < first_at + task.total_timeout

    def _sort(self) -> None:
        for place, (_, fact) in enumerate(self.order):
            match fact:
                case Taken() | Outcome() if fact.agent == self._agent_of(fact.task):
                    attempt = self._attempt(fact.task, fact.attempt)
                    (attempt.taken if isinstance(fact, Taken) else attempt.outcomes).append(place)
                case Due():
                    self._attempt(fact.task, fact.attempt).due.append(place)
                case Signal():
                    self._signals.setdefault(fact.name, []).append(place)
                    if fact.name == RELEASED_SIGNAL and isinstance(fact.data, dict):
                        self._released.setdefault(str(fact.data.get("task")), []).append(place)
                case Command() if str(fact.kind) == "cancel":
                    is_early = self.sequence(place) < self.sequence(0)
                    self._stops.append((BEFORE_START if is_early else place, "cancelled"))
                case Command() if str(fact.kind) == "deadline" and self.definition.timeout is not None:
                    self._stops.append((place, "failed"))
                case Finished():
                    self.finishes.append(place)

    def _attempt(self, task: str, number: int) -> Attempt:
        return self.attempts.setdefault(task, {}).setdefault(number, Attempt())

    def _agent_of(self, task: str) -> str | None:
        known = self.tasks.get(task) or self.undoing.get(task)
        return known.agent if known is not None else None

    def _settle(self, task: TaskDefinition) -> None:
        above = [self.settled.get(name) for name in task.depends_on]
        if any(one is None for one in above):
            return
        upstream = [one for one in above if one is not None]
        ready = self.ready[task.id] = max((one.place for one in upstream), default=0)
        if not _runs(task.run_when, [one.state for one in upstream]):
            self.settled[task.id] = Settlement("skipped", ready)
            return
        answer = self._ask(task)
        if answer is not True:
            state = "failed" if isinstance(answer, TaskError) else "skipped"
            error = answer if isinstance(answer, TaskError) else None
            self.settled[task.id] = Settlement(state, ready, error=error)
        elif task.agent:
            self._settle_by_attempts(task, ready)
        else:
            self._settle_by_waiting(task, ready)

    def _ask(self, task: TaskDefinition) -> bool | TaskError:
        condition = self.plan.nodes[task.id].condition
        if condition is None:
            return True
        try:
            views = {name: self.settled[name].view() for name in condition.references}
            return condition.evaluate(views, self.started.input)
        except ConditionError as error:
            return TaskError(ErrorType.CONDITION, str(error), retryable=False)

    def _settle_by_attempts(self, task: TaskDefinition, ready: int) -> None:
        first_at = self.fact(ready).at
        dispatched = ready
        number = 1
        while True:
            self.dispatched[task.id, number] = dispatched
            found = self.outcome(task.id, number)
            if found is None:
                return
            place, outcome = found
            if outcome.error is None:
                self.settled[task.id] = Settlement("completed", max(place, dispatched), outcome.result)
                return
            if not self.is_retried(task, number, place, outcome.error, first_at):
                self.settled[task.id] = Settlement("failed", max(place, dispatched), error=outcome.error)
                return
            number += 1
            dues = self.attempts.get(task.id, {}).get(number, Attempt()).due
            later = [due for due in dues if due > place]
            if not later:
                return
            dispatched = later[0]

    def _settle_by_waiting(self, task: TaskDefinition, ready: int) -> None:
        dues = [place for place in self.attempts.get(task.id, {}).get(1, Attempt()).due if place > ready]
        due = dues[0] if dues else len(self.order)
        signals = self._signals.get(task.wait_for, []) if task.wait_for is not None else []
        if signals and max(signals[0], ready) < due:
            fact = self.fact(signals[0])
            assert isinstance(fact, Signal)
            self.settled[task.id] = Settlement("completed", max(signals[0], ready), fact.data)
        elif dues and task.on_timeout is not None:
            self.settled[task.id] = Settlement("completed", due, task.on_timeout["result"])
        elif dues and task.wait_for is not None:
            error = TaskError(ErrorType.TIMED_OUT, "", retryable=False)
            self.settled[task.id] = Settlement("failed", due, error=error)
        elif dues:
            self.settled[task.id] = Settlement("completed", due)

    def _find_stop(self) -> tuple[int | None, str]:
        """The first fact after which no new task begins, and the state it heads for."""
        stops = list(self._stops)
        for name, settlement in self.settled.items():
            if settlement.state == "failed" and not self.plan.nodes[name].failure_is_handled:
                stops.append((settlement.place, "failed"))
        if not stops:
            return None, ""
        place, state = min(stops)
        # A cancel after the last task is done changes nothing.
        if self._is_complete() and place > max(one.place for one in self.settled.values()):
            return None, ""
        return place, state

    def _is_complete(self) -> bool:
        return len(self.settled) == len(self.tasks)

    def _find_open(self) -> dict[str, tuple[int, int | None]]:
        assert self.stop is not None
        found: dict[str, tuple[int, int | None]] = {}
        for task, number in sorted(self.dispatched):
            outcome = self.outcome(task, number)
            if self._was_dispatched(task, number) and (outcome is None or outcome[0] > self.stop):
                found[task] = (number, outcome[0] if outcome is not None else None)
        return found

    def _was_dispatched(self, task: str, number: int) -> bool:
        place = self.dispatched[task, number]
        if self.stop is None or place < self.stop:
            return True
        # Where the same fact made it ready and stopped the execution, only the agent tells which came first.
        return place == self.stop and self.attempts.get(task, {}).get(number, Attempt()).first is not None

    def _find_barrier(self) -> int | None:
        """The place after which undoing may begin, or the end be written; None while attempts are open."""
        if self.stop is None:
            return max(one.place for one in self.settled.values()) if self._is_complete() else None
        places = [place for _, place in self.open_at_stop.values()]
        return None if None in places else max([0, self.stop, *(place for place in places if place is not None)])

    def _is_unknown(self, task: str) -> bool:
        """An attempt was closed, or interrupted when it had begun: whether its effect happened nobody knows."""
        for number, attempt in self.attempts.get(task, {}).items():
            found = self.outcome(task, number)
            if found is None or found[1].error is None:
                continue
            has_begun = found[1].started_at is not None or bool(attempt.taken)
            if found[1].closed or (has_begun and found[1].error.type in _DOUBTFUL):
                return True
        return False


def _runs(when: RunWhen, states: Sequence[str]) -> bool:
    completed = "completed" in states
    failed = "failed" in states or "cancelled" in states
    rules: Mapping[RunWhen, bool] = {
        RunWhen.DEFAULT: not states or (completed and not failed),
        RunWhen.ALL_COMPLETED: all(state == "completed" for state in states),
        RunWhen.ANY_COMPLETED: not states or completed,
        RunWhen.ALL_SETTLED: True,
        RunWhen.ANY_FAILED: failed,
    }
    return rules[when]
