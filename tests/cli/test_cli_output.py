"""How values are written: durations, failures, times, and text that came from elsewhere."""

import io
import json
from dataclasses import dataclass

import pytest
from infinity_matrix.cli import output
from infinity_matrix.cli.view import View
from infinity_matrix_coordinator.views import ExecutionStatus, StatusUpdate, TaskStatus
from rich.console import Console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-1.0, "0 ms"),
        (0.0124, "12 ms"),
        (1.26, "1.3 s"),
        (61, "1 min 01 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_a_duration_reads_as_people_say_it(seconds: float | None, text: str) -> None:
    assert output.span(seconds) == text


def test_text_of_agents_cannot_steer_the_terminal() -> None:
    error = {"type": "Bad", "message": "\x1b[2J gone\n\x9b1m", "task": "a"}
    assert output.error_text(error) == "task a: Bad: \ufffd[2J gone \ufffd1m"


def test_times_of_ours_are_rfc_3339_and_numbers_of_users_stay_numbers() -> None:
    @dataclass
    class Record:
        started_at: float
        duration: float
        result: object

    record = Record(0.5, 1.5, {"at": 2.5, "started_at": [3.5]})
    assert json.loads(output.to_json([record])) == [
        {"started_at": "1970-01-01T00:00:00.500000Z", "duration": 1.5, "result": {"at": 2.5, "started_at": [3.5]}}
    ]


def test_ten_thousand_instances_are_one_row() -> None:
    task = TaskStatus("m", "a", "running", instances={"total": 4, "running": 1, "completed": 2, "failed": 1})
    view = View.of(ExecutionStatus("e", "w", "d", "running", 0.0, "m", 0.0, None, None, {"m": task}))
    assert view.rows["m"].note == "4 instances: 1 failed, 1 running, 2 completed"
    for instance, state in (("m~0", "queued"), ("m~1", "queued"), ("m~0", "running"), ("m~0", "completed")):
        view.apply(StatusUpdate("e", instance, state, 1, 0.0))
    assert list(view.rows) == ["m"]
    assert view.rows["m"].note == "2 instances: 1 queued, 1 completed"


def test_a_child_says_which_execution_it_is() -> None:
    task = TaskStatus("c", "im-workflow", "running", child="e-2")
    view = View.of(ExecutionStatus("e", "w", "d", "running", 0.0, "c", 0.0, None, None, {"c": task}))
    assert view.rows["c"].note == "is e-2"


@pytest.mark.parametrize(
    ("compensation", "compensated", "told"),
    [
        (None, (), None),
        ("complete", ("pay", "book"), "undone: pay, book"),
        ("incomplete", (), "undone: nothing; not all could be undone ('imx compensate e' tries again)"),
        ("complete", tuple(f"t{n}" for n in range(1022)), ", and 1,002 more"),
    ],
)
def test_a_status_tells_what_was_undone(
    compensation: str | None, compensated: tuple[str, ...], told: str | None
) -> None:
    status = ExecutionStatus("e", "w", "d", "failed", 100.0, None, 0.0, 1.0, None, {}, compensation, compensated)
    console = Console(width=400, file=io.StringIO())
    console.print(View.of(status).render(is_marked=False))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert told in shown if told is not None else "undone" not in shown
