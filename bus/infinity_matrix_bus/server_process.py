"""The owner's side of a guarded server process: spawned, asked to end, and reaped without a trace.

Not asyncio's subprocess: its transport belongs to one event loop, and a server may outlive the loop that started it.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from infinity_matrix_bus import server_guard

#: What the guard needs beyond its own deadline to see the killed server end.
GUARD_MARGIN_S = 3.0
POLL_S = 0.005


class ServerProcess:
    """A guard and the server under it; ends with its owner at the latest."""

    def __init__(self, command: list[str], *, lock: int, log: int) -> None:
        """Runs `command`, which inherits the descriptor `lock` and prints to `log`. Raises `OSError`."""
        guard = [sys.executable, "-I", "-S", str(Path(server_guard.__file__)), str(os.getpid())]
        self._guard = subprocess.Popen(
            guard + command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            # Ctrl-C in the terminal must not reach the server before those who still have something to store.
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    async def end(self, order: bytes) -> None:
        """Gives the guard an order of `server_guard` and returns when server and guard are gone, killed if need be."""
        deadline_s = time.monotonic() + server_guard.STOP_DEADLINE_S + GUARD_MARGIN_S
        try:
            self._tell(order)
            # The end of a process is an event for asyncio only with a child watcher, which belongs to one loop again.
            while self.running and time.monotonic() < deadline_s:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
        finally:
            self.reap()

    def reap(self) -> None:
        """Leaves no process behind. It takes milliseconds and awaits nothing, so that it also works when cancelled."""
        assert self._guard.stdin is not None
        if self.running:
            self._tell(server_guard.KILL)
            try:
                self._guard.wait(GUARD_MARGIN_S)
            except subprocess.TimeoutExpired:
                # The guard leads the group that the server is in.
                os.killpg(self._guard.pid, signal.SIGKILL)
                self._guard.wait()
        self._guard.stdin.close()

    def _tell(self, order: bytes) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the guard has ended, and the server before it
            self._guard.stdin.write(order)
