"""The checker itself: every kind of wrong is found in a history that was right until it was doctored."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from harness import World
from history import History, Line
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.fact import Finished, Outcome

Doctor = Callable[[History, str], None]


def begins_again_after_its_outcome(history: History, execution: str) -> None:
    first = history.begun[0]
    done_at = history.outcomes()[(execution, first.task, 1)].at
    history.journal.append(replace(first, at=done_at + 0.2))


def begins_before_its_upstream_is_done(history: History, execution: str) -> None:
    done_at = history.outcomes()[(execution, "first", 1)].at
    history.journal.append(Line("began", execution, "second", 1, done_at - 0.2, 1))


def has_a_result_nobody_began(history: History, execution: str) -> None:
    history.journal = [line for line in history.journal if line.task != "second"]


def never_ends(history: History, execution: str) -> None:
    history.facts[execution] = [entry for entry in history.facts[execution] if not isinstance(entry[1], Finished)]


def ends_twice(history: History, execution: str) -> None:
    history.facts[execution].append(history.facts[execution][-1])


def ends_otherwise_than_its_facts_say(history: History, execution: str) -> None:
    sequence, finished = history.facts[execution][-1]
    assert isinstance(finished, Finished)
    history.facts[execution][-1] = (sequence, replace(finished, state="failed"))


def skips_an_attempt(history: History, execution: str) -> None:
    for number, (sequence, fact) in enumerate(history.facts[execution]):
        if isinstance(fact, Outcome) and fact.task == "second":
            history.facts[execution][number] = (sequence, replace(fact, attempt=2))


def runs_on_after_its_completion(history: History, execution: str) -> None:
    sequence, fact = next(entry for entry in history.facts[execution] if isinstance(entry[1], Outcome))
    history.facts[execution].append((sequence + 1000, replace(fact, attempt=2)))


@pytest.mark.parametrize(
    "doctor",
    [
        begins_again_after_its_outcome,
        begins_before_its_upstream_is_done,
        has_a_result_nobody_began,
        never_ends,
        ends_twice,
        ends_otherwise_than_its_facts_say,
        skips_an_attempt,
        runs_on_after_its_completion,
    ],
)
async def test_a_history_that(world: World, doctor: Doctor) -> None:
    await world.coordinator()
    await world.agent("worker")
    async with world.client():
        tasks = [Task("first", "worker"), Task("second", "worker", depends_on=["first"])]
        execution = (await Workflow("checked", tasks=tasks).execute(timeout=10.0)).execution_id
    history = await read_to_the_end(world)
    assert history.violations() == []
    doctor(history, execution)
    assert history.violations() != []


async def read_to_the_end(world: World) -> History:
    """The history, once `finished` is in it: a client knows the end as soon as the facts decide it."""
    for _ in range(100):
        history = await History.read(world.server.connect_url, world.journal)
        if not any("0 ends" in problem for problem in history.violations()):
            return history
    raise AssertionError("no end was written")
