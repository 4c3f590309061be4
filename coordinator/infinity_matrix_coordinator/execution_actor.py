"""The execution actor: the coordinator of one execution.

It hears every fact of its execution in log order, keeps its task actors, and answers each fact with effects. It never
waits, reads a clock or does anything itself, so every process that folds the same log finds the same state and the same
effects: two coordinators on one shard, a client asking for the status, a simulation.
"""

from typing import Any, assert_never

from infinity_matrix_actors.definition import ClosePolicy
from infinity_matrix_actors.effect import (
    Arm,
    AskHeartbeat,
    AskSlot,
    AskTaken,
    CancelChild,
    CloseAttempt,
    Disarm,
    Effect,
    PublishDeadline,
    PublishStatus,
    PublishWork,
    PurgeWork,
    StartChild,
    TellAgents,
)
from infinity_matrix_actors.errors import ConditionError
from infinity_matrix_actors.fact import (
    APPROVAL_SIGNAL,
    RELEASED_SIGNAL,
    SLOT_SIGNAL,
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
from infinity_matrix_actors.formula import text_of_key
from infinity_matrix_actors.names import RESERVED
from infinity_matrix_actors.retry import delay_s, is_retried
from infinity_matrix_actors.schema import problem_of
from infinity_matrix_actors.state import ExecutionState, TaskState
from infinity_matrix_actors.task_actor import TaskActor

from infinity_matrix_coordinator.beginning import arm, arm_execution, dispatch, stop, stop_children
from infinity_matrix_coordinator.callbacks import answered, task_failed
from infinity_matrix_coordinator.dead import bury
from infinity_matrix_coordinator.deadlines import CLOSE_AGAIN_S, expire_heartbeat, expire_quiet, expire_task
from infinity_matrix_coordinator.execution import PAUSED, SLOT, Execution
from infinity_matrix_coordinator.reopening import reopen
from infinity_matrix_coordinator.routing import begin_ready, settle, take_up
from infinity_matrix_coordinator.stopping import NOT_BEGUN, conclude, go_on_with_saga
from infinity_matrix_coordinator.waiting import end_waiting, keep_signal, signalled

GRACE_OVER = TaskError(ErrorType.CANCELLED, "stopped, and the agent gave no outcome within the grace", retryable=False)


class ExecutionActor(Execution):
    """Folds facts into the state and answers effects. Only `receive` changes it."""

    __slots__ = ()

    def receive(self, fact: Fact) -> list[Effect]:
        """Folds one fact and answers what follows from it."""
        if self.leaving:
            for name in self.leaving:
                self.tasks.pop(name, None)
            self.leaving.clear()
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
                self.finishes = max(self.finishes, fact.n)
                return []
            case Signal():
                return self._signal(fact)
            case _:
                assert_never(fact)

    def outstanding(self) -> list[Effect]:
        """All effects the state asks for that no fact has answered yet; what a new owner begins with."""
        if self.finished is not None:
            return []
        ended = [self._ended(name, actor) for name, actor in self.tasks.items() if actor.closed]
        effects: list[Effect] = [effect for effect in ended if effect is not None]
        for name, actor in self.tasks.items():
            bury(name, actor, effects)
        if self.is_decided:
            return [*effects, self.finish_effect()]
        if SLOT in self.holds and self.slot_key is not None and self.plan.definition.slots is not None:
            max_running = self.plan.definition.slots.max_running
            effects.append(AskSlot(self.slot_key, max_running, self.finishes + 1))
        for name, actor in self.tasks.items():
            if actor.is_open:
                assert actor.dispatched_at is not None
                if actor.node.definition.child is None:
                    effects.append(PublishWork(name, actor.attempt, actor.dispatched_at))
                else:
                    effects.append(StartChild(name, actor.attempt, actor.dispatched_at))
            arm(name, actor, effects)
        if self.stopped_at is not None and self.saga is None and not self.is_asking:
            effects.append(TellAgents(None, self.stop_reason))
            effects.extend(stop_children(self))
        arm_execution(self, effects)
        return effects

    def expire(self, task: str | None, now: float) -> list[Effect]:
        """What follows when a timer fires at stream time `now`: the task's, or with None the execution's own."""
        if task is not None:
            return self._expire_task(task, now)
        at = self.deadline()
        if at is None:
            return []
        if now < at:
            return [Arm(None, at)]
        if self.stopped_at is None or self.reopen_at is not None:
            is_again = self.reopen_at is not None
            return [PublishDeadline(self.runs, is_again), Arm(None, now + CLOSE_AGAIN_S)]
        closings: list[Effect] = [
            CloseAttempt(name, self.tasks[name].attempt, GRACE_OVER)
            for name in sorted(self.open)
            if self.tasks[name].node.definition.child is None
        ]
        return [*closings, *stop_children(self), Arm(None, now + CLOSE_AGAIN_S)]

    def _expire_task(self, task: str, now: float) -> list[Effect]:
        actor = self.tasks.get(task)
        if actor is None or self.is_decided:
            return []
        if self.stopped_at is not None and not actor.is_open and not self.is_undoing(task):
            # Its backoff leads nowhere any more; a `due` now would only burn the slot.
            return []
        effects = expire_task(task, actor, now)
        if self.is_stopping(task, actor) and not any(isinstance(effect, CloseAttempt) for effect in effects):
            return [AskTaken(task, actor.attempt)]
        return effects

    def expire_quiet(
        self, task: str, attempt: int, now: float, is_queued: bool, seen_taken_at: float | None
    ) -> list[Effect]:
        """What follows once the consumer said whether a quiet attempt is still queued (answers `AskTaken`)."""
        actor = self.tasks.get(task)
        if actor is None or actor.attempt != attempt or self.is_decided:
            return []
        if self.is_stopping(task, actor) and is_queued:
            # Nobody has it, so nobody need be given a grace.
            return [CloseAttempt(task, attempt, NOT_BEGUN), Arm(task, now + CLOSE_AGAIN_S)]
        return expire_quiet(task, actor, now, is_queued, seen_taken_at)

    def expire_heartbeat(self, task: str, attempt: int, now: float, seen_at: float | None) -> list[Effect]:
        """What follows once it is known when an agent last showed progress (answers `AskHeartbeat`)."""
        actor = self.tasks.get(task)
        if actor is None or actor.attempt != attempt or self.is_decided:
            return []
        return expire_heartbeat(task, actor, now, seen_at)

    def _start(self, fact: Started) -> list[Effect]:
        if self.tasks or self.is_decided or self.slot_key is not None:
            self.ignored += 1
            return []
        if fact.skipped:
            self.state, self.decided_at = ExecutionState.CANCELLED, fact.at
            self.error = {"type": "skipped", "message": "this tick of the schedule was passed over"}
            return []
        effects: list[Effect] = [PublishStatus(None, self.state, 0, fact.at)]
        definition = self.plan.definition
        refusal = self._refusal()
        if refusal is not None:
            stop(self, ExecutionState.FAILED, refusal, fact.at, effects)
        elif definition.slots is not None:
            self._ask_slot(definition.slots.max_running, effects)
        if SLOT not in self.holds:
            self._begin(fact.at, effects)
        arm_execution(self, effects)
        conclude(self, fact.at, effects)
        return effects

    def _begin(self, at: float, effects: list[Effect]) -> None:
        if not self.started.seed:
            begin_ready(self, self.plan.roots, at, effects)
            return
        for name, result in self.started.seed.items():
            if name in self.plan.nodes and self.stopped_at is None:
                actor = self.task(name)
                actor.result = result
                actor.state = TaskState.COMPLETED
                actor.completed_at = at
                self.settled += 1
                effects.append(PublishStatus(name, actor.state, 0, at))
        take_up(self, at, effects)

    def _refusal(self) -> dict[str, Any] | None:
        """Why it cannot begin: its input is not as it must be, or has no concurrency key. Finds the key."""
        schema = self.plan.definition.input_schema
        problem = None if schema is None else problem_of(schema, self.content)
        if problem is not None:
            return {"type": str(ErrorType.INVALID_INPUT), "message": f"the input is not as its schema says: {problem}"}
        if self.plan.definition.slots is None or self.slot_key is not None:
            return None
        try:
            key = "" if self.plan.key is None else text_of_key(self.plan.key.evaluate({}, {"input": self.content}))
        except ConditionError as error:
            return {"type": str(ErrorType.EXPRESSION), "message": f"key: {error.reason}"}
        self.slot_key = key
        return None

    def _ask_slot(self, max_running: int, effects: list[Effect]) -> None:
        assert self.slot_key is not None
        self.holds |= {SLOT}
        effects.append(AskSlot(self.slot_key, max_running, self.finishes + 1))

    def _taken(self, fact: Taken) -> list[Effect]:
        actor = self._open_attempt(fact)
        if actor is not None and actor.node.definition.child is not None:
            actor.instance = fact.instance
            return []
        if actor is None or actor.taken_at is not None:
            self.ignored += 1
            return []
        actor.taken_at = fact.at
        actor.instance = fact.instance
        actor.state = TaskState.RUNNING
        effects: list[Effect] = [PublishStatus(fact.task, actor.state, actor.attempt, fact.at)]
        arm(fact.task, actor, effects)
        if actor.node.definition.heartbeat_timeout is not None:
            # Whoever listens for it begins now, not when the first time is over.
            effects.append(AskHeartbeat(fact.task, actor.attempt))
        return effects

    def _outcome(self, fact: Outcome) -> list[Effect]:
        actor = self._open_attempt(fact)
        if actor is None:
            self.ignored += 1
            return []
        name = fact.task
        self.open.discard(name)
        actor.is_open = False
        actor.started_at = _began_at(actor, fact)
        actor.completed_at = fact.at
        actor.result = fact.result
        actor.content = fact.content
        actor.error = fact.error
        effects: list[Effect] = [Disarm(name)]
        if fact.closed:
            self._close(name, actor, fact, effects)
        definition = actor.node.definition
        if definition.result_schema is not None and actor.error is None:
            value = fact.result if fact.content is None else fact.content
            problem = problem_of(definition.result_schema, value)
            if problem is not None:
                message = f"the result is not as its schema says: {problem}"
                actor.error = TaskError(ErrorType.INVALID_RESULT, message, retryable=False)
                actor.result = actor.content = None
        if name in self.calls or name in self.notices:
            answered(self, name, actor, fact.at, effects)
        elif actor.error is None:
            settle(self, name, actor, TaskState.COMPLETED, fact.at, effects)
        elif not self._retry(name, actor, actor.error, fact.at, effects):
            is_cancelled = self.stopped_at is not None and self.saga is None
            if is_cancelled and actor.error.type == ErrorType.CANCELLED:
                settle(self, name, actor, TaskState.CANCELLED, fact.at, effects)
            else:
                task_failed(self, name, actor, actor.error, fact.at, effects)
        conclude(self, fact.at, effects)
        return effects

    def _close(self, name: str, actor: TaskActor, fact: Outcome, effects: list[Effect]) -> None:
        """A coordinator gave the outcome: nobody knows whether the agent did the work."""
        actor.closed = fact.attempt
        actor.closed_at = fact.at
        actor.is_released = False
        ended = self._ended(name, actor)
        if ended is not None:
            effects.append(ended)
        if actor.node.definition.child is None:
            reason = str(fact.error.type) if fact.error is not None else ""
            effects.append(TellAgents(name, reason, fact.attempt))

    def _ended(self, name: str, actor: TaskActor) -> PurgeWork | CancelChild | None:
        """What sees to it that an attempt that was closed is not done any more; None of a child that may go on."""
        child = actor.node.definition.child
        if child is None:
            return PurgeWork(name, actor.closed)
        assert actor.closed_at is not None
        was_stopped = self.stopped_at is not None and actor.closed_at >= self.stopped_at
        if child.close is ClosePolicy.ABANDON and was_stopped:
            return None
        return CancelChild(name, actor.closed, "its parent waits for it no more")

    def _due(self, fact: Due) -> list[Effect]:
        actor = self.tasks.get(fact.task)
        if (
            actor is None
            or self.is_decided
            or (self.stopped_at is not None and not self.is_undoing(fact.task))
            or not actor.is_delayed
            or fact.attempt != actor.attempt + 1
        ):
            self.ignored += 1
            return []
        effects: list[Effect] = []
        if actor.is_waiting:
            end_waiting(self, fact.task, actor, fact.at, effects)
            conclude(self, fact.at, effects)
            return effects
        if self.saga is not None and fact.task not in self.saga.running:
            # The lease of what it undoes is over.
            self.saga.leased_until.pop(fact.task, None)
            go_on_with_saga(self, fact.at, effects)
            return effects
        dispatch(self, fact.task, actor, fact.at, effects)
        return effects

    def _command(self, fact: Command) -> list[Effect]:
        # A child may be cancelled before it is started; it ends no earlier than it began.
        at = max(fact.at, self.started.at)
        effects: list[Effect] = []
        match fact.kind:
            case CommandKind.RETRY:
                is_taken = self._reopen(at, effects)
            case CommandKind.COMPENSATE:
                is_taken = self._compensate(at, effects)
            case CommandKind.PAUSE:
                is_taken = self._pause(at, effects)
            case CommandKind.RESUME:
                is_taken = self._resume(at, effects)
            case CommandKind.CANCEL:
                is_taken = self._cancel(fact, at, effects)
            case CommandKind.DEADLINE:
                is_taken = self._time_is_over(fact, at, effects)
            case _:
                assert_never(fact.kind)
        if not is_taken:
            self.ignored += 1
            return []
        conclude(self, at, effects)
        return effects

    def _cancel(self, fact: Command, at: float, effects: list[Effect]) -> bool:
        if self.is_decided or self.is_complete:
            return False
        error = {"type": str(ErrorType.CANCELLED), "message": fact.reason or "cancelled on request"}
        is_taken = self.stopped_at is None or self.may_go_on
        if self.stopped_at is None:
            self.grace = fact.grace
            if PAUSED in self.holds:
                self.state = ExecutionState.RUNNING
                effects.append(PublishStatus(None, self.state, 0, at))
            self.holds = frozenset()
            stop(self, ExecutionState.CANCELLED, error, at, effects)
        elif self.may_go_on:
            # What `on_error` would say, or has said, is wanted no more.
            self.grace = self.grace if fact.grace is None else fact.grace
            self.stopped_by, self.error, self.reopen_at = ExecutionState.CANCELLED, error, None
            effects.extend(CloseAttempt(call, 1, NOT_BEGUN) for call, about in self.calls.items() if about is None)
            arm_execution(self, effects)
        # Else it changes nothing, for the failure came first; but nothing holds up the end any more.
        return self._resume(at, effects) or is_taken

    def _time_is_over(self, fact: Command, at: float, effects: list[Effect]) -> bool:
        """A timer of the execution itself was due: its timeout, or the time to try its failed tasks again."""
        if fact.id == PublishDeadline(self.runs, is_again=True).id:
            if self.reopen_at is None:
                return False
            reopen(self, set(), at, effects)
            return True
        timeout_s = self.plan.definition.timeout
        is_its_own = fact.id == PublishDeadline(self.runs).id
        if not is_its_own or self.stopped_at is not None or self.deadline() is None:
            return False
        message = f"the workflow took longer than its timeout of {timeout_s:g} s"
        error = {"type": str(ErrorType.TIMED_OUT), "message": message}
        stop(self, ExecutionState.FAILED, error, at, effects)
        return True

    def _reopen(self, at: float, effects: list[Effect]) -> bool:
        if self.finished is None or self.state is ExecutionState.COMPLETED or self.started.skipped:
            return False
        refusal = self._refusal()
        slots = self.plan.definition.slots
        if slots is not None and refusal is None:
            # It gave its slot back when it ended, if it had one.
            self._ask_slot(slots.max_running, effects)
        reopen(self, set(), at, effects, is_asked_for=True, refusal=refusal)
        return True

    def _compensate(self, at: float, effects: list[Effect]) -> bool:
        if self.finished is None or self.saga is None or not self.saga.failed:
            return False
        self.finished = self.decided_at = None
        self.state = ExecutionState.COMPENSATING
        for undo in self.saga.reopen():
            self.tasks[undo].reset()
        effects.append(PublishStatus(None, self.state, 0, at, self.error))
        return True

    def _pause(self, at: float, effects: list[Effect]) -> bool:
        if self.is_decided or PAUSED in self.holds:
            return False
        self.holds |= {PAUSED}
        self.state = ExecutionState.PAUSED
        effects.append(PublishStatus(None, self.state, 0, at))
        return True

    def _resume(self, at: float, effects: list[Effect]) -> bool:
        if self.is_decided or PAUSED not in self.holds:
            return False
        self.holds -= {PAUSED}
        self.state = ExecutionState.RUNNING if self.saga is None else ExecutionState.COMPENSATING
        effects.append(PublishStatus(None, self.state, 0, at))
        self._dispatch_held(at, effects)
        return True

    def _dispatch_held(self, at: float, effects: list[Effect]) -> None:
        if self.holds:
            return
        held, self.held = self.held, {}
        for name in held:
            dispatch(self, name, self.tasks[name], at, effects)

    def _signal(self, fact: Signal) -> list[Effect]:
        effects: list[Effect] = []
        if fact.name == RELEASED_SIGNAL:
            return self._released(fact)
        is_taken = not self.is_decided and self.stopped_at is None
        if is_taken and fact.name == SLOT_SIGNAL:
            # Not one that was asked for earlier and given back.
            data = fact.data if isinstance(fact.data, dict) else {}
            is_taken = SLOT in self.holds and data.get("n") == self.finishes + 1
            if is_taken:
                self.holds -= {SLOT}
                if self.tasks:
                    self._dispatch_held(fact.at, effects)
                else:
                    self._begin(fact.at, effects)
        elif is_taken and (not fact.name.startswith(RESERVED) or fact.name == APPROVAL_SIGNAL):
            is_taken = signalled(self, fact, effects)
        elif not fact.name.startswith(RESERVED) and keep_signal(self, fact):
            return []
        else:
            is_taken = False
        if not is_taken:
            self.ignored += 1
            return []
        conclude(self, fact.at, effects)
        return effects

    def _released(self, fact: Signal) -> list[Effect]:
        """An agent let go of an attempt that was closed: what undoes it need not wait for the lease.

        After the end nothing follows from that. That the task was done all the same is seen then, too: nobody else
        tells.
        """
        data = fact.data if isinstance(fact.data, dict) else {}
        task = str(data.get("task"))
        actor = self.tasks.get(task)
        if actor is None or not actor.closed or actor.closed != data.get("attempt"):
            self.ignored += 1
            return []
        is_late = data.get("late") is True
        actor.is_late = actor.is_late or is_late
        return [] if self.is_decided else self._let_go(task, actor, fact.at, is_late=is_late)

    def _let_go(self, task: str, actor: TaskActor, at: float, *, is_late: bool) -> list[Effect]:
        actor.is_released = True
        effects: list[Effect] = []
        if is_late:
            error = actor.error.record() if actor.error is not None else None
            effects.append(PublishStatus(task, actor.state, actor.attempt, at, error))
        if self.saga is not None:
            for undo, forward in self.saga.forward_of.items():
                if forward == task:
                    self.saga.leased_until.pop(undo, None)
            go_on_with_saga(self, at, effects)
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

    def _retry(self, name: str, actor: TaskActor, error: TaskError, at: float, effects: list[Effect]) -> bool:
        definition = actor.node.definition
        is_stopped = self.stopped_at is not None and not self.is_undoing(name)
        if is_stopped or not is_retried(definition.retry, actor.attempt - actor.base, error):
            return False
        retry_at = at + delay_s(definition.retry, actor.attempt - actor.base, error, self.id, name)
        assert actor.first_dispatched_at is not None
        if retry_at >= actor.first_dispatched_at + definition.total_timeout:
            return False
        actor.state = TaskState.RETRYING
        actor.retry_at = retry_at
        effects.append(PublishStatus(name, actor.state, actor.attempt, at, error.record()))
        effects.append(Arm(name, retry_at))
        return True


def _began_at(actor: TaskActor, outcome: Outcome) -> float | None:
    """When the attempt began, as its agent says, in seconds of the log: an agent's clock may be wrong by years."""
    if outcome.started_at is None:
        return actor.taken_at
    return min(max(outcome.started_at, actor.dispatched_at or 0.0), outcome.at)
