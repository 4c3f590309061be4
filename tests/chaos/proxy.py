"""A TCP proxy that misbehaves on demand: between one process and one server, so that a fault has one victim.

What TCP can do to a program: bytes come late, come much later, never come while the connection seems alive, the
other end is gone without a word, or it says so at once.
"""

import asyncio
import contextlib
import random
from enum import StrEnum

CHUNK_BYTES = 64 * 1024
CONNECT_S = 2.0


class Mode(StrEnum):
    CLEAN = "clean"
    DELAY = "delay"  #: every piece comes later
    STALL = "stall"  #: nothing goes on, in either direction, until it is healed; nothing is lost
    DROP = "drop"  #: what is sent is swallowed; the connections end when it is healed
    HALF_OPEN = "half-open"  #: the server's side is closed, and the process is not told
    RESET = "reset"  #: the connections are reset, and so are new ones


class Proxy:
    """Listens on a port of 127.0.0.1 and connects on to `target`; `strike` and `heal` change what it does."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.mode = Mode.CLEAN
        self._delay_s = 0.0
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        #: Every connection: the process's writer, and the server's.
        self._open: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    @property
    def port(self) -> int:
        return self._port

    async def open(self) -> "Proxy":
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def strike(self, mode: Mode, randomness: random.Random) -> None:
        self.mode = mode
        if mode is Mode.DELAY:
            self._delay_s = randomness.uniform(0.02, 0.2)
        elif mode is Mode.STALL:
            self._flows.clear()
        elif mode is Mode.HALF_OPEN:
            for _, server in self._open:
                server.transport.abort()
        elif mode is Mode.RESET:
            self._abort_all()

    def heal(self) -> None:
        mode, self.mode = self.mode, Mode.CLEAN
        self._delay_s = 0.0
        self._flows.set()
        if mode in (Mode.DROP, Mode.HALF_OPEN):
            # What was swallowed cannot be brought back: the stream of bytes is broken.
            self._abort_all()

    def _abort_all(self) -> None:
        for process, server in list(self._open):
            process.transport.abort()
            server.transport.abort()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.RESET:
            writer.transport.abort()
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                server_reader, server = await asyncio.open_connection(*self.target)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        ends = (writer, server)
        self._open.add(ends)
        try:
            there = asyncio.create_task(self._pump(reader, server, to_process=False))
            back = asyncio.create_task(self._pump(server_reader, writer, to_process=True))
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            if self.mode is Mode.HALF_OPEN:
                # The process goes on talking to nobody.
                await asyncio.wait([there])
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
        finally:
            self._open.discard(ends)
            for one in ends:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_process: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if self.mode is Mode.DROP or (self.mode is Mode.HALF_OPEN and not to_process):
                    continue
                writer.write(data)
                await writer.drain()
