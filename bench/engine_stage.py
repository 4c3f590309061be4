"""The engine's coordinator and agent, each a process of its own.

    python -m bench.engine_stage coordinator|agent URL

Both end when their stdin does, so that they never outlive the process that started them.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import infinity_matrix
import structlog
from infinity_matrix.agents import Agent, Work
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.process import Coordinator

from bench.stage import end_of_stdin, run_stage, say_ready
from bench.workloads import AGENT, AGENT_CONCURRENCY, RESULT, SHARDS

agent = Agent(AGENT, concurrency=AGENT_CONCURRENCY)


@agent.handler
async def answer(work: Work) -> dict[str, Any]:
    """Do nothing, as the limit's agent does."""
    return RESULT


async def serve(role: str, url: str) -> int:
    """Be the coordinator or the agent until stdin ends; answer the exit code."""
    # The lines the engine logs go to stderr, where they are no figures; below warning there is nothing to see here.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    if role == "coordinator":
        coordinator = await Coordinator(Endpoint(url), shards=SHARDS).start()
        try:
            say_ready()
            await end_of_stdin()
        finally:
            await coordinator.stop()
    else:
        async with infinity_matrix.connect(url) as client:
            await client.serve([agent])
            say_ready()
            await end_of_stdin()
    return 0


if __name__ == "__main__":
    sys.exit(run_stage(serve))
