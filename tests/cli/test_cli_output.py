"""How values are written: durations, failures, times, and text that came from elsewhere."""

import json
from dataclasses import dataclass

import pytest
from infinity_matrix.cli import output


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
