"""The saga of an execution that failed or was cancelled: what is undone, in which order, and what came of it. Pure.

Begun after the barrier, when no forward attempt is open. The compensation of a task waits for those of the tasks that
came after it; the plain tasks of `on_failure` follow in their own order.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from infinity_matrix_actors.definition import CompensateWhen
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.state import TaskState
from infinity_matrix_actors.task_actor import TaskActor

#: A closed attempt's agent may still be at work; by then its lease is over (the consumer's ack_wait).
LEASE_S = 30.0


def is_undone(when: CompensateWhen, actor: TaskActor) -> bool:
    """Whether a forward task is to be compensated. A closed attempt is unknown: its effect may have happened.

    What a fork brought along was done by another execution, and is not this one's to undo.
    """
    if not actor.attempt:
        return False
    match when:
        case CompensateWhen.DEFAULT:
            return actor.state is TaskState.COMPLETED or actor.has_left or actor.is_unknown
        case CompensateWhen.COMPLETED:
            return actor.state is TaskState.COMPLETED or actor.has_left
        case CompensateWhen.ATTEMPTED:
            return actor.attempt > actor.base or actor.left is not None


class Saga:
    """Which undoing tasks are still to run, and after which others."""

    __slots__ = ("after", "compensated", "failed", "forward_of", "leased_until", "plain", "running")

    def __init__(self, plan: Plan, tasks: Mapping[str, TaskActor]) -> None:
        undoing = {name: undo for name, undo in _instances(plan, tasks) if _is_undone_by(plan, undo, tasks[name])}
        #: The forward task of each undoing one.
        self.forward_of = {undo: name for name, undo in undoing.items()}
        by_base: dict[str, list[str]] = {}
        for name, undo in undoing.items():
            by_base.setdefault(_base(name), []).append(undo)
        #: Undoing tasks that have not begun, each with those that must be settled before. The undoing task of a map
        #: or a loop stands for all its instances: of two maps of 10,000 each would have 10,000 names otherwise.
        self.after: dict[str, set[str]] = {}
        for base in plan.undo_of:
            undos = by_base.get(base, [])
            before = {plan.undo_of[after] for after in _next_undone(plan, base, by_base)}
            for undo in undos:
                self.after[undo] = before | self._later_iterations(undo, tasks)
        #: The plain tasks of `on_failure` that have not begun.
        self.plain = [name for name, node in plan.undo_nodes.items() if node.definition.compensates is None]
        #: When the agent of a closed attempt has let go at the latest, by undoing task.
        self.leased_until = {
            undo: held_since + LEASE_S
            for name, undo in undoing.items()
            if (held_since := tasks[name].held_since) is not None
        }
        #: Forward tasks undone, in the order it was done.
        self.compensated: list[str] = []
        #: Undoing tasks that spent their retries.
        self.failed: list[str] = []
        #: Undoing tasks that have begun and are not settled: dispatched, or between two attempts.
        self.running: set[str] = set()

    def _later_iterations(self, undo: str, tasks: Mapping[str, TaskActor]) -> set[str]:
        """Of a loop the next iteration is undone before the one it followed."""
        member_of = tasks[self.forward_of[undo]].member_of
        if member_of is None:
            return set()
        above, index = member_of
        group = tasks[above].group
        if group is None or group.items is not None:
            return set()
        following = f"{undo.rpartition('~')[0]}~{index + 1}"
        return {following} & self.forward_of.keys()

    @property
    def is_over(self) -> bool:
        return not self.after and not self.plain and not self.running

    def ready(self) -> list[str]:
        """The undoing tasks that may begin now."""
        if self.after:
            return [undo for undo, after in self.after.items() if not after]
        return self.plain[:1] if not self.running else []

    def begin(self, undo: str) -> None:
        """Takes in that an undoing task was dispatched. The others still wait for it to be settled."""
        self.running.add(undo)
        self.after.pop(undo, None)
        self.leased_until.pop(undo, None)
        if undo in self.plain:
            self.plain.remove(undo)

    def settle(self, undo: str, is_completed: bool) -> None:
        """Takes in that an undoing task ended. One that failed is reported; the others go on."""
        self.running.discard(undo)
        base = _base(undo)
        is_last = not any(_base(other) == base for others in (self.running, self.after) for other in others)
        for after in self.after.values():
            after.discard(undo)
            if is_last:
                after.discard(base)
        if not is_completed:
            self.failed.append(undo)
        elif undo in self.forward_of:
            self.compensated.append(self.forward_of[undo])

    def maybe_undone(self, tasks: Mapping[str, TaskActor]) -> set[str]:
        """Forward tasks of which an undoing task failed that may have been done all the same."""
        return {self.forward_of[undo] for undo in self.failed if undo in self.forward_of and tasks[undo].is_unknown}

    def reopen(self) -> list[str]:
        """What failed is to run again, in the order it should have; answers it."""
        again, self.failed = self.failed, []
        self.plain = [undo for undo in again if undo not in self.forward_of] + self.plain
        before: set[str] = set()
        for undo in again:
            if undo in self.forward_of:
                self.after[undo] = before
                before = {undo}
        return again

    def record(self) -> dict[str, Any]:
        """The whole state as plain data."""
        return {
            "forward_of": dict(sorted(self.forward_of.items())),
            "after": {undo: sorted(after) for undo, after in sorted(self.after.items())},
            "plain": list(self.plain),
            "leased_until": dict(sorted(self.leased_until.items())),
            "compensated": list(self.compensated),
            "failed": list(self.failed),
            "running": sorted(self.running),
        }


def _base(task: str) -> str:
    """The task of the graph that an instance is one of."""
    return task.split("~", 1)[0]


def _is_undone_by(plan: Plan, undo: str, actor: TaskActor) -> bool:
    return is_undone(plan.undo_nodes[_base(undo)].definition.compensate_when, actor)


def _instances(plan: Plan, tasks: Mapping[str, TaskActor]) -> Iterator[tuple[str, str]]:
    """Every task that has a compensation, with the undoing task; of a map or loop each instance has its own."""
    for name, actor in tasks.items():
        base = _base(name)
        undo = plan.undo_of.get(base)
        if undo is not None and actor.group is None and base in plan.nodes:
            yield name, undo + name[len(base) :]


def _next_undone(plan: Plan, task: str, undone: Container[str]) -> set[str]:
    """The nearest tasks after `task` that are undone; those beyond them wait for these already."""
    found: set[str] = set()
    seen: set[str] = set()
    stack = list(plan.nodes[task].subscribers)
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in undone:
            found.add(name)
        else:
            stack.extend(plan.nodes[name].subscribers)
    return found
