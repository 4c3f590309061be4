"""Rules of maps and loops: which instances there may be, when each may begin, and that all are over before the end.

A name is followed down (`m`, `m~2`, `m~2~0`) as deep as maps of lists and loops in maps go. Of an instance only the
facts of its attempts are looked at, so what is said of "over" is the last of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from infinity_matrix_actors.definition import TaskDefinition
from infinity_matrix_actors.errors import ConditionError
from infinity_matrix_actors.fact import Command, CommandKind, Finished, Outcome, Started
from infinity_matrix_actors.plan import Node, Plan
from infinity_matrix_bus.artifacts import is_reference

from infinity_matrix_coordinator.verification.account import Attempt
from infinity_matrix_coordinator.verification.history import Entry, Violation

INSTANCE_MARK = "~"


@dataclass(frozen=True, slots=True)
class Span:
    """From the first sign of an instance to the last of its outcomes; `over` None: it has none."""

    begun: int
    over: int | None
    has_failed: bool = False

    def is_over_at(self, place: int) -> bool:
        return self.over is not None and self.over <= place


class Groups:
    """The maps and loops of one execution, over the facts before it was taken up again."""

    def __init__(self, order: Sequence[Entry], plan: Plan, attempts: Mapping[str, Mapping[int, Attempt]]) -> None:
        self._order = order
        self._plan = plan
        self._attempts = attempts
        self._execution = order[0][1].execution
        #: By name, of instances and of what is made of instances, those next below that there are facts of.
        self._members: dict[str, set[int]] = {}
        for name in attempts:
            above, mark, index = name.rpartition(INSTANCE_MARK)
            while mark:
                self._members.setdefault(above, set()).add(int(index))
                above, mark, index = above.rpartition(INSTANCE_MARK)
        self._cancelled = next(
            (at for at, (_, fact) in enumerate(order) if isinstance(fact, Command) and fact.kind is CommandKind.CANCEL),
            len(order),
        )

    def check(self) -> Iterator[Violation]:
        """I4, I5, I6, I11 of every task that has instances."""
        definition = self._plan.definition
        for name, node in self._plan.nodes.items():
            if node.is_group and name in self._members:
                yield from self._check_group(name, node)
        if definition.on_task_failure is None:
            for task in definition.tasks:
                yield from self._check_before(task)
            yield from self._check_completed()
            for undo in definition.on_failure:
                if undo.compensates is not None and self._plan.nodes[undo.compensates].is_group:
                    yield from self._check_undone(undo, undo.compensates)

    def _check_group(self, name: str, node: Node) -> Iterator[Violation]:
        spans = self._spans(name)
        yield from self._check_map(name, node, spans) if node.items is not None else self._check_loop(name, node, spans)
        assert node.instance is not None
        for index in spans:
            member = f"{name}{INSTANCE_MARK}{index}"
            if node.instance.is_group and member in self._members:
                yield from self._check_group(member, node.instance)

    def _check_map(self, name: str, node: Node, spans: Mapping[int, Span]) -> Iterator[Violation]:
        assert node.definition.map is not None
        room = node.definition.map.max_parallel
        size = self._size(name, node)
        stop = min(self._cancelled, self._spoiled_at(node, size, spans))
        for index, span in spans.items():
            if size is not None and index >= size:
                yield self._violation("I4", name, index, span.begun, f"it began, and the map has {size} items")
            # It was sent out before the stop, while those before it that were at work then left it room.
            place = min(span.begun, stop)
            at_work = sum(not other.is_over_at(place) for before, other in spans.items() if before < index)
            if at_work >= room:
                when = "after no more could begin" if place == stop else f"while {at_work} others were at work"
                yield self._violation("I4", name, index, span.begun, f"it began {when}, {room} may be at a time")

    def _check_loop(self, name: str, node: Node, spans: Mapping[int, Span]) -> Iterator[Violation]:
        assert node.definition.loop is not None
        limit = node.definition.loop.max_iterations
        for index, span in spans.items():
            before = spans.get(index - 1)
            sentence, invariant = None, "I4"
            if index >= limit:
                sentence, invariant = f"iteration {index + 1} of {limit}", "I5"
            elif index and (before is None or not before.is_over_at(span.begun)):
                sentence = "it began before the iteration before it was over"
            elif index and self._has_ended(name, node, index - 1):
                sentence = "it began although the loop had come to its end"
            if sentence is not None:
                yield self._violation(invariant, name, index, span.begun, sentence)

    def _check_before(self, task: TaskDefinition) -> Iterator[Violation]:
        """I4: what depends on a map or a loop, or is one, begins when all that it depends on is over."""
        for above in task.depends_on if self._leaves(task.id) else ():
            begun = self._span(task.id).begun
            late = self._open_at(above, begun)
            if late is not None:
                yield Violation(
                    "I4", self._execution, f"it began before {late} was done", task.id, self._order[begun][0]
                )

    def _check_completed(self) -> Iterator[Violation]:
        """I11: an execution completes when every instance is over."""
        ends = [
            place
            for place, (_, fact) in enumerate(self._order)
            if isinstance(fact, Finished) and fact.state == "completed"
        ]
        for name, node in self._plan.nodes.items():
            if ends and node.is_group and name in self._members:
                late = self._open_at(name, ends[0])
                if late is not None:
                    sentence = f"the end, completed, is written before {late} was done"
                    yield Violation("I11", self._execution, sentence, None, self._order[ends[0]][0])

    def _check_undone(self, undo: TaskDefinition, forward: str) -> Iterator[Violation]:
        """I6: undone are instances of which there is something; and after a failure each that completed."""
        ends = [
            (place, fact)
            for place, (_, fact) in enumerate(self._order)
            if isinstance(fact, Finished) and fact.state != "completed"
        ]
        for name in sorted(self._leaves(undo.id)):
            if not self._outcomes(forward + name[len(undo.id) :]):
                place = self._begun(name)
                sentence = f"it began although {forward + name[len(undo.id) :]}, which it undoes, has no outcome"
                yield Violation("I6", self._execution, sentence, name, self._order[place][0])
        if not ends or self._plan.definition.on_error is not None or undo.compensate_when == "attempted":
            return
        for name in sorted(self._leaves(forward)):
            last = self._outcomes(name)[-1:]
            is_done = bool(last) and last[0][0] < ends[0][0] and last[0][1].error is None
            if is_done and self._plan.nodes[forward].definition.result_schema is None:
                undoing = undo.id + name[len(forward) :]
                if not any(place < ends[0][0] for place, _ in self._outcomes(undoing)):
                    sentence = f"the execution ended, and {name} was not undone"
                    yield Violation("I6", self._execution, sentence, undoing, self._order[ends[0][0]][0])

    # What the facts say.

    def _spans(self, name: str) -> dict[int, Span]:
        return {index: self._span(f"{name}{INSTANCE_MARK}{index}") for index in sorted(self._members[name])}

    def _span(self, name: str) -> Span:
        """Of a task or an instance that there are facts of, with all below it."""
        spans = [self._leaf(leaf) for leaf in self._leaves(name)]
        overs = [span.over for span in spans]
        last = None if None in overs else max(over for over in overs if over is not None)
        return Span(min(span.begun for span in spans), last, any(span.has_failed for span in spans))

    def _leaf(self, name: str) -> Span:
        outcomes = self._outcomes(name)
        newest = max(self._attempts[name])
        if not outcomes or outcomes[-1][1].attempt != newest:
            return Span(self._begun(name), None)
        return Span(self._begun(name), outcomes[-1][0], outcomes[-1][1].error is not None)

    def _leaves(self, name: str) -> list[str]:
        if name in self._members:
            return [leaf for i in self._members[name] for leaf in self._leaves(f"{name}{INSTANCE_MARK}{i}")]
        return [name] if name in self._attempts else []

    def _begun(self, name: str) -> int:
        return min(attempt.first for attempt in self._attempts[name].values() if attempt.first is not None)

    def _outcomes(self, name: str) -> list[tuple[int, Outcome]]:
        """The outcomes of an instance, by attempt."""
        found = []
        for _, attempt in sorted(self._attempts.get(name, {}).items()):
            for place in attempt.outcomes[:1]:
                fact = self._order[place][1]
                assert isinstance(fact, Outcome)
                found.append((place, fact))
        return found

    def _open_at(self, name: str, place: int) -> str | None:
        """A task, or an instance of it, that was not over at a place, as far as the log tells."""
        node = self._plan.nodes[name]
        for leaf in self._leaves(name):
            if not self._leaf(leaf).is_over_at(place):
                return leaf
        if name not in self._members or node.items is None or node.instance is None or node.instance.is_group:
            return None
        size = self._size(name, node)
        spans = self._spans(name)
        # Where more failed than may, the others never begin.
        if size is None or self._spoiled_at(node, size, spans) < len(self._order):
            return None
        return next((f"{name}{INSTANCE_MARK}{index}" for index in range(size) if index not in spans), None)

    def _spoiled_at(self, node: Node, size: int | None, spans: Mapping[int, Span]) -> int:
        """The place at which more instances of a map had failed than may."""
        if node.definition.map is None or self._plan.definition.on_task_failure is not None:
            return len(self._order)
        tolerated = node.definition.map.tolerated
        if node.definition.map.tolerated_percent:
            if size is None:
                return len(self._order)
            tolerated = max(tolerated, int(round(node.definition.map.tolerated_percent * size / 100, 6)))
        failed = sorted(span.over for span in spans.values() if span.has_failed and span.over is not None)
        return failed[tolerated] if len(failed) > tolerated else len(self._order)

    def _size(self, name: str, node: Node) -> int | None:
        """How many items a map has; None where they hang on what another task came to, or on its own item."""
        assert node.items is not None
        started = self._order[0][1]
        if node.items.references or INSTANCE_MARK in name or not isinstance(started, Started):
            return None
        if is_reference(started.input):
            return None
        try:
            items = node.items.evaluate({}, {"input": started.input})
        except ConditionError:
            return None
        return len(items) if isinstance(items, list) else None

    def _has_ended(self, name: str, node: Node, index: int) -> bool:
        """Whether a loop's end had come with an iteration; False where that hangs on more than its result."""
        assert node.until is not None
        outcomes = self._outcomes(f"{name}{INSTANCE_MARK}{index}")
        asks_more = node.until.references or node.until.expression.variables - {"result", "iteration"}
        if asks_more or not outcomes or outcomes[-1][1].error is not None or is_reference(outcomes[-1][1].result):
            return False
        try:
            return node.until.evaluate({}, {"result": outcomes[-1][1].result, "iteration": index}) is True
        except ConditionError:
            return False

    def _violation(self, invariant: str, name: str, index: int, place: int, sentence: str) -> Violation:
        task = f"{name}{INSTANCE_MARK}{index}"
        return Violation(invariant, self._execution, sentence, task, self._order[place][0])
