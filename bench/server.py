"""A nats-server of its own for a run of the benchmark: random port, own store, gone with the run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from pydantic_core import from_json

STORES = Path(__file__).resolve().parent.parent / ".bench"
"""On the checkout's own disk: a temporary folder in memory would make every fsync free."""

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
SYNC_INTERVALS = {"always": "always", "lazy": '"2m"'}
"""`lazy` is the server's own default."""


@contextlib.asynccontextmanager
async def nats_server(sync: str) -> AsyncIterator[tuple[str, int]]:
    """Run a nats-server with JetStream while the context is open and answer its URL and process id.

    `sync` is `always` (each write fsynced before its PubAck) or `lazy`. Raises RuntimeError when it does not start.
    """
    STORES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bare-", dir=STORES, ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        config = home / "server.conf"
        config.write_text(
            f'host: 127.0.0.1\nport: -1\nports_file_dir: "{home}"\nlog_file: "{home / "server.log"}"\n'
            f'jetstream {{ store_dir: "{home / "store"}", sync_interval: {SYNC_INTERVALS[sync]} }}\n',
            encoding="utf-8",
        )
        binary = Path(sysconfig.get_path("scripts")) / ("nats-server.exe" if sys.platform == "win32" else "nats-server")
        # A session of its own: Ctrl-C reaches this process only, which then stops the server in order.
        process = await asyncio.create_subprocess_exec(str(binary), "-c", str(config), start_new_session=True)
        try:
            yield await _url(process, home), process.pid
        finally:
            await stop(process, process.terminate)


async def _url(process: asyncio.subprocess.Process, home: Path) -> str:
    ports = home / f"nats-server_{process.pid}.ports"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while process.returncode is None:
                with contextlib.suppress(FileNotFoundError, ValueError):  # not there yet, or half written
                    return str(from_json(ports.read_bytes())["nats"][0])
                await asyncio.sleep(POLL_S)
    log = home / "server.log"
    raise RuntimeError(f"nats-server did not start: {log.read_text()[-2_000:] if log.exists() else 'no log'}")


async def stop(process: asyncio.subprocess.Process, ask: Callable[[], None]) -> None:
    """Ask the process to end, and kill it when it has not within `STOP_TIMEOUT_S` seconds."""
    if process.returncode is None:
        ask()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
