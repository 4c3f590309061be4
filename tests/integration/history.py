"""What happened in a world, from its log and its agents' journal, and whether that was allowed.

The invariants, over every execution in the log:
started ones end, once (I1, I2); an attempt has one outcome and a task no attempt after its completion (I3); nothing
begins before what it depends on has its outcome (I4); attempts count from 1 without a gap, up to their limit (I5);
folding the log again gives the state that was written; and nothing begins again after its outcome was stored.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.fact import Fact, Finished, Outcome, Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.installation import read_installation
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.execution_actor import ExecutionActor

#: The journal has this machine's clock at one moment and the log that of the server at another.
SKEW_S = 0.05

Attempt = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the journal; `at` is seconds since the epoch."""

    event: str
    execution: str
    task: str
    attempt: int
    at: float
    process: int


def lines_of(journal: Path) -> list[Line]:
    """What the journal says so far."""
    if not journal.exists():
        return []
    return [Line(**json.loads(line)) for line in journal.read_text().splitlines()]


@dataclass(slots=True)
class History:
    """Facts by execution in log order, each with its sequence, and the journal."""

    facts: dict[str, list[tuple[int, Fact]]] = field(default_factory=lambda: defaultdict(list))
    definitions: dict[str, WorkflowDefinition] = field(default_factory=dict)
    journal: list[Line] = field(default_factory=list)
    garbage: int = 0

    @classmethod
    async def read(cls, url: str, journal: Path) -> "History":
        """Dumps the whole log and reads the journal."""
        history = cls()
        connection = await Connection(Endpoint(url)).open()
        try:
            session = connection.session
            installation = await read_installation(session, with_secret=True)
            subjects = installation.subjects()
            store = DefinitionStore(session, subjects)
            for shard in range(installation.shards):
                for entry in await read_all(session, subjects.facts_stream(shard), ()):
                    subject = subjects.parse_fact(entry.subject)
                    fact = decode_fact(subject, entry.data, entry.at) if subject is not None else None
                    if fact is None:
                        history.garbage += 1
                    else:
                        history.facts[fact.execution].append((entry.sequence, fact))
                        if isinstance(fact, Started) and fact.definition not in history.definitions:
                            definition = await store.load(fact.definition)
                            assert definition is not None
                            history.definitions[fact.definition] = definition
        finally:
            await connection.close()
        history.journal = lines_of(journal)
        return history

    @property
    def begun(self) -> list[Line]:
        return [line for line in self.journal if line.event == "began"]

    def outcomes(self) -> dict[Attempt, Outcome]:
        return {
            (fact.execution, fact.task, fact.attempt): fact
            for facts in self.facts.values()
            for _, fact in facts
            if isinstance(fact, Outcome)
        }

    def repeated(self) -> int:
        """Attempts that agents began more than once, which is allowed before the outcome is there."""
        return len(self.begun) - len({(line.execution, line.task, line.attempt) for line in self.begun})

    def violations(self) -> list[str]:
        """Everything that was not allowed, in words; empty when all is well."""
        found: list[str] = []
        for execution, facts in self.facts.items():
            found += [f"{execution}: {problem}" for problem in self._of_execution(facts)]
        return found + self._of_journal()

    def _of_execution(self, facts: list[tuple[int, Fact]]) -> list[str]:
        found: list[str] = []
        starts = [fact for _, fact in facts if isinstance(fact, Started)]
        ends = [fact for _, fact in facts if isinstance(fact, Finished)]
        outcomes = [fact for _, fact in facts if isinstance(fact, Outcome)]
        if len(starts) != 1:
            return [f"{len(starts)} starts"]
        if len(ends) != 1:
            return [f"{len(ends)} ends"]
        definition = self.definitions[starts[0].definition]
        if len({(outcome.task, outcome.attempt) for outcome in outcomes}) != len(outcomes):
            found.append("an attempt with two outcomes")
        for task in definition.tasks:
            attempts = [outcome for outcome in outcomes if outcome.task == task.id]
            if [outcome.attempt for outcome in attempts] != list(range(1, len(attempts) + 1)):
                found.append(f"{task.id}: attempts {[outcome.attempt for outcome in attempts]}")
            if len(attempts) > task.retry.max_attempts:
                found.append(f"{task.id}: {len(attempts)} attempts of {task.retry.max_attempts}")
            if any(outcome.error is None for outcome in attempts[:-1]):
                found.append(f"{task.id}: an attempt after its completion")
        actor = ExecutionActor(starts[0], Plan.of(definition))
        actor.receive(starts[0])
        for _, fact in facts:
            ignored = actor.ignored
            if not isinstance(fact, Started):
                actor.receive(fact)
            # Others may come late: a `taken` after its outcome, a cancel after the end, a `due` after the cancel.
            if actor.ignored > ignored and isinstance(fact, Outcome):
                found.append(f"an outcome that changed nothing: {fact}")
        if str(actor.state) != ends[0].state:
            found.append(f"finished as {ends[0].state}, but its facts say {actor.state}")
        return found

    def _of_journal(self) -> list[str]:
        found: list[str] = []
        outcomes = self.outcomes()
        begun: set[Attempt] = set()
        tasks = {digest: {task.id: task for task in known.tasks} for digest, known in self.definitions.items()}
        definition_of = {
            execution: fact.definition
            for execution, facts in self.facts.items()
            for _, fact in facts
            if isinstance(fact, Started)
        }
        completed_at = {
            (execution, task): outcome.at for (execution, task, _), outcome in outcomes.items() if outcome.error is None
        }
        for line in self.begun:
            key = (line.execution, line.task, line.attempt)
            begun.add(key)
            outcome = outcomes.get(key)
            if outcome is not None and line.at > outcome.at + SKEW_S:
                late_s = line.at - outcome.at
                found.append(f"{key} began {late_s:.3f} s after its outcome was in the log")
            task = tasks[definition_of[line.execution]].get(line.task)
            # What undoes a task stands in no graph.
            for upstream in task.depends_on if task is not None else ():
                done_at = completed_at.get((line.execution, upstream))
                if done_at is not None and line.at < done_at - SKEW_S:
                    found.append(f"{key} began before {upstream} was done")
        for key, outcome in outcomes.items():
            if outcome.error is None and key not in begun:
                found.append(f"{key} has a result, but no agent began it")
        return found
