"""The instances of one task: a map has one an item, a loop one after another. Only counting; nothing begins here."""

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from infinity_matrix_actors.definition import MapDefinition
from infinity_matrix_actors.fact import ErrorType, TaskError
from infinity_matrix_actors.state import TaskState

#: Items of one map. Each has its work, its outcome and a place in the state.
ITEMS_MAX = 100_000


@dataclass(slots=True)
class Group:
    """What is known of a task's instances. `items` is None for a loop."""

    items: list[Any] | None = None
    #: The first index that was never begun, and those that are to be begun again.
    next: int = 0
    again: list[int] = field(default_factory=list)
    #: Instances begun and not settled.
    running: set[int] = field(default_factory=set)
    #: By index: what it came to, its state, and how many attempts it took.
    results: dict[int, Any] = field(default_factory=dict)
    states: dict[int, TaskState] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    #: What results that travel as references stand for, where an expression looks into them.
    contents: dict[int, Any] = field(default_factory=dict)
    first_error: str = ""
    failures: int = 0
    #: Of a loop: it goes on no more.
    is_done: bool = False
    #: An instance was cancelled: its result is not missing by intent, so there is none of all.
    is_cancelled: bool = False

    @property
    def size(self) -> int:
        return len(self.items) if self.items is not None else self.next

    @property
    def last(self) -> Any:
        """The last result of a loop, None before there is one."""
        if not self.results:
            return None
        index = max(self.results)
        return self.contents.get(index, self.results[index])

    @property
    def content(self) -> list[Any] | None:
        """What the list of a map's results stands for; None when it is no other than it travels."""
        if not self.contents:
            return None
        return [self.contents.get(index, self.results.get(index)) for index in range(self.size)]

    def take(self) -> int:
        """The next index to begin."""
        if self.again:
            index = self.again.pop()
        else:
            index = self.next
            self.next += 1
        self.running.add(index)
        return index

    def hear(self, name: str, index: int, state: TaskState, attempt: int, result: Any, error: TaskError | None) -> None:
        """Takes in that an instance settled."""
        self.running.discard(index)
        self.states[index] = state
        self.attempts[index] = attempt
        self.results[index] = result
        self.is_cancelled |= state is TaskState.CANCELLED
        if state is TaskState.FAILED:
            self.failures += 1
            assert error is not None
            self.results[index] = {"error": error.record()}
            if not self.first_error:
                self.first_error = f"{name} failed: {error.type}: {error.message}"

    def tolerates(self, definition: MapDefinition) -> bool:
        """Whether no more instances failed than may."""
        # Rounded first: 32.3 % of 1,000 are 323, though the product is a little less.
        share = int(round(definition.tolerated_percent * self.size / 100, 6))
        return self.failures <= max(definition.tolerated, share)

    def has_more(self, definition: MapDefinition) -> bool:
        """Whether another instance is to begin now."""
        is_left = bool(self.again) or self.next < self.size
        return is_left and len(self.running) < definition.max_parallel and self.tolerates(definition)

    def is_over(self, definition: MapDefinition) -> bool:
        """Whether nothing of a map is running, and nothing more is to begin."""
        return not self.running and (not self.tolerates(definition) or not (self.again or self.next < self.size))

    def outcome(self, definition: MapDefinition) -> tuple[list[Any] | None, TaskError | None]:
        """What a map that is over came to: its results in the order of the items, or why it failed."""
        if self.tolerates(definition):
            return [self.results.get(index) for index in range(self.size)], None
        message = f"{self.failures} of {self.size} instances failed; {self.first_error}"
        return None, TaskError(ErrorType.TOO_MANY_FAILURES, message[:4096], retryable=False)

    def reopen(self, undone: Set[int]) -> None:
        """Everything that did not complete, and what was undone, is to run again."""
        again = {index for index, state in self.states.items() if state is not TaskState.COMPLETED} | undone
        # Also what was to be begun again before, and was not.
        again |= self.running.union(self.again)
        self.running.clear()
        for index in again:
            self.results.pop(index, None)
            self.states.pop(index, None)
            self.contents.pop(index, None)
        self.again = sorted(again, reverse=True)
        self._forget_end()

    def restart(self) -> None:
        """Everything is to run again, over items that are found anew; only the attempts go on counting."""
        self.items, self.next, self.again = None, 0, []
        self.running.clear()
        self.results.clear()
        self.states.clear()
        self.contents.clear()
        self._forget_end()

    def _forget_end(self) -> None:
        self.failures, self.first_error = 0, ""
        self.is_done = self.is_cancelled = False

    def counts(self) -> dict[str, int]:
        """How many instances there are, by state; `total` is of a map, or of a loop so far."""
        counts = {"total": self.size, "running": len(self.running)}
        for state in self.states.values():
            counts[str(state)] = counts.get(str(state), 0) + 1
        return counts

    def record(self) -> dict[str, Any]:
        """The whole state as plain data."""
        return {
            "items": self.items,
            "next": self.next,
            "again": list(self.again),
            "running": sorted(self.running),
            "results": dict(sorted(self.results.items())),
            "contents": dict(sorted(self.contents.items())),
            "states": {index: str(state) for index, state in sorted(self.states.items())},
            "attempts": dict(sorted(self.attempts.items())),
            "failures": self.failures,
            "first_error": self.first_error,
            "is_done": self.is_done,
            "is_cancelled": self.is_cancelled,
        }
