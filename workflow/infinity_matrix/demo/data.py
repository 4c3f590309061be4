"""The public data of the demo and the database it starts in. Licence and source stand in the data file itself."""

import csv
import gzip
import sqlite3
from collections.abc import Iterator
from importlib import resources
from itertools import islice
from pathlib import Path

FLIGHTS = "flights-2013-01.csv.gz"
FLIGHTS_TABLE = """
CREATE TABLE flights (
    id INTEGER PRIMARY KEY, month INTEGER NOT NULL, day INTEGER NOT NULL, carrier TEXT NOT NULL,
    flight INTEGER NOT NULL, tailnum TEXT, origin TEXT NOT NULL, dest TEXT NOT NULL, sched_dep_time INTEGER NOT NULL,
    dep_delay INTEGER, sched_arr_time INTEGER NOT NULL, arr_delay INTEGER, air_time INTEGER, distance INTEGER NOT NULL
)
"""


def read_flights() -> Iterator[list[str | None]]:
    """The rows of the data file in its order, an unknown value as None."""
    with (
        resources.files("infinity_matrix.demo").joinpath(FLIGHTS).open("rb") as packed,
        gzip.open(packed, "rt", encoding="utf-8", newline="") as text,
    ):
        rows = csv.reader(line for line in text if not line.startswith("#"))
        next(rows)
        for row in rows:
            yield [value or None for value in row]


def fill_source(path: Path, rows_max: int | None = None) -> int:
    """Makes the database the demo extracts from; answers how many rows it has."""
    database = sqlite3.connect(path)
    try:
        with database:
            database.execute(FLIGHTS_TABLE)
            rows = ([number, *row] for number, row in enumerate(islice(read_flights(), rows_max), start=1))
            return database.executemany(f"INSERT INTO flights VALUES ({', '.join('?' * 14)})", rows).rowcount
    finally:
        database.close()
