"""The benchmark: each workload by the limit and by the engine in turn, several times, then the table of medians.

    python -m bench [--sync always|lazy|both] [--workload NAME ...] [--system bare|engine ...] [--pairs N]

Both systems run all the time and take turns, so that whatever else the machine does meets both alike. Prints one JSON
line for each measurement, and the table at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from dataclasses import replace

import uvloop

from bench.bare import bare
from bench.driver import measure
from bench.engine import engine
from bench.idle import measure_idle
from bench.measurement import Measurement
from bench.report import table
from bench.workloads import WORKLOADS, Workload, workloads_named

SYNCS = ("always", "lazy")
SYSTEMS = {"bare": bare, "engine": engine}
PAIRS = 3


async def run(
    syncs: tuple[str, ...], systems: tuple[str, ...], workloads: tuple[Workload, ...], pairs: int
) -> list[Measurement]:
    """Measure at each sync setting; SIGTERM and Ctrl-C stop it and every process it started."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return [one for sync in syncs for one in await _run_at(sync, systems, workloads, pairs)]


async def _run_at(
    sync: str, systems: tuple[str, ...], workloads: tuple[Workload, ...], pairs: int
) -> list[Measurement]:
    measurements: list[Measurement] = []
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(SYSTEMS[system](sync)) for system in systems]
        for system in running:
            measurements += _printed(await measure_idle(system, sync))
        for workload in workloads:
            for _ in range(pairs):
                for system in running:
                    measurements += _printed([await measure(system.bench, system.system, workload, sync)])
    return measurements


def _printed(measurements: list[Measurement]) -> list[Measurement]:
    for measurement in measurements:
        print(measurement.line(), flush=True)
    return measurements


def main() -> int:
    """Read the command line, measure, and answer the exit code: 0, 1 when something broke, 130 when it was stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="The engine beside the limit bare nats-py sets."
    )
    parser.add_argument("--sync", choices=[*SYNCS, "both"], default="both", help="when the server fsyncs")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="how often each workload is measured")
    parser.add_argument("--seconds", type=float, help="how long each measurement lasts, instead of the workload's own")
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="both by default")
    parser.add_argument(
        "--workload", action="append", choices=[workload.name for workload in WORKLOADS], help="all of them by default"
    )
    arguments = parser.parse_args()
    syncs = SYNCS if arguments.sync == "both" else (arguments.sync,)
    workloads = workloads_named(arguments.workload)
    if arguments.seconds is not None:
        workloads = tuple(replace(workload, duration_s=arguments.seconds) for workload in workloads)
    systems = tuple(arguments.system or SYSTEMS)
    try:
        measurements = uvloop.run(run(syncs, systems, workloads, arguments.pairs))
    except asyncio.CancelledError:
        return 130
    except ExceptionGroup as group:
        print(f"bench: {group!r}", file=sys.stderr)
        return 1
    print(table(measurements))
    return 0


if __name__ == "__main__":
    sys.exit(main())
