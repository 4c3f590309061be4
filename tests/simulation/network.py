"""The simulated network: sockets between processes and the server, with latency, breaks and silent links.

What is written arrives later, in order. The production client sits on an asyncio transport as it does on a real one.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from .loop import Process, SimulatedLoop

if TYPE_CHECKING:
    from .server import Server, ServerConnection

LATENCY_MIN_S = 0.0001
LATENCY_MAX_S = 0.0008
#: A server that hears nothing of a client closes its connection after this long.
STALE_S = 15.0
CONNECT_S = 0.002


class Link:
    """One connection: a socket in a process, its end at the server, and the two ways between them."""

    def __init__(self, network: "Network", process: Process, protocol: Any) -> None:
        self.network = network
        self.process = process
        self.protocol = protocol
        self.socket = Socket(self)
        self.server_end: ServerConnection | None = None
        self.is_open = True
        #: Neither end hears the other any more, and neither is told.
        self.is_silent = False
        #: What arrives before this time is late.
        self.slow_until = 0.0
        self.slow_s = 0.0
        self._up_at = 0.0
        self._down_at = 0.0

    def up(self, data: bytes) -> None:
        """From the process to the server."""
        if not self.is_open or self.is_silent:
            return
        self._up_at = max(self._up_at, self.network.loop.now + self._latency_s())
        self.network.loop.post(self.network.server_process, self._up_at, self._arrive_up, data)

    def down(self, data: bytes) -> None:
        """From the server to the process."""
        if not self.is_open or self.is_silent:
            return
        self._down_at = max(self._down_at, self.network.loop.now + self._latency_s())
        self.network.loop.post(self.process, self._down_at, self._arrive_down, data)

    def arrives_by(self) -> float:
        """When what the server sends now has come to the process at the latest, if it is awake."""
        now = self.network.loop.now
        return max(self._down_at, now + LATENCY_MAX_S + (self.slow_s if now < self.slow_until else 0.0))

    def _latency_s(self) -> float:
        network = self.network
        latency_s = network.random.uniform(LATENCY_MIN_S, LATENCY_MAX_S)
        return latency_s + self.slow_s if network.loop.now < self.slow_until else latency_s

    def _arrive_up(self, data: bytes) -> None:
        if self.server_end is not None and not self.is_silent:
            self.network.server.receive(self.server_end, data)

    def _arrive_down(self, data: bytes) -> None:
        if self.is_open and not self.is_silent and not self.socket.is_closing():
            self.protocol.data_received(data)

    def close_from_client(self) -> None:
        """The process closed its socket, or died; what it had written still arrives."""
        if not self.is_open:
            return
        if not self.is_silent:
            at = max(self._up_at, self.network.loop.now + LATENCY_MIN_S)
            self.network.loop.post(self.network.server_process, at, self._end)
        self.is_open = False
        self.network.links.pop(self, None)

    def die(self) -> None:
        """The process died: its kernel closes the socket."""
        self.socket.die()
        self.close_from_client()

    def close_from_server(self) -> None:
        """The server, or what lies between, ended the connection."""
        self._end()
        if not self.is_open:
            return
        self.is_open = False
        self.network.links.pop(self, None)
        if not self.is_silent:
            at = max(self._down_at, self.network.loop.now + LATENCY_MIN_S)
            self.network.loop.post(self.process, at, self.socket.lose)

    def _end(self) -> None:
        end, self.server_end = self.server_end, None
        if end is not None:
            self.network.server.closed(end)

    def silence(self) -> None:
        """From now on everything is lost; the server gives the connection up after a while."""
        self.is_silent = True
        self.network.loop.post(self.network.server_process, self.network.loop.now + STALE_S, self._end)

    def slow(self, delay_s: float, for_s: float) -> None:
        """Everything arrives later for a while."""
        self.slow_until = self.network.loop.now + for_s
        self.slow_s = delay_s


class Socket(asyncio.Transport):
    """The process's end of a link, as asyncio knows it."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._is_closing = False
        self._is_lost = False

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self._link.up(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._link.close_from_client()
            self._link.network.loop.call_soon(self.lose)

    def abort(self) -> None:
        self.close()

    def die(self) -> None:
        """Nobody is there any more to be told."""
        self._is_closing = self._is_lost = True

    def lose(self) -> None:
        """Tells the protocol that the connection is over."""
        self._is_closing = True
        if not self._is_lost:
            self._is_lost = True
            self._link.protocol.connection_lost(None)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def pause_reading(self) -> None:
        # Answered so, a stream reader takes what comes.
        raise NotImplementedError

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Network:
    """All links to the one server."""

    def __init__(self, loop: SimulatedLoop, random: Random, server: "Server", server_process: Process) -> None:
        self.loop = loop
        self.random = random
        self.server = server
        self.server_process = server_process
        #: Open links, oldest first.
        self.links: dict[Link, None] = {}
        loop.connect = self._connect

    async def _connect(self, protocol_factory: Callable[[], Any]) -> tuple[Socket, Any]:
        process = self.loop.current
        await asyncio.sleep(CONNECT_S)
        if not self.server.is_up:
            raise ConnectionRefusedError("the server is down")
        protocol = protocol_factory()
        link = Link(self, process, protocol)
        self.links[link] = None
        process.on_death.append(link.die)
        protocol.connection_made(link.socket)
        link.server_end = self.server.accept(link)
        return link.socket, protocol
