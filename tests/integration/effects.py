"""What agents did to the world outside, and what they undid: the thing a saga is there for.

The world outside keeps marks by idempotency key, as a booking system would: it does nothing twice, and refuses what was
undone before it was done. What happened there is in the journal, beside what the agents began.
"""

import fcntl
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from history import History, Line
from infinity_matrix.agents import Work
from infinity_matrix_actors.fact import Finished, Outcome

DONE, UNDONE, REFUSED = "done", "undone", "refused"


class Journal:
    """A file opened with O_APPEND: each line is one write, so processes share it and a kill loses nothing."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, work: Work, task: str | None = None) -> None:
        line = {
            "event": event,
            "execution": work.execution,
            "task": task or work.task,
            "attempt": work.attempt,
            "at": time.time(),
            "process": os.getpid(),
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Outside:
    """The world outside, in a folder that all agents' processes share."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._journal = journal
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def do(self, work: Work) -> bool:
        """Does the effect of a work, once; false when it was undone before."""
        with self._locked():
            if self._mark(work.idempotency_key, UNDONE).exists():
                self._journal.write(REFUSED, work)
                return False
            self._leave(work, work.idempotency_key, DONE, work.task)
            return True

    def undo(self, work: Work) -> None:
        """Undoes what a compensation is told to undo; also what was never done, or is done only later."""
        assert work.compensates is not None
        with self._locked():
            self._leave(work, work.compensates["idempotency_key"], UNDONE, work.compensates["task"])

    def _leave(self, work: Work, key: str, what: str, task: str) -> None:
        mark = self._mark(key, what)
        if not mark.exists():
            # The journal first: killed in between, it is written twice, which tells no lie.
            self._journal.write(what, work, task)
            mark.touch()

    def _mark(self, key: str, what: str) -> Path:
        return self._folder / f"{key.replace('/', '@')}.{what}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


@dataclass(slots=True)
class Effects:
    """The tasks of one execution whose effect was done, and those that were undone, each in the order it happened."""

    done: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    @property
    def remaining(self) -> set[str]:
        return set(self.done) - set(self.undone)


def effects_of(lines: Iterable[Line]) -> dict[str, Effects]:
    """What the journal says was done and undone, by execution."""
    found: dict[str, Effects] = defaultdict(Effects)
    for line in lines:
        if line.event in (DONE, UNDONE):
            effects = found[line.execution]
            order = effects.done if line.event == DONE else effects.undone
            if line.task not in order:
                order.append(line.task)
    return found


def unaccounted(history: History) -> list[str]:
    """Effects that remain of executions that did not complete, and were not reported; and undone ones of those that
    did. One sentence for each; empty when every saga kept its promise."""
    outcomes = history.outcomes()
    last: dict[tuple[str, str], Outcome] = {}
    for (execution, task, _), outcome in sorted(outcomes.items(), key=lambda item: item[0][2]):
        last[execution, task] = outcome
    found: list[str] = []
    for execution, effects in effects_of(history.journal or ()).items():
        ends = [fact for _, fact in history.facts.get(execution, ()) if isinstance(fact, Finished)]
        started = history.started(execution)
        if not ends or started is None:
            found.append(f"{execution}: effects, and no end in the log")
            continue
        definition = history.definitions[started.definition]
        undo_of = {undo.compensates: undo.id for undo in definition.on_failure if undo.compensates is not None}
        if ends[-1].state == "completed":
            if effects.undone:
                found.append(f"{execution}: completed, and {effects.undone} undone")
            continue
        for task in effects.remaining:
            base, mark, number = task.partition("~")
            if base not in undo_of:
                continue
            outcome = last.get((execution, undo_of[base] + mark + number))
            if outcome is None or outcome.error is None or ends[-1].compensation != "incomplete":
                found.append(f"{execution}: {ends[-1].state}, and the effect of {task} remains, reported by nobody")
    return found
