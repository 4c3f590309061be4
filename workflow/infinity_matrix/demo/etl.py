"""The first half of the demo: flights move from one SQLite database into another, chunk by chunk, by three agents.

Chunks travel between agents as files, and only counts and paths as results. Every step writes the same again when it is
done again, so an attempt that is repeated counts once.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow

EXTRACTOR = "agent-etl-pipeline"
TRANSFORMER = "agent-data-transformer"
LOADER = "agent-data-loader"
STEPS = ("plan", "extract", "validate", "quarantine", "transform", "load", "report")
YEAR = 2013
LATE_MIN = 15
BUSY_TIMEOUT_S = 20.0

EXTRACT = """
SELECT id, month, day, carrier, origin, dest, dep_delay, arr_delay, air_time, distance
FROM flights WHERE id BETWEEN ? AND ? ORDER BY id
"""
TARGET_TABLES = """
CREATE TABLE IF NOT EXISTS arrivals (
    id INTEGER PRIMARY KEY, day TEXT NOT NULL, carrier TEXT NOT NULL, origin TEXT NOT NULL, dest TEXT NOT NULL,
    miles INTEGER NOT NULL, air_minutes INTEGER NOT NULL, miles_per_hour REAL NOT NULL, is_late INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS quarantine (
    id INTEGER PRIMARY KEY, origin TEXT NOT NULL, reason TEXT NOT NULL, flight TEXT NOT NULL
);
"""
#: What the source says, in one query.
SOURCE_TOTALS = f"""
SELECT origin, count(*), count(arr_delay), count(*) - count(arr_delay),
    sum(CASE WHEN arr_delay IS NOT NULL THEN distance ELSE 0 END), coalesce(sum(air_time), 0),
    coalesce(sum(arr_delay >= {LATE_MIN}), 0)
FROM flights GROUP BY origin ORDER BY origin
"""
#: What arrived in the target.
TARGET_TOTALS = """
SELECT origin, count(*), sum(arrived), sum(1 - arrived), sum(miles), sum(air_minutes), sum(is_late)
FROM (SELECT origin, 1 AS arrived, miles, air_minutes, is_late FROM arrivals
      UNION ALL SELECT origin, 0, 0, 0, 0 FROM quarantine)
GROUP BY origin ORDER BY origin
"""


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of one airport of departure."""

    origin: str
    flights: int
    arrived: int
    quarantined: int
    miles: int
    air_minutes: int
    late: int


def etl_workflow(chunks: int) -> Workflow:
    """The graph: every chunk goes its own way, and only those with bad rows pass through quarantine."""
    workflow = Workflow(name="demo-etl", version="1", description="Flights from one SQLite database into another")
    workflow.add_task(Task(id="plan", agent=EXTRACTOR, config={"step": "plan", "chunks": chunks}))
    ends: list[str] = []
    for chunk in range(1, chunks + 1):
        extract, validate, quarantine, transform, load = (f"{step}-{chunk}" for step in STEPS[1:-1])
        workflow.add_tasks(
            [
                _task(extract, EXTRACTOR, chunk, "plan"),
                _task(validate, TRANSFORMER, chunk, extract),
                _task(quarantine, LOADER, chunk, validate, condition=f"{validate}.result.bad > 0"),
                _task(transform, TRANSFORMER, chunk, validate),
                _task(load, LOADER, chunk, transform),
            ]
        )
        ends += [quarantine, load]
    return workflow.add_task(Task(id="report", agent=LOADER, depends_on=ends, config={"step": "report"}))


def etl_agents() -> list[Agent]:
    """The three agents. Only one load runs at a time, as SQLite has one writer."""
    agents = []
    for name, concurrency in ((EXTRACTOR, 4), (TRANSFORMER, 4), (LOADER, 1)):
        agent = Agent(name, concurrency=concurrency)
        agent.handler(take_step)
        agents.append(agent)
    return agents


def take_step(work: Work) -> dict[str, Any]:
    """The handler of all three: what a task does stands in its config."""
    return HANDLERS[work.config["step"]](work)


def plan(work: Work) -> dict[str, Any]:
    """Answers how many rows there are and how many make a chunk; makes the tables of the target."""
    with closing(sqlite3.connect(work.input["source"])) as source:
        (rows,) = source.execute("SELECT count(*) FROM flights").fetchone()
    with _target(work) as target:
        target.executescript(TARGET_TABLES)
    return {"rows": rows, "chunk_rows": -(-rows // work.config["chunks"])}


def extract(work: Work) -> dict[str, Any]:
    """Reads one chunk of the source into a file."""
    chunk_rows = work.upstream["plan"]["chunk_rows"]
    first = (work.config["chunk"] - 1) * chunk_rows + 1
    with closing(sqlite3.connect(work.input["source"])) as source:
        rows = source.execute(EXTRACT, (first, first + chunk_rows - 1)).fetchall()
    return {"rows": len(rows), "extracted": _write(work, "extracted", rows)}


def validate(work: Work) -> dict[str, Any]:
    """Parts the good rows from the bad ones."""
    rows = _read(work, "extracted")
    good = [row for row in rows if fault_of(row) is None]
    bad = [row for row in rows if fault_of(row) is not None]
    return {
        "good": len(good),
        "bad": len(bad),
        "good_rows": _write(work, "good", good),
        "bad_rows": _write(work, "bad", bad),
    }


def quarantine(work: Work) -> dict[str, Any]:
    """Keeps the bad rows whole, each with the reason."""
    kept = [(row[0], row[4], fault_of(row), json.dumps(row)) for row in _read(work, "bad_rows")]
    with _target(work) as target:
        target.executemany("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)", kept)
    return {"quarantined": len(kept)}


def transform(work: Work) -> dict[str, Any]:
    """Turns good rows into arrivals."""
    arrivals = [arrival_of(row) for row in _read(work, "good_rows")]
    return {"rows": len(arrivals), "transformed": _write(work, "transformed", arrivals)}


def load(work: Work) -> dict[str, Any]:
    """Writes arrivals into the target; a row that is there already is replaced by itself."""
    arrivals = _read(work, "transformed")
    with _target(work) as target:
        target.executemany("INSERT OR REPLACE INTO arrivals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", arrivals)
    return {"loaded": len(arrivals)}


def report(work: Work) -> dict[str, Any]:
    """The totals of the target."""
    return {"totals": [asdict(totals) for totals in read_totals(work.input["target"], TARGET_TOTALS)]}


HANDLERS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "plan": plan,
    "extract": extract,
    "validate": validate,
    "quarantine": quarantine,
    "transform": transform,
    "load": load,
    "report": report,
}


def fault_of(row: list[Any]) -> str | None:
    """Why an extracted row is bad; None when it is good."""
    departure_delay, arrival_delay = row[6:8]
    if departure_delay is None:
        return "cancelled"
    return "no arrival on record" if arrival_delay is None else None


def arrival_of(row: list[Any]) -> list[Any]:
    """The arrival that a good row tells of."""
    flight, month, day, carrier, origin, destination, _, arrival_delay, air_minutes, miles = row
    departed_on = date(YEAR, month, day).isoformat()
    speed = round(miles / air_minutes * 60, 1)
    is_late = int(arrival_delay >= LATE_MIN)
    return [flight, departed_on, carrier, origin, destination, miles, air_minutes, speed, is_late]


def read_totals(database: str | Path, query: str) -> list[Totals]:
    """The answer of SOURCE_TOTALS or TARGET_TOTALS, by airport."""
    with closing(sqlite3.connect(database)) as connection:
        return [Totals(*row) for row in connection.execute(query)]


def _task(id: str, agent: str, chunk: int, upstream: str, condition: str | None = None) -> Task:
    step = id.partition("-")[0]
    return Task(id=id, agent=agent, depends_on=[upstream], condition=condition, config={"step": step, "chunk": chunk})


def _write(work: Work, name: str, rows: list[Any]) -> str:
    path = Path(work.input["folder"], f"{name}-{work.config['chunk']}.json")
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def _read(work: Work, name: str) -> list[Any]:
    """The rows of the file that the one upstream task names."""
    (result,) = work.upstream.values()
    rows: list[Any] = json.loads(Path(result[name]).read_text(encoding="utf-8"))
    return rows


@contextmanager
def _target(work: Work) -> Iterator[sqlite3.Connection]:
    """One transaction on the target."""
    with closing(sqlite3.connect(work.input["target"], timeout=BUSY_TIMEOUT_S)) as connection, connection:
        yield connection
