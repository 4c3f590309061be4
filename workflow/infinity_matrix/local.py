"""A whole system in this process: server, coordinator and agents, gone when the block ends (or kept in `store`).

What it needs is imported when it is called: `import infinity_matrix` must not take the half second that NATS, pydantic
and the rest take, or `imx --help` would.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from infinity_matrix_agents import Agent

    from infinity_matrix.client import Client


@asynccontextmanager
async def local(
    agents: Iterable["Agent"] = (),
    store: "str | Path | None" = None,
    *,
    sync: Literal["always", "lazy"] = "always",
    port: int | None = None,
) -> AsyncIterator["Client"]:
    """An embedded nats-server, a coordinator and these agents in this process; workflows in the block run on it.

    `store` is the folder of what must outlive the block; None is a temporary one. With `sync="always"` every write is
    on disk before it counts.
    """
    import tempfile
    from pathlib import Path

    from infinity_matrix_bus.endpoint import Endpoint
    from infinity_matrix_bus.server import EmbeddedServer
    from infinity_matrix_coordinator.process import Coordinator

    from infinity_matrix.built_in import built_in_agents
    from infinity_matrix.client import Client
    from infinity_matrix.resolution import surrounding

    async with AsyncExitStack() as stack:
        if store is None:
            store = stack.enter_context(tempfile.TemporaryDirectory(prefix="infinity-matrix-"))
        server = await stack.enter_async_context(EmbeddedServer(Path(store), sync=sync, port=port))
        endpoint = Endpoint(server.connect_url)
        coordinator = Coordinator(endpoint)
        stack.push_async_callback(coordinator.stop)
        await coordinator.start()
        await stack.enter_async_context(built_in_agents(coordinator))
        client = Client(endpoint)
        client.names_untaken = True
        await client.open()
        stack.push_async_callback(client.close)
        await client.serve(agents)
        token = surrounding.set(client)
        try:
            yield client
        finally:
            surrounding.reset(token)


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    credentials: str | None = None,
    tls: "ssl.SSLContext | None" = None,
    prefix: str | None = None,
    context: str | None = None,
) -> AsyncIterator["Client"]:
    """A client of the system at `url`; without one, the system that `IM_URL` or the running local runtime names.

    Raises Unreachable, NotInstalled. Workflows in the block run there.
    """
    from infinity_matrix.client import Client
    from infinity_matrix.resolution import resolve, surrounding

    target = await resolve(url, credentials=credentials, tls=tls, prefix=prefix, context=context, starts_runtime=False)
    client = Client(target.endpoint, target.prefix)
    client.names_untaken = target.is_runtime
    await client.open()
    token = surrounding.set(client)
    try:
        yield client
    finally:
        surrounding.reset(token)
        await client.close()
