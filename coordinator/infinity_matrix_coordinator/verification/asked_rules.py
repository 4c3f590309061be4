"""Whether everything in a log was asked for by what stands before it, whatever kind of task it concerns.

The execution actor is folded along and its effects are written down: an attempt begins once it was sent out, a timer's
fact comes once the timer was set and is over, and the end once it is decided. That is the actor's own opinion, so it is
asked only where no account has another: of executions that are checked in part, and of what was taken up again.
"""

from collections.abc import Sequence

from infinity_matrix_actors.effect import Arm, Effect, PublishDeadline, PublishWork, StartChild
from infinity_matrix_actors.fact import Command, CommandKind, Due, ErrorType, Fact, Finished, Outcome, Taken
from infinity_matrix_actors.state import TaskState

from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.verification.graph_rules import TIMER_SKEW_S
from infinity_matrix_coordinator.verification.history import Violation


class Asked:
    """What one execution has asked for so far."""

    def __init__(self, actor: ExecutionActor) -> None:
        self._actor = actor
        self._sent: set[tuple[str, int]] = set()
        #: From when on a task may be due, by the attempt that its `due` names.
        self._due_at: dict[tuple[str, int], float] = {}
        #: From when on the execution's own timer may fire, by its command's id.
        self._deadlines: dict[str, float] = {}

    def learn(self, effects: Sequence[Effect]) -> None:
        """Takes in what followed from a fact that was folded."""
        actor = self._actor
        for effect in effects:
            if isinstance(effect, PublishWork | StartChild):
                self._sent.add((effect.task, effect.attempt))
            elif isinstance(effect, Arm) and effect.task is not None:
                task = actor.tasks.get(effect.task)
                if task is not None and task.is_delayed:
                    key = (effect.task, task.attempt + 1)
                    self._due_at[key] = min(effect.at, self._due_at.get(key, effect.at))
        timeout_s = actor.plan.definition.timeout
        if timeout_s is not None:
            self._deadlines[PublishDeadline(actor.runs).id] = actor.begun_at + timeout_s
        if actor.reopen_at is not None:
            self._deadlines[PublishDeadline(actor.runs, is_again=True).id] = actor.reopen_at

    def check(self, sequence: int, fact: Fact) -> Violation | None:
        """What is wrong with a fact that is folded next."""
        match fact:
            case Outcome() | Taken():
                found = self._check_attempt(fact)
            case Due():
                found = self._check_due(fact)
            case Command() if fact.kind is CommandKind.DEADLINE:
                found = self._check_deadline(fact)
            case Finished() if not self._actor.is_decided:
                found = ("I11", f"the end, {fact.state}, is written before it was decided")
            case _:
                found = None
        task = fact.task if isinstance(fact, Outcome | Taken | Due) else None
        return None if found is None else Violation(found[0], fact.execution, found[1], task, sequence)

    def _check_attempt(self, fact: Outcome | Taken) -> tuple[str, str] | None:
        if (fact.task, fact.attempt) in self._sent:
            return self._check_closing(fact) if isinstance(fact, Outcome) and fact.closed else None
        if isinstance(fact, Outcome) and fact.closed:
            return "I11", f"attempt {fact.attempt} was closed, and nothing had sent it out"
        actor = self._actor.tasks.get(fact.task)
        is_next = actor is None or (actor.state is TaskState.WAITING and fact.attempt == actor.attempt + 1)
        if not is_next and any(task == fact.task for task, _ in self._sent):
            return "I5", f"attempt {fact.attempt} began, and nothing had sent out that one"
        return "I6" if self._actor.is_undoing(fact.task) else "I4", "it began, and nothing had sent it out"

    def _check_closing(self, fact: Outcome) -> tuple[str, str] | None:
        """An attempt is closed for its time no earlier than the shortest of its limits is over."""
        actor = self._actor.tasks.get(fact.task)
        if actor is None or fact.error is None or fact.error.type != ErrorType.TIMED_OUT:
            return None
        if not actor.is_open or actor.attempt != fact.attempt or actor.dispatched_at is None:
            return None
        definition = actor.node.definition
        limits_s = (definition.timeout, definition.queue_timeout, definition.heartbeat_timeout)
        ends = [actor.dispatched_at + limit_s for limit_s in limits_s if limit_s is not None]
        ends.append((actor.first_dispatched_at or actor.dispatched_at) + definition.total_timeout)
        if fact.at >= min(ends) - TIMER_SKEW_S:
            return None
        return "I11", f"attempt {fact.attempt} was closed for its time {min(ends) - fact.at:.3f} s before that was over"

    def _check_due(self, fact: Due) -> tuple[str, str] | None:
        due_at = self._due_at.get((fact.task, fact.attempt))
        if due_at is None:
            return "I11", f"attempt {fact.attempt} is due, and nothing waited for that"
        if fact.at >= due_at - TIMER_SKEW_S:
            return None
        is_tried_again = any(task == fact.task for task, _ in self._sent)
        return "I5" if is_tried_again else "I11", f"its time came {due_at - fact.at:.3f} s before it was over"

    def _check_deadline(self, fact: Command) -> tuple[str, str] | None:
        at = self._deadlines.get(fact.id)
        if at is None:
            return "I11", f"the time {fact.id!r} is over of an execution that has none such"
        if fact.at >= at - TIMER_SKEW_S:
            return None
        return "I11", f"the time {fact.id!r} came {at - fact.at:.3f} s before it was over"
