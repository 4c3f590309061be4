"""Which system a call is for: one order for clients and agents alike.

An explicit argument, the surrounding `local()` or `connect()`, `IM_URL`, the running local runtime. A nats CLI context
only when it is named.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from infinity_matrix_actors.errors import Unreachable
from infinity_matrix_agents import agents_of_this_process
from infinity_matrix_bus.session import Endpoint

from infinity_matrix.client import Client
from infinity_matrix.nats_context import read_context

URL_VARIABLE = "IM_URL"
CREDENTIALS_VARIABLE = "IM_CREDENTIALS"
PREFIX_VARIABLE = "IM_PREFIX"
INBOX_VARIABLE = "IM_INBOX_PREFIX"
PREFIX_DEFAULT = "im"
RUNTIME_TRIES = 3

#: The client of the surrounding `local()` or `connect()`.
surrounding: ContextVar[Client | None] = ContextVar("infinity_matrix_client", default=None)


@dataclass(frozen=True, slots=True)
class Target:
    """A system to connect to."""

    endpoint: Endpoint
    prefix: str = PREFIX_DEFAULT
    is_runtime: bool = False


async def resolve(
    url: str | None = None,
    *,
    credentials: str | None = None,
    tls: ssl.SSLContext | None = None,
    prefix: str | None = None,
    context: str | None = None,
    starts_runtime: bool = True,
) -> Target:
    """The system an argument, the environment or the local runtime names; raises Unreachable when there is none.

    With `starts_runtime` the local runtime is started when nothing else is named.
    """
    prefix = prefix or os.environ.get(PREFIX_VARIABLE) or PREFIX_DEFAULT
    if context is not None:
        return Target(read_context(context), prefix)
    found = url or os.environ.get(URL_VARIABLE)
    if found:
        credentials = credentials or os.environ.get(CREDENTIALS_VARIABLE)
        inbox_prefix = os.environ.get(INBOX_VARIABLE) or "_INBOX"
        return Target(Endpoint(found, credentials=credentials, tls=tls, inbox_prefix=inbox_prefix), prefix)
    from infinity_matrix.runtime import running_runtime, start_runtime

    runtime = await (start_runtime() if starts_runtime else running_runtime())
    return Target(Endpoint(runtime.connect_url), PREFIX_DEFAULT, is_runtime=True)


@asynccontextmanager
async def opened(*, serves_agents: bool = False) -> AsyncIterator[Client]:
    """The surrounding client, or one for this call. Calls that overlap in one loop share it.

    With `serves_agents`, against the local runtime, every agent of this process that has a handler is served meanwhile.
    """
    client = surrounding.get()
    if client is not None:
        yield client
        return
    shared = _shared.setdefault(asyncio.get_running_loop(), _Shared())
    client = await shared.acquire()
    try:
        if serves_agents and shared.is_runtime:
            await client.serve(agents_of_this_process())
        yield client
    finally:
        await shared.release()
        if not shared.users:
            _shared.pop(asyncio.get_running_loop(), None)


class _Shared:
    """The client that overlapping calls of one event loop share."""

    def __init__(self) -> None:
        self.users = 0
        self.is_runtime = False
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def acquire(self) -> Client:
        self.users += 1
        try:
            async with self._lock:
                if self._client is None:
                    self._client = await self._open()
                return self._client
        except BaseException:
            self.users -= 1
            raise

    async def _open(self) -> Client:
        for tries_left in reversed(range(RUNTIME_TRIES)):
            target = await resolve()
            client = Client(target.endpoint, target.prefix)
            client.names_untaken = self.is_runtime = target.is_runtime
            try:
                return await client.open()
            except Unreachable:
                # The runtime may have ended between the look at it and the connecting: then there is a next one.
                if not target.is_runtime or not tries_left:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def release(self) -> None:
        self.users -= 1
        async with self._lock:
            if self.users == 0 and self._client is not None:
                client, self._client = self._client, None
                await client.close()


_shared: dict[asyncio.AbstractEventLoop, _Shared] = {}
