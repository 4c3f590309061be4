"""`python -m tests.capacity`: many open executions, what they cost, and how soon another coordinator has them."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

from . import cold_start, sleepers
from .figures import Figure


def main() -> int:
    """Prints all figures; answers 1 where one is over its goal."""
    parser = argparse.ArgumentParser(prog="python -m tests.capacity", description=__doc__)
    parser.add_argument("--sleepers", type=int, default=100_000, help="executions that only sleep; 0 for none")
    parser.add_argument("--open", type=int, default=10_000, help="executions with work under way; 0 for none")
    options = parser.parse_args()
    figures: list[Figure] = []
    if options.open:
        figures += _told(f"{options.open:,} open executions, all coordinators killed", cold_start.run, options.open)
    if options.sleepers:
        figures += _told(f"{options.sleepers:,} sleeping executions", sleepers.run, options.sleepers)
    return 0 if all(figure.is_met for figure in figures) else 1


def _told(title: str, run: Callable[[int], Awaitable[list[Figure]]], count: int) -> list[Figure]:
    sys.stdout.write(f"{title}\n")
    figures = asyncio.run(_figures(run, count))
    for figure in figures:
        sys.stdout.write(f"  {figure.line()}\n")
    sys.stdout.flush()
    return figures


async def _figures(run: Callable[[int], Awaitable[list[Figure]]], count: int) -> list[Figure]:
    return await run(count)


if __name__ == "__main__":
    sys.exit(main())
