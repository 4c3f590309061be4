"""A coordinator in a process of its own, for tests that kill or freeze it."""

import argparse
import asyncio
from pathlib import Path

from infinity_matrix_actors import fact
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator import backlog, performer
from infinity_matrix_coordinator.process import Coordinator


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("ready", type=Path)
    parser.add_argument("--owns-all", action="store_true")
    parser.add_argument("--sweep-interval", type=float, default=30.0)
    parser.add_argument("--decide", type=int, default=fact.DECIDE_VERSION, help="pretend to have these rules")
    parser.add_argument("--queued-max", type=int, default=backlog.QUEUED_MAX, help="works of an agent in the queue")
    options = parser.parse_args()
    performer.QUEUED_MAX = options.queued_max
    fact.DECIDE_VERSION = options.decide
    coordinator = Coordinator(Endpoint(options.url), owns_all=options.owns_all, sweep_interval_s=options.sweep_interval)
    await coordinator.start()
    options.ready.touch()
    await coordinator.run()


asyncio.run(main())
