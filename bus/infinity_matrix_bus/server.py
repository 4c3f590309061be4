"""The embedded server: a nats-server of one's own, as a child that never outlives its owner.

It makes "nothing prepared" possible: random port on 127.0.0.1, random token, a store that one server at a time owns.
No object of an event loop is kept, so a server may be started in one `asyncio.run` and stopped in another.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from infinity_matrix_actors.errors import ServerDidNotStart

from infinity_matrix_bus import server_guard
from infinity_matrix_bus.server_binary import ServerBinary, find_server
from infinity_matrix_bus.server_process import POLL_S, ServerProcess
from infinity_matrix_bus.server_store import (
    HOST,
    MAX_FILE_STORE_BYTES,
    RANDOM_PORT,
    ServerFolder,
    Sync,
    server_config,
)

START_DEADLINE_S = 10.0
#: How long a port that this server had before may stay taken: a client that tries to reconnect to a port of its own
#: range can, rarely, be given that very port.
PORT_PATIENCE_S = 3.0
PORT_RETRY_S = 0.1
INFO_DEADLINE_S = 1.0

_TOKEN = re.compile(r"[A-Za-z0-9_-]*")
_PORT_TAKEN = "address already in use"


class EmbeddedServer:
    """A nats-server with JetStream on 127.0.0.1, run as a child process; an async context manager.

    `store` is a folder of its own, made if need be. `port` and `token` are random unless given; both stay the same
    when the server is started again, so that clients find it. `token=""` lets anyone on this machine in. `sync="lazy"`
    writes to disk every two minutes: a power loss may take facts that were acknowledged; a crash of the server may not.
    A store of many GB is read before the server is ready: give it a longer `start_deadline_s`.
    """

    def __init__(
        self,
        store: Path,
        *,
        port: int | None = None,
        token: str | None = None,
        sync: Sync = "always",
        server_name: str = "im-embedded",
        monitoring: bool = False,
        max_file_store_bytes: int = MAX_FILE_STORE_BYTES,
        start_deadline_s: float = START_DEADLINE_S,
    ) -> None:
        self.store = Path(store).expanduser().resolve()
        self.token = secrets.token_urlsafe(24) if token is None else token
        self.monitoring_url: str | None = None
        self._port = port
        self._sync: Sync = sync
        self._server_name = server_name
        self._monitoring = monitoring
        self._max_file_store_bytes = max_file_store_bytes
        self._start_deadline_s = start_deadline_s
        self._folder = ServerFolder(self.store)
        self._process: ServerProcess | None = None
        self._pid: int | None = None
        if not _TOKEN.fullmatch(self.token):
            raise ServerDidNotStart("its token cannot travel in a URL", hint="use letters, digits, '-' and '_'")

    @property
    def url(self) -> str:
        """The URL without the token. Raises `ServerDidNotStart` while no port is known."""
        if self._port is None:
            raise _not_started()
        return f"nats://{HOST}:{self._port}"

    @property
    def connect_url(self) -> str:
        """The URL with the token in it: a secret. Raises `ServerDidNotStart` while no port is known."""
        return self.url.replace("//", f"//{self.token}@") if self.token else self.url

    @property
    def pid(self) -> int:
        """The process id of the server itself. Raises `ServerDidNotStart` when it was not started."""
        if self._pid is None:
            raise _not_started()
        return self._pid

    @property
    def log_path(self) -> Path:
        """The server's log file; it stays when the server stops."""
        return self._folder.log

    @property
    def running(self) -> bool:
        """Whether the server was started and has not ended since, by itself or by a signal."""
        return self._pid is not None and self._process is not None and self._process.running

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts the server, also again after it ended, and returns when it takes connections; else does nothing.

        Raises `NoServerBinary`, `ServerTooOld`, `StoreInUse` and `ServerDidNotStart`.
        """
        if self.running:
            return
        self._reap()
        binary = await asyncio.to_thread(find_server)
        began_s = time.monotonic()
        while True:
            log_begin = await self._spawn(binary)
            try:
                async with asyncio.timeout(self._start_deadline_s):
                    if await self._became_ready():
                        return
                reason, hint = "it ended at once", f"its log {self.log_path} says why"
            except TimeoutError:
                reason = f"it was not ready after {self._start_deadline_s:g} s"
                hint = "a large store takes longer to read: give it a longer start_deadline_s"
            finally:
                if self._pid is None:
                    self._reap()
            log_tail = self._folder.log_tail(log_begin)
            if _PORT_TAKEN in log_tail:
                reason, hint = f"port {self._port} is taken", "choose another port, or stop what listens there"
                if time.monotonic() - began_s < PORT_PATIENCE_S:
                    await asyncio.sleep(PORT_RETRY_S)
                    continue
            raise ServerDidNotStart(reason, hint=hint, log_tail=log_tail)

    async def stop(self) -> None:
        """Stops the server, by force after 10 s, and lets go of the store. May be called at any time, repeatedly."""
        await self._end(server_guard.STOP)

    async def kill(self) -> None:
        """Kills the server with SIGKILL and returns when it is gone; `start` brings it back. For tests of crashes."""
        await self._end(server_guard.KILL)

    def pause(self) -> None:
        """Freezes the server with SIGSTOP: its connections stay open and nothing is answered. For tests."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def _spawn(self, binary: ServerBinary) -> int:
        """Starts the process; answers where in the log its lines begin."""
        try:
            self._folder.prepare()
            lock = await self._folder.lock()
        except OSError as error:
            raise ServerDidNotStart(f"its store cannot be used: {error}", hint="choose another folder") from error
        log: int | None = None
        try:
            config = server_config(
                self._folder,
                binary,
                port=RANDOM_PORT if self._port is None else self._port,
                token=self.token,
                sync=self._sync,
                server_name=self._server_name,
                monitoring=self._monitoring,
                max_file_store_bytes=self._max_file_store_bytes,
            )
            self._folder.write_config(config)
            log = self._folder.open_log()
            log_begin = os.fstat(log).st_size
            # The token is in the file: a command line can be read by every user of the machine.
            self._process = ServerProcess([str(binary.path), "-c", str(self._folder.config)], lock=lock, log=log)
        except OSError as error:
            raise ServerDidNotStart(f"its process cannot be started: {error}", hint="choose another folder") from error
        finally:
            # From here on the lock lives in the guard and the server, and exactly as long as they do.
            os.close(lock)
            if log is not None:
                os.close(log)
        return log_begin

    async def _became_ready(self) -> bool:
        """Answers True once the server greets a connection, False when it ended instead. Waits without a deadline."""
        assert self._process is not None
        while self._process.running:
            ports = self._folder.read_ports()
            if ports is not None:
                pid, urls = ports
                port = int(urls["nats"][0].rpartition(":")[2])
                if await _greets(port):
                    self._port, self._pid = port, pid
                    self.monitoring_url = urls["monitoring"][0] if self._monitoring else None
                    return True
            await asyncio.sleep(POLL_S)
        return False

    async def _end(self, order: bytes) -> None:
        if self._process is None:
            return
        try:
            await self._process.end(order)
        finally:
            self._reap()

    def _reap(self) -> None:
        process, self._process, self._pid = self._process, None, None
        if process is not None:
            process.reap()
            self._folder.forget_unless_taken()


async def _greets(port: int) -> bool:
    """Answers whether a nats-server with JetStream sends its INFO line on that port."""
    try:
        async with asyncio.timeout(INFO_DEADLINE_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
    # A line that was cut short has no end: the server ended while it wrote.
    if not (line.startswith(b"INFO ") and line.endswith(b"\n")):
        return False
    return bool(json.loads(line.removeprefix(b"INFO ")).get("jetstream"))


def _not_started() -> ServerDidNotStart:
    return ServerDidNotStart("nobody started it", hint="await start(), or use 'async with'")
