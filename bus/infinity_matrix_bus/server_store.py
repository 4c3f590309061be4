"""The folder of one embedded server: who owns it, and the configuration the server reads there.

<store>/owner.lock         locked while a server runs; holds the process id of its owner
<store>/jetstream/         the streams: the server's own
<store>/run/server.conf    removed when the server stops: it holds the token
<store>/run/server.log
<store>/run/*.ports        written by the server once it listens
"""

import asyncio
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infinity_matrix_actors.errors import StoreInUse

from infinity_matrix_bus.server_binary import ServerBinary

Sync = Literal["always", "lazy"]

HOST = "127.0.0.1"
RANDOM_PORT = -1
MAX_PAYLOAD_BYTES = 1024 * 1024
#: The budget that the `max_bytes` of the streams are shares of.
MAX_FILE_STORE_BYTES = 10 * 1024**3
#: Nothing of ours is stored in memory; the server wants a limit all the same, else it takes most of the machine's.
MAX_MEMORY_STORE_BYTES = 64 * 1024**2
#: Servers from 2.15 on allow 1,000 consumers a stream unless told otherwise, also of streams made by others (a bucket).
MAX_CONSUMERS_PER_STREAM = 10_000
LOG_BYTES_MAX = 16 * 1024**2
LOG_FILES_MAX = 3
LOG_TAIL_BYTES = 4096
#: A server whose owner was killed lets go of the store within milliseconds, usually.
ORPHAN_PATIENCE_S = 3.0
LOCK_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """The paths of one store, and what is done with the files at them. The calls block only for local disk access."""

    store: Path

    @property
    def run(self) -> Path:
        return self.store / "run"

    @property
    def config(self) -> Path:
        return self.run / "server.conf"

    @property
    def log(self) -> Path:
        return self.run / "server.log"

    def prepare(self) -> None:
        """Makes the folders, readable by their owner alone. Raises `OSError` when that is impossible."""
        self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        # An existing folder with other people's files in it keeps its mode; ours inside it are closed in any case.
        if not any(self.store.iterdir()):
            self.store.chmod(0o700)
        for inner in (self.run, self.store / "jetstream"):
            inner.mkdir(mode=0o700, exist_ok=True)
            inner.chmod(0o700)

    async def lock(self) -> int:
        """Answers the descriptor of the lock, taken for this process; raises `StoreInUse`, naming the holder.

        The lock lasts as long as any process has the descriptor: close it here once the server has inherited it.
        """
        descriptor = os.open(self.store / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline_s = time.monotonic() + ORPHAN_PATIENCE_S
            while not _try_lock(descriptor):
                holder_pid = _read_pid(descriptor)
                if _is_alive(holder_pid) or time.monotonic() > deadline_s:
                    raise StoreInUse(str(self.store), holder_pid)
                await asyncio.sleep(LOCK_POLL_S)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open_log(self) -> int:
        """Answers a descriptor that appends to the log."""
        return os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def log_tail(self, from_byte: int) -> str:
        """Answers the end of what was logged since `from_byte`."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size < from_byte:  # the log was rotated
            from_byte = 0
        with self.log.open("rb") as file:
            file.seek(max(from_byte, size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode(errors="replace").strip()

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes the configuration, readable by its owner alone, and forgets the ports of an earlier server."""
        self._forget()
        descriptor = os.open(self.config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # The server's own format is a superset of JSON, and JSON has one way to quote a path.
            json.dump(config, file, indent=2, ensure_ascii=False)

    def forget_unless_taken(self) -> None:
        """Removes what is true only while the server runs, unless the store has a next owner whose files they are."""
        descriptor = os.open(self.store / "owner.lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            if _try_lock(descriptor):
                self._forget()
        finally:
            os.close(descriptor)

    def _forget(self) -> None:
        self.config.unlink(missing_ok=True)
        for ports in self.run.glob("*.ports"):
            ports.unlink(missing_ok=True)

    def read_ports(self) -> tuple[int, dict[str, list[str]]] | None:
        """Answers the server's process id and its URLs by kind; None while it has not written them completely."""
        for path in self.run.glob("*.ports"):
            try:
                return int(path.stem.rpartition("_")[2]), json.loads(path.read_text())
            except (ValueError, FileNotFoundError):
                return None
        return None


def server_config(
    folder: ServerFolder,
    binary: ServerBinary,
    *,
    port: int,
    token: str,
    sync: Sync,
    server_name: str,
    monitoring: bool,
    max_file_store_bytes: int,
) -> dict[str, Any]:
    """Answers the server's configuration. An empty token means that anyone on this machine may connect."""
    jetstream: dict[str, Any] = {
        "store_dir": str(folder.store),
        "sync_interval": "always" if sync == "always" else "2m",
        "max_memory_store": MAX_MEMORY_STORE_BYTES,
        "max_file_store": max_file_store_bytes,
    }
    if binary.version >= (2, 15, 0):  # 2.14 has neither that limit nor its setting, and refuses unknown settings
        jetstream["limits"] = {"default_max_consumers": MAX_CONSUMERS_PER_STREAM}
    config: dict[str, Any] = {
        "server_name": server_name,
        "listen": f"{HOST}:{port}",
        "ports_file_dir": str(folder.run),
        "log_file": str(folder.log),
        "logfile_size_limit": LOG_BYTES_MAX,
        "logfile_max_num": LOG_FILES_MAX,
        "max_payload": MAX_PAYLOAD_BYTES,
        "jetstream": jetstream,
    }
    if token:
        config["authorization"] = {"token": token}
    if monitoring:
        config["http"] = f"{HOST}:{RANDOM_PORT}"
    return config


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(descriptor: int) -> int | None:
    written = os.pread(descriptor, 32, 0)
    return int(written) if written.isdigit() else None


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
