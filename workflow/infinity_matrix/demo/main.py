"""Runs the demo on a system of its own: an ETL of real rows, then the graph of a real workflow at speed."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from infinity_matrix_coordinator.views import ExecutionMetrics, ExecutionResult
from rich.console import Console

import infinity_matrix
from infinity_matrix.demo import replay
from infinity_matrix.demo.data import fill_source
from infinity_matrix.demo.etl import SOURCE_TOTALS, STEPS, Totals, etl_agents, etl_workflow, read_totals
from infinity_matrix.demo.graph import Graph, find_graph
from infinity_matrix.demo.summary import Check, Part, Summary
from infinity_matrix.demo.view import ExecutionView
from infinity_matrix.workflow import Workflow

EXECUTION_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How much the demo does. `rows_max` None is every row, `graph` None the largest that is at hand."""

    rows_max: int | None = None
    chunks: int = 96
    graph: Graph | None = None


async def run(*, json: bool = False, settings: Settings | None = None) -> int:
    """Runs the demo and shows it, or prints its summary as JSON; answers 0, or 1 when a check failed.

    Raises TimeoutError when an execution takes longer than two minutes.
    """
    console = Console(quiet=json, highlight=False)
    summary = await run_parts(console, settings or Settings())
    if json:
        sys.stdout.write(dumps(summary.record(), indent=2) + "\n")
    else:
        summary.show(console)
    return 0 if summary.is_met else 1


async def run_parts(console: Console, settings: Settings) -> Summary:
    """Runs both halves, one after the other, on one system that is gone afterwards."""
    began_s = time.perf_counter()
    graph = settings.graph or find_graph()
    with tempfile.TemporaryDirectory(prefix="infinity-matrix-demo-") as name:
        folder = Path(name)
        await asyncio.to_thread(fill_source, folder / "source.db", settings.rows_max)
        source = tuple(await asyncio.to_thread(read_totals, folder / "source.db", SOURCE_TOTALS))
        journal = replay.Journal(folder / "journal.txt")
        try:
            async with infinity_matrix.local(agents=[*etl_agents(), replay.replay_agent(journal)]):
                moved = await move_flights(console, folder, source, settings.chunks)
                replayed = await replay_graph(console, graph, journal)
        finally:
            journal.close()
    return Summary((moved, replayed), time.perf_counter() - began_s)


async def move_flights(console: Console, folder: Path, source: tuple[Totals, ...], chunks: int) -> Part:
    """The ETL, checked against what one query says of the source."""
    rows = sum(line.flights for line in source)
    workflow = etl_workflow(chunks)
    title = f"ETL: {rows:,} flights from one SQLite database into another, in {chunks} chunks"
    groups = {id: id.partition("-")[0] for step in STEPS for id in workflow.task_ids if id.partition("-")[0] == step}
    places = {"source": str(folder / "source.db"), "target": str(folder / "target.db"), "folder": str(folder)}
    result, metrics = await _execute(console, workflow, title, groups, places)
    totals = tuple(Totals(**line) for line in result.outputs.get("report", {}).get("totals", ()))
    loaded, quarantined = sum(line.arrived for line in totals), sum(line.quarantined for line in totals)
    checks = (
        _completed(result),
        Check(
            f"{rows:,} rows in the source = {loaded:,} loaded + {quarantined:,} quarantined",
            rows == loaded + quarantined,
        ),
        Check("every total above equals what one SQL query on the source says", bool(totals) and totals == source),
        Check("every task took one attempt", metrics.total_attempts == metrics.completed),
    )
    return _part(console, title, result, metrics, checks, totals, source)


async def replay_graph(console: Console, graph: Graph, journal: replay.Journal) -> Part:
    """The replay, checked against the journal of its agent."""
    workflow = replay.replay_workflow(graph)
    title = (
        f"{graph.name}: {len(graph.tasks):,} tasks of a real workflow, {replay.CONCURRENCY} at once, "
        f"time x {replay.scale_of(graph):.2g}"
    )
    groups = {task.id: task.program for task in graph.tasks}
    result, metrics = await _execute(console, workflow, title, groups, None)
    faults = replay.read_faults(journal.path, graph)
    checks = (
        _completed(result),
        Check("every task is once in the journal of its agent, after all of its parents", not faults),
        *(Check(fault, False) for fault in faults[:3]),
    )
    return _part(console, title, result, metrics, checks)


async def _execute(
    console: Console, workflow: Workflow, title: str, groups: Mapping[str, str], input: Any
) -> tuple[ExecutionResult, ExecutionMetrics]:
    async with asyncio.timeout(EXECUTION_TIMEOUT_S):
        execution_id = await workflow.start(input)
        with ExecutionView(console, title, groups) as view:
            await view.follow(workflow.stream_status(execution_id))
        return await workflow.wait(execution_id), await workflow.get_metrics(execution_id)


def _completed(result: ExecutionResult) -> Check:
    if result.status == "completed":
        return Check("the execution completed", True)
    error = result.error or {}
    return Check(
        f"the execution {result.status}: {error.get('task')}: {error.get('type')}: {error.get('message')}", False
    )


def _part(
    console: Console,
    title: str,
    result: ExecutionResult,
    metrics: ExecutionMetrics,
    checks: tuple[Check, ...],
    totals: tuple[Totals, ...] = (),
    totals_of_source: tuple[Totals, ...] = (),
) -> Part:
    part = Part(
        title=title,
        workflow=result.workflow,
        execution_id=result.execution_id,
        status=result.status,
        seconds=round(result.duration, 3),
        tasks=len(metrics.tasks),
        completed=metrics.completed,
        skipped=metrics.skipped,
        checks=checks,
        totals=totals,
        totals_of_source=totals_of_source,
    )
    part.show(console)
    return part
