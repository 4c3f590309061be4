"""What the benchmark runs: the graphs, the numbers in flight, the durations and the payload sizes.

The bare limit and the engine import this one list, so that whoever changes a workload changes it for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AGENT = "agent-bench"
"""The one agent name that does every task."""

AGENT_CONCURRENCY = 1_000
"""Works the agent holds at once; the widest fan-out fits."""

SHARDS = 4

INPUT = {"source": "database", "table": "orders", "since": "2026-01-01", "region": "eu-central", "limit": 10_000}
"""The input of every execution, about 100 bytes of JSON."""

CONFIG = {"query": "SELECT * FROM orders", "batch": 500}
"""The config of every task."""

RESULT = {"rows": 1_234, "bytes": 567_890, "checksum": "9f86d081884c7d659a2feaa0c55ad015", "location": "orders/part"}
"""The result of every task, about 100 bytes of JSON."""

TASK_TIMEOUT_S = 30

Mode = Literal["execute", "start"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One measurement: a graph, how many executions of it are open at once, and for how long.

    `mode` says what is timed: `execute` an execution from its start to its end, `start` only the durable start,
    while everything started runs on meanwhile.
    """

    name: str
    about: str
    graph: dict[str, tuple[str, ...]]
    """Task id to the ids of its direct upstream tasks, upstream first."""
    hops: int | None
    """Tasks of a chain that runs alone; None where a latency per hop would tell queues or widths, not hops."""
    in_flight: int
    mode: Mode = "execute"
    warm_up_s: float = 0.7
    duration_s: float = 2.0


def chain(length: int) -> dict[str, tuple[str, ...]]:
    """Answer `length` tasks in a row."""
    names = [f"step-{index}" for index in range(1, length + 1)]
    return {name: tuple(names[index - 1 : index]) for index, name in enumerate(names)}


def fan_out(width: int) -> dict[str, tuple[str, ...]]:
    """Answer one fork, `width` parallel tasks and one join."""
    parts = tuple(f"part-{index}" for index in range(1, width + 1))
    return {"fork": (), **dict.fromkeys(parts, ("fork",)), "join": parts}


WORKLOADS = (
    Workload("chain-5", "chain of 5, one at a time", chain(5), hops=5, in_flight=1),
    Workload("chain-3", "chain of 3, 500 in flight", chain(3), hops=None, in_flight=500),
    Workload("fan-out-100", "fan-out of 100, one at a time", fan_out(100), hops=None, in_flight=1),
    Workload("fan-out-1000", "fan-out of 1,000, one at a time", fan_out(1_000), hops=None, in_flight=1),
    Workload(
        "start",
        "starts of 1 task, 500 unconfirmed",
        chain(1),
        hops=None,
        in_flight=500,
        mode="start",
        warm_up_s=0.5,
        duration_s=2.0,
    ),
)


def workloads_named(names: list[str] | None) -> tuple[Workload, ...]:
    """Answer the workloads of these names in the order of the list; all of them for None or an empty list."""
    return tuple(workload for workload in WORKLOADS if not names or workload.name in names)
