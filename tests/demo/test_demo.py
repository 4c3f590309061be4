"""The demo on less data: what it shows is checked here against numbers counted once by other means."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from infinity_matrix.demo import etl, run
from infinity_matrix.demo.data import fill_source, read_flights
from infinity_matrix.demo.etl import SOURCE_TOTALS, read_totals
from infinity_matrix.demo.graph import Graph, GraphTask, find_graph, read_graph, shipped_graph
from infinity_matrix.demo.main import Settings, run_parts
from infinity_matrix.demo.replay import read_faults, scale_of
from rich.console import Console

#: 28 of these rows are bad; some of the chunks have none.
SETTINGS = Settings(rows_max=2_500, chunks=12, graph=shipped_graph())


def test_the_data_is_what_its_readme_says(tmp_path: Path) -> None:
    rows = list(read_flights())
    assert len(rows) == 27_004
    assert all(len(row) == 13 for row in rows)
    assert sum(row[8] is None for row in rows) == 521
    assert sum(row[10] is None for row in rows) == 606
    assert fill_source(tmp_path / "source.db") == 27_004
    totals = read_totals(tmp_path / "source.db", SOURCE_TOTALS)
    assert sum(line.arrived for line in totals) == 26_398
    assert [line.origin for line in totals] == ["EWR", "JFK", "LGA"]


async def test_every_row_arrives_or_is_in_quarantine_and_every_task_runs_once() -> None:
    output = io.StringIO()
    summary = await run_parts(Console(file=output, width=120), SETTINGS)
    moved, replayed = summary.parts
    assert summary.is_met, output.getvalue()
    assert moved.totals == moved.totals_of_source
    assert sum(line.flights for line in moved.totals) == 2_500
    assert sum(line.quarantined for line in moved.totals) == 28
    assert moved.tasks == 2 + 12 * 5
    assert 0 < moved.skipped < 12, "some chunks have bad rows, and some have none"
    assert (replayed.tasks, replayed.skipped) == (43, 0)
    assert "All checks passed" not in output.getvalue()
    summary.show(Console(file=output, width=120))
    assert "All checks passed: 2 executions" in output.getvalue()
    assert "100%  62 of 62 tasks done" in output.getvalue()


async def test_a_total_that_differs_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = etl.arrival_of

    def dishonest(row: list[Any]) -> list[Any]:
        arrival = honest(row)
        return [*arrival[:5], arrival[5] + (row[0] == 1_000), *arrival[6:]]

    monkeypatch.setattr(etl, "arrival_of", dishonest)
    assert await run(json=True, settings=SETTINGS) == 1
    record = json.loads(capsys.readouterr().out)
    moved, replayed = record["executions"]
    assert not record["ok"]
    assert [check["text"] for check in moved["checks"] if not check["is_met"]] == [
        "every total above equals what one SQL query on the source says"
    ]
    assert all(check["is_met"] for check in replayed["checks"])


async def test_a_task_that_fails_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(row: list[Any]) -> list[Any]:
        raise RuntimeError("the transformer is broken")

    monkeypatch.setattr(etl, "arrival_of", broken)
    assert await run(settings=SETTINGS) == 1
    output = capsys.readouterr().out
    assert "A check FAILED" in output
    assert "RuntimeError: the transformer is broken" in output


GRAPH = Graph("pair", "", (GraphTask("first", "p", (), 1.0), GraphTask("second", "p", ("first",), 2.0)))


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ("begin first,end first,begin second,end second", []),
        ("begin first,end first,begin second,end second,begin first,end first", ["first ran twice"]),
        ("begin first,begin second,end first,end second", ["second ran before first ended"]),
        ("begin first,end first", ["second did not run to its end"]),
    ],
)
def test_the_journal_tells_what_must_not_be(tmp_path: Path, lines: str, faults: list[str]) -> None:
    journal = tmp_path / "journal.txt"
    journal.write_text(lines.replace(",", "\n") + "\n")
    assert read_faults(journal, GRAPH) == faults


def test_a_long_graph_is_scaled_until_its_critical_path_fits() -> None:
    assert GRAPH.critical_path_s() == 3.0
    assert scale_of(GRAPH) == 0.05
    long = Graph("long", "", (GraphTask("one", "p", (), 800.0),))
    assert scale_of(long) == 0.01


def test_a_graph_at_hand_is_preferred_to_the_one_that_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"id": "only", "program": "p", "parents": [], "runtime_s": 1}
    graph = {"name": "mine", "source": "here", "tasks": [task]}
    (tmp_path / "montage-2mass-05d.json").write_text(json.dumps(graph))
    monkeypatch.setenv("IM_DEMO_WORKFLOWS", str(tmp_path))
    assert find_graph().name == "mine"


def test_a_graph_with_a_circle_is_refused(tmp_path: Path) -> None:
    tasks = [{"id": id, "program": "p", "parents": [parent], "runtime_s": 1} for id, parent in (("a", "b"), ("b", "a"))]
    path = tmp_path / "circle.json"
    path.write_text(json.dumps({"name": "circle", "source": "", "tasks": tasks}))
    with pytest.raises(ValueError, match="'a' can never run"):
        read_graph(path)
