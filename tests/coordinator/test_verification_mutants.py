"""A second opinion: faults of the actor are found, though the faulty actor folds every log to the end it wrote."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from infinity_matrix_actors.task_actor import TaskActor
from infinity_matrix_coordinator import execution_actor, saga, stopping
from infinity_matrix_coordinator.execution import Execution
from infinity_matrix_coordinator.saga import Saga
from infinity_matrix_coordinator.verification import verify
from test_execution_properties import INPUT
from test_verification import history_of, random_definition
from world import World

SEEDS = 400
Patch = Callable[[pytest.MonkeyPatch], None]


def undoes_forward(patch: pytest.MonkeyPatch) -> None:
    def ready(self: Saga) -> list[str]:
        return list(self.after) if self.after else self.plain[:1] if not self.running else []

    patch.setattr(Saga, "ready", ready)


def undoes_what_failed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(saga, "is_undone", lambda when, actor: actor.attempt > 0)


def forgets_what_is_unknown(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(saga, "is_undone", lambda when, actor: str(actor.state) == "completed")


def undoes_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(saga, "is_undone", lambda when, actor: False)


def ignores_the_barrier(patch: pytest.MonkeyPatch) -> None:
    conclude = stopping.conclude

    def hasty(execution: Execution, at: float, effects: list[Any]) -> None:
        if execution.stopped_by is not None and execution.saga is None:
            kept, execution.open = execution.open, set()
            conclude(execution, at, effects)
            execution.open |= kept
        else:
            conclude(execution, at, effects)

    patch.setattr(execution_actor, "conclude", hasty)


def ignores_conditions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TaskActor, "asks_condition", lambda self, *others: True)


def runs_whatever_came_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TaskActor, "runs", lambda self: True)


def runs_when_the_first_of_two_is_done(patch: pytest.MonkeyPatch) -> None:
    hears = TaskActor.hears

    def hasty(self: TaskActor, *settled: Any) -> bool:
        was_waiting_for = self.waiting_for
        hears(self, *settled)
        return was_waiting_for == len(self.node.definition.depends_on)

    patch.setattr(TaskActor, "hears", hasty)


def retries_for_ever(patch: pytest.MonkeyPatch) -> None:
    retried = execution_actor.is_retried
    patch.setattr(
        execution_actor, "is_retried", lambda retry, *others: retried(replace(retry, max_attempts=9), *others)
    )


def retries_what_is_final(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(execution_actor, "is_retried", lambda retry, attempt, error: attempt < retry.max_attempts)


def never_retries(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(execution_actor, "is_retried", lambda *arguments: False)


def retries_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(execution_actor, "delay_s", lambda *arguments: 0.0)


FAULTS: list[tuple[Patch, set[str]]] = [
    (undoes_forward, {"I6"}),
    (undoes_what_failed, {"I6"}),
    (forgets_what_is_unknown, {"I6"}),
    (undoes_nothing, {"I6"}),
    (ignores_the_barrier, {"I6", "I11"}),
    (ignores_conditions, {"I4"}),
    (runs_whatever_came_before, {"I4"}),
    (runs_when_the_first_of_two_is_done, {"I4"}),
    (retries_for_ever, {"I5"}),
    (retries_what_is_final, {"I5", "I11", "I4"}),
    (never_retries, {"I11", "I12"}),
    (retries_at_once, {"I5"}),
]


@pytest.mark.parametrize(("fault", "wanted"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_an_actor_that(fault: Patch, wanted: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    found: set[str] = set()
    for seed in range(SEEDS):
        random = Random(seed)
        world = World(random_definition(random), seed, INPUT)
        try:
            world.chaos(random.randrange(600), cancel_at=random.choice((None, None, 20, 100)))
            world.calm()
        except (AssertionError, KeyError):
            # The world has rules of its own, and the faulty actor breaks some of them first.
            continue
        found |= {violation.invariant for violation in verify(history_of(world))}
        if found & wanted:
            return
    raise AssertionError(f"found only {found or 'nothing'}")
