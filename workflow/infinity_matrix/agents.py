"""Agents as users write them: a name, a handler, and `serve`."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import infinity_matrix_agents
from infinity_matrix_agents import AgentRunner, Failure, Work
from infinity_matrix_bus.connection import Connection

from infinity_matrix.resolution import resolve, surrounding

SERVE_DRAIN_S = 10.0


class Agent(infinity_matrix_agents.Agent):
    """An agent: `@agent.handler` registers what does its work, `concurrency` is how many run at once."""

    async def serve(self, url: str | None = None, *, prefix: str | None = None, context: str | None = None) -> None:
        """Serves this agent alone until cancelled, or until SIGTERM or SIGINT: then it takes no more, finishes within
        10 s and hands the rest back at once. Raises Unreachable, NotInstalled."""
        await serve_agents([self], url, prefix=prefix, context=context)


async def serve_agents(
    agents: list[infinity_matrix_agents.Agent],
    url: str | None = None,
    *,
    prefix: str | None = None,
    context: str | None = None,
) -> None:
    """Serves agents until cancelled or told to stop by a signal."""
    client = surrounding.get() if url is None and context is None else None
    if client is not None:
        connection, prefix, own = client.connection, client.prefix, None
    else:
        target = await resolve(url, prefix=prefix, context=context)
        own = connection = await Connection(target.endpoint).open()
        prefix = target.prefix
    runners: list[AgentRunner] = []
    stop = asyncio.Event()
    with _stops_on_signal(stop):
        try:
            for agent in agents:
                runners.append(await AgentRunner(agent, connection, prefix).open())
            await stop.wait()
        finally:
            # Cancelled or told to stop: the same orderly end, which neither a second cancel nor signal breaks off.
            await asyncio.shield(asyncio.gather(*(runner.close(SERVE_DRAIN_S) for runner in runners)))
            if own is not None:
                await own.close()


async def until_told_to_stop() -> None:
    """Returns at SIGTERM or SIGINT."""
    stop = asyncio.Event()
    with _stops_on_signal(stop):
        await stop.wait()


@contextmanager
def _stops_on_signal(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    installed: list[signal.Signals] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except (NotImplementedError, RuntimeError, ValueError):
            # Not in the main thread, or not on this platform: cancelling is the only way then.
            continue
        installed.append(number)
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)


__all__ = ["Agent", "Failure", "Work"]
