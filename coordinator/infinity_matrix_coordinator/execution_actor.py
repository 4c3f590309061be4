"""The execution actor: the coordinator of one execution.

It hears every fact of its execution in log order, keeps its task actors, and answers each fact with effects. It never
waits, reads a clock or does anything itself, so every process that folds the same log finds the same state and the same
effects: two coordinators on one shard, a client asking for the status, a simulation.
"""

from collections import deque
from typing import Any, assert_never

from infinity_matrix_actors.effect import (
    Arm,
    AskTaken,
    CloseAttempt,
    Disarm,
    Effect,
    PublishDeadline,
    PublishFinished,
    PublishStatus,
    PublishWork,
    PurgeWork,
    TellAgents,
)
from infinity_matrix_actors.fact import (
    RELEASED_SIGNAL,
    Command,
    CommandKind,
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
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.retry import delay_s, is_retried
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.deadlines import (
    CLOSE_AGAIN_S,
    QUIET_ASK_S,
    attempt_deadline,
    expire_quiet,
    expire_task,
)
from infinity_matrix_coordinator.saga import Saga

#: Signals of one execution that nobody waits for yet; those beyond are ignored.
SIGNALS_KEPT_MAX = 1000
#: The error of an attempt that nobody had taken when its execution was stopped.
NOT_BEGUN = TaskError(ErrorType.CANCELLED, "stopped before any agent took it", retryable=False)


class ExecutionActor:
    """One execution's state. Only `receive` changes it."""

    __slots__ = (
        "decided_at",
        "error",
        "finished",
        "id",
        "ignored",
        "input",
        "open",
        "plan",
        "saga",
        "sequence",
        "settled",
        "signals",
        "started",
        "state",
        "stopped_at",
        "stopped_by",
        "tasks",
    )

    def __init__(self, started: Started, plan: Plan, sequence: int = 0) -> None:
        self.id = started.execution
        self.plan = plan
        self.started = started
        self.sequence = sequence
        self.input = started.input
        #: Running until the fact that decides otherwise; what that fact decided is final.
        self.state = ExecutionState.RUNNING
        self.tasks: dict[str, TaskActor] = {}
        #: Tasks with a dispatched attempt that has no outcome: the barrier before anything terminal.
        self.open: set[str] = set()
        self.settled = 0
        #: Signals that nobody waited for yet, by name, oldest first.
        self.signals: dict[str, list[Any]] = {}
        #: Set when no new task may start; `stopped_by` is the state the execution is heading for.
        self.stopped_at: float | None = None
        self.stopped_by: ExecutionState | None = None
        self.error: dict[str, Any] | None = None
        #: Begun once an execution that was stopped has no attempt open.
        self.saga: Saga | None = None
        self.decided_at: float | None = None
        self.finished: Finished | None = None
        #: Facts that changed nothing: late, forged or of an attempt that is not open.
        self.ignored = 0

    @property
    def is_decided(self) -> bool:
        return self.decided_at is not None

    def task(self, task: str) -> TaskActor:
        """The actor of a task; it exists from the first time it is spoken to."""
        actor = self.tasks.get(task)
        if actor is None:
            actor = self.tasks[task] = TaskActor(self.plan.node(task))
        return actor

    def receive(self, fact: Fact) -> list[Effect]:
        """Folds one fact and answers what follows from it."""
        match fact:
            case Outcome():
                return self._outcome(fact)
            case Started():
                return self._start(fact)
            case Taken():
                return self._taken(fact)
            case Due():
                return self._due(fact)
            case Command():
                return self._command(fact)
            case Finished():
                self.finished = fact
                return []
            case Signal():
                return self._signal(fact)
            case _:
                assert_never(fact)

    def outstanding(self) -> list[Effect]:
        """All effects the state asks for that no fact has answered yet; what a new owner begins with."""
        if self.finished is not None:
            return []
        effects: list[Effect] = [PurgeWork(name, actor.closed) for name, actor in self.tasks.items() if actor.closed]
        if self.is_decided:
            return [*effects, self._finish_effect()]
        for name, actor in self.tasks.items():
            if actor.is_open:
                assert actor.dispatched_at is not None
                effects.append(PublishWork(name, actor.attempt, actor.dispatched_at))
            self._arm(name, actor, effects)
        if self.stopped_at is not None and self.saga is None:
            effects.append(TellAgents(None, self._stop_reason()))
        self._arm_execution(effects)
        return effects

    def expire(self, task: str | None, now: float) -> list[Effect]:
        """What follows when a timer fires at stream time `now`: the task's, or with None the execution's own."""
        if task is not None:
            actor = self.tasks.get(task)
            if actor is None or self.is_decided:
                return []
            if self.stopped_at is not None and not actor.is_open and task not in self.plan.undo_nodes:
                # Its backoff leads nowhere any more; a `due` now would only burn the slot.
                return []
            effects = expire_task(task, actor, now)
            if self._is_stopping(actor) and not any(isinstance(effect, CloseAttempt) for effect in effects):
                return [AskTaken(task, actor.attempt)]
            return effects
        at = self._deadline()
        if at is None:
            return []
        if now < at:
            return [Arm(None, at)]
        if self.stopped_at is None:
            return [PublishDeadline(), Arm(None, now + CLOSE_AGAIN_S)]
        error = TaskError(
            ErrorType.CANCELLED, "stopped, and the agent gave no outcome within the grace", retryable=False
        )
        closings: list[Effect] = [CloseAttempt(name, self.tasks[name].attempt, error) for name in sorted(self.open)]
        return [*closings, Arm(None, now + CLOSE_AGAIN_S)]

    def expire_quiet(
        self, task: str, attempt: int, now: float, is_queued: bool, seen_taken_at: float | None
    ) -> list[Effect]:
        """What follows once the consumer said whether a quiet attempt is still queued (answers `AskTaken`)."""
        actor = self.tasks.get(task)
        if actor is None or actor.attempt != attempt or self.is_decided:
            return []
        if self._is_stopping(actor) and is_queued:
            # Nobody has it, so nobody need be given a grace.
            return [CloseAttempt(task, attempt, NOT_BEGUN), Arm(task, now + CLOSE_AGAIN_S)]
        return expire_quiet(task, actor, now, is_queued, seen_taken_at)

    def _is_stopping(self, actor: TaskActor) -> bool:
        """The execution is to end, and this attempt may still lie in its queue."""
        return self.stopped_at is not None and self.saga is None and actor.is_open and actor.taken_at is None

    def progress_percent(self) -> float:
        """Settled tasks over all tasks, in percent."""
        return 100.0 if self.state is ExecutionState.COMPLETED else 100.0 * self.settled / len(self.plan.nodes)

    def record(self) -> dict[str, Any]:
        """The whole state as plain data; two actors are in the same state when their records are equal."""
        return {
            "id": self.id,
            "state": str(self.state),
            "open": sorted(self.open),
            "settled": self.settled,
            "stopped_at": self.stopped_at,
            "stopped_by": self.stopped_by,
            "error": self.error,
            "decided_at": self.decided_at,
            "finished": self.finished,
            "signals": {name: list(kept) for name, kept in sorted(self.signals.items()) if kept},
            "saga": self.saga.record() if self.saga is not None else None,
            "tasks": {name: actor.record() for name, actor in sorted(self.tasks.items())},
        }

    def _start(self, fact: Started) -> list[Effect]:
        if self.tasks or self.is_decided:
            self.ignored += 1
            return []
        effects: list[Effect] = [PublishStatus(None, self.state, 0, fact.at)]
        completions: deque[TaskActor] = deque()
        for name in self.plan.roots:
            actor = self.task(name)
            if self.stopped_at is None and self._decide_task(name, actor, fact.at, effects):
                completions.append(actor)
        self._route(completions, fact.at, effects)
        self._arm_execution(effects)
        self._conclude(fact.at, effects)
        return effects

    def _taken(self, fact: Taken) -> list[Effect]:
        actor = self._open_attempt(fact)
        if actor is None or actor.taken_at is not None:
            self.ignored += 1
            return []
        actor.taken_at = fact.at
        actor.state = TaskState.RUNNING
        effects: list[Effect] = [PublishStatus(fact.task, actor.state, actor.attempt, fact.at)]
        self._arm(fact.task, actor, effects)
        return effects

    def _outcome(self, fact: Outcome) -> list[Effect]:
        actor = self._open_attempt(fact)
        if actor is None:
            self.ignored += 1
            return []
        name = fact.task
        self.open.discard(name)
        actor.started_at = fact.started_at if fact.started_at is not None else actor.taken_at
        actor.completed_at = fact.at
        actor.result = fact.result
        actor.error = fact.error
        if fact.closed:
            actor.closed = fact.attempt
            actor.closed_at = fact.at
            actor.is_released = False
        effects: list[Effect] = [Disarm(name)]
        if fact.closed:
            effects.append(PurgeWork(name, fact.attempt))
            effects.append(TellAgents(name, str(fact.error.type) if fact.error else "", fact.attempt))
        if fact.error is None:
            self._settle(name, actor, TaskState.COMPLETED, fact.at, effects)
        elif not self._retry(name, actor, fact.error, fact.at, effects):
            cancelled = self.stopped_at is not None and self.saga is None and fact.error.type == ErrorType.CANCELLED
            self._settle(name, actor, TaskState.CANCELLED if cancelled else TaskState.FAILED, fact.at, effects)
        self._conclude(fact.at, effects)
        return effects

    def _due(self, fact: Due) -> list[Effect]:
        actor = self.tasks.get(fact.task)
        is_undoing = fact.task in self.plan.undo_nodes
        if (
            actor is None
            or self.is_decided
            or (self.stopped_at is not None and not is_undoing)
            or not actor.is_delayed
            or fact.attempt != actor.attempt + 1
        ):
            self.ignored += 1
            return []
        effects: list[Effect] = []
        if actor.is_waiting:
            self._end_waiting(fact.task, actor, fact.at, effects)
            return effects
        if self.saga is not None:
            self.saga.begin(fact.task)
        self._dispatch(fact.task, actor, fact.at, effects)
        return effects

    def _command(self, fact: Command) -> list[Effect]:
        if self.is_decided or self.stopped_by is ExecutionState.CANCELLED:
            self.ignored += 1
            return []
        effects: list[Effect] = []
        match fact.kind:
            case CommandKind.CANCEL:
                # A cancel that comes while a failure is being wound up changes nothing: the failure came first.
                if self.stopped_at is None:
                    reason = fact.reason or "cancelled on request"
                    self._stop(
                        ExecutionState.CANCELLED,
                        {"type": str(ErrorType.CANCELLED), "message": reason},
                        fact.at,
                        effects,
                    )
            case CommandKind.DEADLINE:
                if self.stopped_at is None and self.plan.definition.timeout is not None:
                    message = f"the workflow took longer than its timeout of {self.plan.definition.timeout:g} s"
                    self._stop(
                        ExecutionState.FAILED, {"type": str(ErrorType.TIMED_OUT), "message": message}, fact.at, effects
                    )
            case CommandKind.PAUSE | CommandKind.RESUME | CommandKind.RETRY | CommandKind.COMPENSATE:
                self.ignored += 1
            case _:
                assert_never(fact.kind)
        self._conclude(fact.at, effects)
        return effects

    def _signal(self, fact: Signal) -> list[Effect]:
        if fact.name == RELEASED_SIGNAL:
            return self._released(fact)
        if self.is_decided or self.stopped_at is not None:
            self.ignored += 1
            return []
        effects: list[Effect] = []
        for name, actor in self.tasks.items():
            if actor.is_waiting and actor.node.definition.wait_for == fact.name:
                self._signalled(name, actor, fact.data, fact.at, effects)
                return effects
        if sum(map(len, self.signals.values())) >= SIGNALS_KEPT_MAX:
            self.ignored += 1
            return []
        # Nobody waits for it yet: it is kept for who will.
        self.signals.setdefault(fact.name, []).append(fact.data)
        return effects

    def _signalled(self, name: str, actor: TaskActor, data: Any, at: float, effects: list[Effect]) -> None:
        actor.result = data
        effects.append(Disarm(name))
        self._settle(name, actor, TaskState.COMPLETED, at, effects)
        self._conclude(at, effects)

    def _end_waiting(self, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> None:
        """The time of a waiting task has come: a sleep is over, or a signal did not come within `timeout`."""
        definition = actor.node.definition
        effects.append(Disarm(name))
        state = TaskState.COMPLETED
        if definition.wait_for is not None and definition.on_timeout is None:
            message = f"the signal {definition.wait_for!r} did not come within timeout, {definition.timeout:g} s"
            actor.error = TaskError(ErrorType.TIMED_OUT, message, retryable=False)
            state = TaskState.FAILED
        elif definition.on_timeout is not None:
            actor.result = definition.on_timeout["result"]
        self._settle(name, actor, state, at, effects)
        self._conclude(at, effects)

    def _released(self, fact: Signal) -> list[Effect]:
        """An agent let go of an attempt that was closed: what undoes it need not wait for the lease."""
        data = fact.data if isinstance(fact.data, dict) else {}
        task = str(data.get("task"))
        actor = self.tasks.get(task)
        if actor is None or self.is_decided or not actor.closed or actor.closed != data.get("attempt"):
            self.ignored += 1
            return []
        actor.is_released = True
        effects: list[Effect] = []
        if data.get("late") is True:
            actor.is_late = True
            error = actor.error.record() if actor.error is not None else None
            effects.append(PublishStatus(task, actor.state, actor.attempt, fact.at, error))
        undo = self.plan.undo_of.get(task)
        if self.saga is not None and undo is not None:
            self.saga.leased_until.pop(undo, None)
            self._conclude(fact.at, effects)
        return effects

    def _open_attempt(self, fact: Outcome | Taken) -> TaskActor | None:
        """The task actor a fact is about, if that attempt is open and the agent is the task's own."""
        actor = self.tasks.get(fact.task)
        if (
            actor is None
            or self.is_decided
            or not actor.is_open
            or actor.attempt != fact.attempt
            or actor.node.definition.agent != fact.agent
        ):
            return None
        return actor

    def _begin_waiting(self, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> bool:
        """Begins a task that no agent does; answers whether it is settled by a signal that came before."""
        definition = actor.node.definition
        actor.state = TaskState.RUNNING
        actor.dispatched_at = actor.taken_at = at
        effects.append(PublishStatus(name, actor.state, 0, at))
        kept = self.signals.get(definition.wait_for) if definition.wait_for is not None else None
        if kept:
            actor.result = kept.pop(0)
            return self._mark(name, actor, TaskState.COMPLETED, at, effects)
        if definition.until is not None:
            actor.retry_at = definition.until
        else:
            wait_s = definition.sleep if definition.sleep is not None else definition.timeout
            actor.retry_at = at + wait_s if wait_s is not None else None
        if actor.retry_at is not None:
            effects.append(Arm(name, actor.retry_at))
        return False

    def _dispatch(self, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> None:
        actor.state = TaskState.QUEUED
        actor.attempt += 1
        actor.dispatched_at = at
        # What is known of the attempt before goes, except its error: that says why there is another.
        actor.taken_at = actor.started_at = actor.completed_at = actor.retry_at = None
        if actor.first_dispatched_at is None:
            actor.first_dispatched_at = at
        self.open.add(name)
        effects.append(PublishWork(name, actor.attempt, at))
        effects.append(PublishStatus(name, actor.state, actor.attempt, at))
        self._arm(name, actor, effects)

    def _decide_task(self, name: str, actor: TaskActor, at: float, effects: list[Effect]) -> bool:
        """All upstream tasks are settled: dispatch, skip or fail the task. Answers whether it is settled by that."""
        if not actor.runs():
            return self._mark(name, actor, TaskState.SKIPPED, at, effects)
        answer = actor.asks_condition(self.tasks, self.input)
        if isinstance(answer, TaskError):
            actor.error = answer
            return self._mark(name, actor, TaskState.FAILED, at, effects)
        if not answer:
            return self._mark(name, actor, TaskState.SKIPPED, at, effects)
        if actor.node.definition.is_waiting:
            return self._begin_waiting(name, actor, at, effects)
        self._dispatch(name, actor, at, effects)
        return False

    def _retry(self, name: str, actor: TaskActor, error: TaskError, at: float, effects: list[Effect]) -> bool:
        definition = actor.node.definition
        is_stopped = self.stopped_at is not None and name not in self.plan.undo_nodes
        if is_stopped or not is_retried(definition.retry, actor.attempt, error):
            return False
        retry_at = at + delay_s(definition.retry, actor.attempt, error, self.id, name)
        assert actor.first_dispatched_at is not None
        if retry_at >= actor.first_dispatched_at + definition.total_timeout:
            return False
        actor.state = TaskState.RETRYING
        actor.retry_at = retry_at
        effects.append(PublishStatus(name, actor.state, actor.attempt, at, error.record()))
        effects.append(Arm(name, retry_at))
        return True

    def _mark(self, name: str, actor: TaskActor, state: TaskState, at: float, effects: list[Effect]) -> bool:
        actor.state = state
        actor.completed_at = at
        self.settled += 1
        error = actor.error
        effects.append(PublishStatus(name, state, actor.attempt, at, error.record() if error is not None else None))
        if state is TaskState.FAILED and not actor.node.failure_is_handled:
            assert error is not None
            self._stop(ExecutionState.FAILED, {**error.record(), "task": name}, at, effects)
        return True

    def _settle(self, name: str, actor: TaskActor, state: TaskState, at: float, effects: list[Effect]) -> None:
        if self.saga is not None:
            actor.state = state
            error = actor.error.record() if actor.error is not None else None
            effects.append(PublishStatus(name, state, actor.attempt, at, error))
            self.saga.settle(name, actor.node.definition.compensates, state is TaskState.COMPLETED)
            return
        self._mark(name, actor, state, at, effects)
        self._route(deque((actor,)), at, effects)

    def _route(self, completions: deque[TaskActor], at: float, effects: list[Effect]) -> None:
        """Routes completions to their subscribers, and those that follow at once to theirs, without recursion."""
        while completions and self.stopped_at is None:
            settled = completions.popleft()
            for subscriber in settled.node.subscribers:
                listener = self.task(subscriber)
                if (
                    listener.hears(settled.state)
                    and self.stopped_at is None
                    and self._decide_task(subscriber, listener, at, effects)
                ):
                    completions.append(listener)

    def _stop(self, to: ExecutionState, error: dict[str, Any], at: float, effects: list[Effect]) -> None:
        """No new task starts from here on; running agents are told, and have `grace` to give their outcome."""
        if self.stopped_at is not None:
            return
        self.stopped_at = at
        self.stopped_by = to
        self.error = error
        if self.open:
            effects.append(TellAgents(None, self._stop_reason()))
        # What an agent has it says itself; what lies in a queue is found there, and need not wait for the grace.
        effects.extend(Arm(name, at + QUIET_ASK_S) for name in sorted(self.open) if self.tasks[name].taken_at is None)
        self._arm_execution(effects)

    def _conclude(self, at: float, effects: list[Effect]) -> None:
        """Decides the terminal state, or goes on with the saga, once no dispatched attempt is without its outcome."""
        if self.is_decided:
            return
        if self.saga is None:
            if self.open:
                return
            if self.stopped_by is None:
                if self.settled == len(self.plan.nodes):
                    self._decide(ExecutionState.COMPLETED, at, effects)
                return
            self._begin_saga(at, effects)
        self._go_on_with_saga(at, effects)

    def _begin_saga(self, at: float, effects: list[Effect]) -> None:
        for name in self.plan.nodes:
            actor = self.task(name)
            if not actor.is_settled:
                if actor.is_delayed:
                    effects.append(Disarm(name))
                self._mark(name, actor, TaskState.CANCELLED, at, effects)
        self.saga = Saga(self.plan, self.tasks)
        if not self.saga.is_over:
            self.state = ExecutionState.COMPENSATING
            effects.append(Disarm(None))
            effects.append(PublishStatus(None, self.state, 0, at, self.error))

    def _go_on_with_saga(self, at: float, effects: list[Effect]) -> None:
        assert self.saga is not None
        assert self.stopped_by is not None
        for undo in self.saga.ready():
            actor = self.task(undo)
            leased_until = self.saga.leased_until.get(undo, at)
            if leased_until > at:
                if actor.retry_at is None:
                    actor.retry_at = leased_until
                    effects.append(Arm(undo, leased_until))
                continue
            self.saga.begin(undo)
            self._dispatch(undo, actor, at, effects)
        if self.saga.is_over:
            self._decide(ExecutionState.FAILED if self.saga.failed else self.stopped_by, at, effects)

    def _decide(self, state: ExecutionState, at: float, effects: list[Effect]) -> None:
        self.state = state
        self.decided_at = at
        effects.append(Disarm(None))
        effects.append(self._finish_effect())
        effects.append(PublishStatus(None, self.state, 0, at, self.error))

    def _finish_effect(self) -> PublishFinished:
        assert self.decided_at is not None
        return PublishFinished(self.state, self.error, self.decided_at, self.compensation, self.compensated)

    @property
    def compensation(self) -> str | None:
        """`complete` or `incomplete` once there was something to undo, else None."""
        if self.saga is None or not (self.saga.compensated or self.saga.failed):
            return None
        return "incomplete" if self.saga.failed else "complete"

    @property
    def compensated(self) -> tuple[str, ...]:
        """The tasks that were undone, in the order it was done."""
        return tuple(self.saga.compensated) if self.saga is not None else ()

    def _stop_reason(self) -> str:
        return str(self.error["message"]) if self.error is not None else ""

    def _arm(self, name: str, actor: TaskActor, effects: list[Effect]) -> None:
        at = attempt_deadline(actor)
        if at is not None:
            effects.append(Arm(name, at))

    def _arm_execution(self, effects: list[Effect]) -> None:
        at = self._deadline()
        if at is not None:
            effects.append(Arm(None, at))

    def _deadline(self) -> float | None:
        """When the execution's own timer is due: its timeout, or the end of the grace once it is stopped."""
        if self.is_decided:
            return None
        definition = self.plan.definition
        if self.saga is not None:
            return None
        if self.stopped_at is not None:
            return self.stopped_at + definition.grace
        return None if definition.timeout is None else self.started.at + definition.timeout
