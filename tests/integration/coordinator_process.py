"""A coordinator in a process of its own, for tests that kill or freeze it."""

import argparse
import asyncio
from pathlib import Path

from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("ready", type=Path)
    parser.add_argument("--owns-all", action="store_true")
    parser.add_argument("--sweep-interval", type=float, default=30.0)
    options = parser.parse_args()
    coordinator = Coordinator(Endpoint(options.url), owns_all=options.owns_all, sweep_interval_s=options.sweep_interval)
    await coordinator.start()
    options.ready.touch()
    await coordinator.run()


asyncio.run(main())
