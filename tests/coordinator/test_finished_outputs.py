"""The end of a completed execution carries its outputs when they are small, and says the same as the whole log."""

from typing import Any

import pytest
from infinity_matrix_bus.codec import encode
from infinity_matrix_coordinator.views import OUTPUTS_SMALL, is_small, result_of_finished

FINISHED = {
    "v": 1,
    "kind": "finished",
    "state": "completed",
    "error": None,
    "started_at": "2026-01-01T00:00:00.250000Z",
    "decided_at": "2026-01-01T00:00:01.000000Z",
    "outputs": {"a": {"rows": 3}, "b": None},
}


def test_the_result_stands_in_the_fact() -> None:
    result = result_of_finished("e1", "w", encode(FINISHED))
    assert result is not None
    assert (result.execution_id, result.workflow, result.status, result.error) == ("e1", "w", "completed", None)
    assert result.outputs == {"a": {"rows": 3}, "b": None}
    assert result.duration == pytest.approx(0.75)


@pytest.mark.parametrize(
    "change",
    [{"state": "failed"}, {"outputs": None}, {"outputs": [1]}, {"started_at": None}, {"decided_at": "yesterday"}],
)
def test_whatever_else_it_says_the_log_is_folded(change: dict[str, Any]) -> None:
    assert result_of_finished("e1", "w", encode({**FINISHED, **change})) is None


def test_garbage_is_no_result() -> None:
    assert result_of_finished("e1", "w", b"\xc1") is None


@pytest.mark.parametrize("outputs", [{}, {"a": None}, {"a": "x" * 1000, "b": [1, 2.5, True, {"deep": ["text"]}]}])
def test_a_little_is_small(outputs: dict[str, Any]) -> None:
    assert is_small(outputs)


@pytest.mark.parametrize(
    "outputs",
    [
        {"a": "x" * OUTPUTS_SMALL},
        {"a": {"x" * OUTPUTS_SMALL: 1}},
        {"a": [0] * OUTPUTS_SMALL},
        {"a": [[[0] * 100] * 100] * 100},
        {f"task-{number}": {"n": number} for number in range(OUTPUTS_SMALL)},
    ],
)
def test_a_lot_is_not_small(outputs: dict[str, Any]) -> None:
    assert not is_small(outputs)
