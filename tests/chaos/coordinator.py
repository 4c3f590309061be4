"""A coordinator in a process of its own."""

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path

from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator

SWEEP_S = 10.0


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    coordinator = Coordinator(Endpoint(options.url), sweep_interval_s=SWEEP_S)
    await coordinator.start()
    running = asyncio.create_task(coordinator.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await coordinator.stop()


asyncio.run(main())
