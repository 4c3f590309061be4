"""The local runtime: one background process per user with a server and a coordinator, shared by all scripts.

It outlives the script that started it, and ends by itself a minute after its last client left with no execution open.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from infinity_matrix_actors.errors import InfinityMatrixError, Unreachable

HOME_VARIABLE = "IM_HOME"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
LOCK_TIMEOUT_S = 40.0
POLL_S = 0.05
PROBE_TIMEOUT_S = 2.0
LOG_TAIL_LINES = 20


class RuntimeDidNotStart(InfinityMatrixError):
    """Raised when the local runtime gave up; its log says why. Mend that, or set IM_URL to another system."""

    def __init__(self, reason: str, log_tail: str) -> None:
        super().__init__(f"the local runtime did not start: {reason}\n{log_tail}".rstrip())


@dataclass(frozen=True, slots=True)
class Runtime:
    """A running local runtime, as its endpoint file tells."""

    url: str
    token: str
    pid: int
    log: str

    @property
    def connect_url(self) -> str:
        """The URL with the token in it."""
        return self.url.replace("nats://", f"nats://{self.token}@", 1) if self.token else self.url

    @property
    def log_path(self) -> Path:
        return Path(self.log)


@dataclass(frozen=True, slots=True)
class RuntimeFolder:
    """Where a user's runtime keeps its things."""

    root: Path

    @classmethod
    def of_user(cls) -> "RuntimeFolder":
        """`IM_HOME`, else the user's data directory."""
        named = os.environ.get(HOME_VARIABLE)
        if named:
            return cls(Path(named))
        if sys.platform == "darwin":
            return cls(Path.home() / "Library" / "Application Support" / "infinity-matrix")
        base = os.environ.get("XDG_DATA_HOME")
        return cls((Path(base) if base else Path.home() / ".local" / "share") / "infinity-matrix")

    def make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def endpoint(self) -> Path:
        return self.root / "runtime.json"

    @property
    def log(self) -> Path:
        return self.root / "runtime.log"

    @property
    def start_lock(self) -> Path:
        """Held by who starts or ends a runtime."""
        return self.root / "start.lock"

    @property
    def life_lock(self) -> Path:
        """Held by the runtime while it lives."""
        return self.root / "runtime.lock"

    def write(self, runtime: Runtime) -> None:
        """Publishes the endpoint, readable for this user only, in one step."""
        draft = self.root / f"runtime.json.{os.getpid()}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(runtime), file)
        draft.replace(self.endpoint)

    def read(self) -> Runtime | None:
        """The published endpoint; None when there is none, or its process is gone."""
        try:
            runtime = Runtime(**json.loads(self.endpoint.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return runtime if self.is_alive() else None

    def is_alive(self) -> bool:
        """Whether a runtime holds its lock: true even where its pid was given to another process since."""
        try:
            descriptor = os.open(self.life_lock, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False


async def running_runtime() -> Runtime:
    """The runtime that runs now; raises Unreachable."""
    folder = RuntimeFolder.of_user()
    runtime = folder.read()
    if runtime is None or not await _answers(runtime):
        raise Unreachable("the local runtime", "it is not running")
    return runtime


async def start_runtime() -> Runtime:
    """The runtime that runs now, started if need be; raises RuntimeDidNotStart. Of several that start it, one does."""
    folder = RuntimeFolder.of_user()
    runtime = folder.read()
    if runtime is not None and await _answers(runtime):
        return runtime
    folder.make()
    async with locked(folder.start_lock):
        runtime = folder.read()
        if runtime is not None and await _answers(runtime):
            return runtime
        return await _spawn(folder)


async def stop_runtime() -> bool:
    """Ends the runtime now; answers whether one was running. What is open resumes at the next start."""
    folder = RuntimeFolder.of_user()
    runtime = folder.read()
    if runtime is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(runtime.pid, signal.SIGTERM)
    deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
    while folder.is_alive():
        if asyncio.get_running_loop().time() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(runtime.pid, signal.SIGKILL)
            deadline += STOP_TIMEOUT_S
        await asyncio.sleep(POLL_S)
    return True


@contextlib.asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Holds a lock file between processes; a process that dies lets go of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = asyncio.get_running_loop().time() + LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise RuntimeDidNotStart(f"{path} is held by another process", "") from None
                await asyncio.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


async def _spawn(folder: RuntimeFolder) -> Runtime:
    folder.endpoint.unlink(missing_ok=True)
    with folder.log.open("ab") as log:
        # A session of its own: Ctrl-C in the script's terminal is not meant for it.
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once, and nobody waits for its end
            [sys.executable, "-m", "infinity_matrix.runtime_process"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder.root,
            close_fds=True,
        )
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        code = process.poll()
        runtime = folder.read()
        if runtime is not None and await _answers(runtime):
            # It outlives this process on purpose; without this its handle would warn that it still runs.
            process.returncode = 0
            return runtime
        if code is not None:
            raise RuntimeDidNotStart(f"it ended with exit code {code}", _tail(folder.log))
        if asyncio.get_running_loop().time() > deadline:
            process.kill()
            process.wait()
            raise RuntimeDidNotStart(f"it was not ready within {START_TIMEOUT_S:g} s", _tail(folder.log))
        await asyncio.sleep(POLL_S)


async def _answers(runtime: Runtime) -> bool:
    host, _, port = runtime.url.rpartition("/")[2].partition(":")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                return (await reader.readline()).startswith(b"INFO ")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return False


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines)
