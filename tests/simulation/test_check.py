"""Who began on the strength of what: an agent is held to what it was told itself, and not for longer than it may be."""

from types import SimpleNamespace
from typing import Any

import pytest
from infinity_matrix_actors.fact import Outcome
from infinity_matrix_agents.doubt import ANSWER_AGE_MAX_S, AWAY_S

from .check import MARK_S, Knowledge, Told, agent_line
from .jetstream import EPOCH_S
from .world import Line

OUTCOME_S = 0.1


class Agent:
    """A process, as a line of the journal knows it."""

    def __init__(self, number: int, *stops: tuple[float, float]) -> None:
        self.number = number
        self.stops = list(stops)


def knowledge() -> Knowledge:
    streams: Any = SimpleNamespace(watchers=[], server=SimpleNamespace(), loop=SimpleNamespace(now=0.0))
    return Knowledge(streams)


def lateness_s(known: Knowledge, process: Any, at: float) -> float:
    """How long after the outcome the checker is told that an attempt began."""
    line = Line("began", "e", "a", 1, at, process)
    outcome = Outcome("e", EPOCH_S + OUTCOME_S, "agent-a", "a", 1)
    return round(agent_line(line, known, outcome).at - outcome.at, 3)


def test_what_another_process_was_given_excuses_nobody() -> None:
    known = knowledge()
    known.told[1, "e/a/1"].append(Told(0.0, 0.001 + AWAY_S))
    assert lateness_s(known, Agent(1), 0.4) < 0
    assert lateness_s(known, Agent(2), 0.4) == 0.3


@pytest.mark.parametrize("stops", [(), ((0.05, 3.0),)])
def test_who_found_its_work_late_has_to_ask(stops: tuple[tuple[float, float], ...]) -> None:
    known = knowledge()
    known.told[1, "e/a/1"].append(Told(0.0, 0.001 + AWAY_S))
    assert lateness_s(known, Agent(1, *stops), 3.06) == 2.96


def test_an_answer_is_good_for_a_while_and_for_as_long_as_its_asker_was_stopped() -> None:
    known = knowledge()
    known.told[1, "e/a/1"].append(Told(0.05, 0.04 + ANSWER_AGE_MAX_S + MARK_S, 0.04))
    assert lateness_s(known, Agent(1), 1.1) < 0
    assert lateness_s(known, Agent(1), 1.2) == 1.1
    assert lateness_s(known, Agent(1, (0.5, 3.0)), 4.1) < 0
    assert lateness_s(known, Agent(1, (0.5, 3.0)), 5.0) == 4.9


def test_what_was_told_after_the_outcome_excuses_nobody() -> None:
    known = knowledge()
    known.told[1, "e/a/1"].append(Told(0.2, 0.2 + AWAY_S))
    assert lateness_s(known, Agent(1), 0.3) == 0.2
