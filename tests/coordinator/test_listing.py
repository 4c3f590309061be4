"""The listing: what a few facts of an execution say of it, without a fold."""

from typing import Any

import pytest
from infinity_matrix_actors.fact import CommandKind, Finished, Started
from infinity_matrix_bus.facts import command_payload, finished_payload, started_payload
from infinity_matrix_bus.log_reader import Entry
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.listing import LISTED_STATES, ExecutionSummary, Selection, summarize

SUBJECTS = Subjects()
STARTED = SUBJECTS.started(0, "e")
BEGUN = started_payload(Started("e", 0.0, "w", "d1"))


def command(kind: CommandKind) -> tuple[str, bytes]:
    return SUBJECTS.command(0, "e", str(kind), "x"), command_payload(kind)


def end(state: str, compensation: str | None = None, n: int = 1) -> tuple[str, bytes]:
    fact = Finished("e", 0.0, n, state, compensation=compensation)
    return SUBJECTS.finished(0, "e", n), finished_payload(fact, {})


def listed(*messages: tuple[str, bytes]) -> list[ExecutionSummary]:
    """What these messages after a start at second 1 come to; the first of them at second 2."""
    entries = [
        Entry(subject, data, number, float(number), 0)
        for number, (subject, data) in enumerate([(STARTED, BEGUN), *messages], 1)
    ]
    return summarize(SUBJECTS, entries)


PAUSE, RESUME, RETRY, COMPENSATE, CANCEL = map(
    command,
    (CommandKind.PAUSE, CommandKind.RESUME, CommandKind.RETRY, CommandKind.COMPENSATE, CommandKind.CANCEL),
)


@pytest.mark.parametrize(
    ("messages", "state", "finished_at"),
    [
        ([], "running", None),
        ([PAUSE], "paused", None),
        ([PAUSE, PAUSE, RESUME], "running", None),
        ([RESUME], "running", None),
        ([PAUSE, end("cancelled")], "cancelled", 3.0),
        ([end("completed")], "completed", 2.0),
        ([end("completed"), PAUSE], "completed", 2.0),
        ([end("failed"), RETRY], "running", None),
        ([end("failed"), RETRY, PAUSE], "paused", None),
        ([end("failed"), RETRY, end("completed", n=2)], "completed", 4.0),
        ([PAUSE, end("failed"), RETRY], "paused", None),
        ([PAUSE, CANCEL], "running", None),
        ([PAUSE, CANCEL, end("cancelled"), RETRY], "running", None),
        ([end("cancelled"), RETRY], "running", None),
        ([end("completed"), RETRY], "completed", 2.0),
        ([end("failed", "incomplete"), COMPENSATE], "running", None),
        ([end("failed", "complete"), COMPENSATE], "failed", 2.0),
        ([RETRY, end("failed")], "failed", 3.0),
    ],
)
def test_an_execution_is_where_its_ends_and_commands_left_it(
    messages: list[tuple[str, bytes]], state: str, finished_at: float | None
) -> None:
    (summary,) = listed(*messages)
    assert (summary.state, summary.finished_at) == (state, finished_at)
    assert summary.state in LISTED_STATES


def test_what_could_not_be_undone_needs_attention_until_somebody_takes_it_up() -> None:
    incomplete = end("failed", "incomplete")
    assert [each.needs_attention for each in listed(incomplete)] == [True]
    assert [each.needs_attention for each in listed(incomplete, COMPENSATE)] == [False]
    assert [each.needs_attention for each in listed(incomplete, RETRY)] == [False]
    assert [each.needs_attention for each in listed(incomplete, COMPENSATE, end("failed", "complete", 2))] == [False]
    assert [each.needs_attention for each in listed(incomplete, COMPENSATE, end("failed", "incomplete", 2))] == [True]


def test_a_tick_that_was_passed_over_is_skipped_and_over() -> None:
    skipped = started_payload(Started("e", 0.0, "w", "d1", cause={"schedule": "nightly"}, skipped=True))
    (summary,) = summarize(SUBJECTS, [Entry(STARTED, skipped, 1, 5.0, 0)])
    assert (summary.state, summary.started_at, summary.finished_at) == ("skipped", 5.0, 5.0)
    assert summary.cause == {"schedule": "nightly"}
    assert not summary.is_open


def test_facts_without_their_start_and_garbage_are_passed_over() -> None:
    entries = [
        Entry(*end("failed"), 1, 1.0, 0),
        Entry(STARTED, b"garbage", 2, 2.0, 0),
        Entry("im.fact.0.e.nothing", b"{}", 3, 3.0, 0),
    ]
    assert summarize(SUBJECTS, entries) == []


def summary(execution: str, **fields: Any) -> ExecutionSummary:
    at = float(fields.pop("started_at", 1.0))
    workflow, state = fields.pop("workflow", "w"), fields.pop("state", "running")
    return ExecutionSummary(execution, workflow, state, at, None, **fields)


def test_a_selection_answers_the_newest_first_and_no_more_than_its_limit() -> None:
    everything = [summary(str(number), started_at=number) for number in (3, 1, 2, 5, 4)]
    assert [each.execution_id for each in Selection().select(everything)] == ["5", "4", "3", "2", "1"]
    assert [each.execution_id for each in Selection(limit=2).select(everything)] == ["5", "4"]
    selection = Selection(started_after=2, started_before=4)
    assert [each.execution_id for each in selection.select(everything)] == ["3", "2"]


def test_a_selection_leaves_out_what_is_not_meant() -> None:
    everything = [
        summary("a"),
        summary("b", workflow="other"),
        summary("c", state="failed"),
        summary("d", state="failed", compensation="incomplete"),
    ]
    assert {each.execution_id for each in Selection("w").select(everything)} == {"a", "c", "d"}
    assert {each.execution_id for each in Selection(state="failed").select(everything)} == {"c", "d"}
    assert {each.execution_id for each in Selection(needs_attention=True).select(everything)} == {"d"}
