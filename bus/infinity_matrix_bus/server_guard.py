"""The guard: the small process between an owner and its nats-server that lets the server never outlive the owner.

It is run by path with `python -I -S`, so it imports nothing but the standard library. Why a process:

- The kernel's own means, PR_SET_PDEATHSIG, follows the *thread* that forked. An event loop may live in a thread that
  ends while its process goes on, and the server would die with it; macOS has no such means at all.
- A pipe from the owner is closed by the kernel however the owner ends, on every system. Children that the owner forked
  hold that pipe open too, so the guard also looks at its parent's id, every second.
- The guard has one thread, so between the guard and the server PR_SET_PDEATHSIG is exact: on Linux a killed guard
  takes the server with it.
- An orphaned server is asked to stop first (that keeps what consumers have acked) and killed only when it does not.

The lock on the store is inherited by guard and server: it is free when the server is gone, not when its owner is.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable

#: What an owner writes to the guard's stdin. The end of the pipe means the same as STOP.
STOP = b"s"
KILL = b"k"
#: How long a server that was asked to stop may take: 10 ms as a rule, and a kill loses no fact.
STOP_DEADLINE_S = 10.0
#: How often the parent's id is compared, for the case that somebody else holds the owner's pipe open.
PARENT_POLL_S = 1.0

_PR_SET_PDEATHSIG = 1
_STDIN = 0
_STDERR = 2


def guard(owner_pid: int, command: list[str]) -> int:
    """Runs `command` until it ends or its owner does; answers the exit code (negative: the signal that ended it)."""
    # A child's end must wake the select below: that is what the handler and the wake-up pipe are for.
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Prepared before the fork, so that the child has nothing to import and little that can fail.
    die_with_guard = _death_signal()
    guard_pid = os.getpid()
    server_pid = os.fork()
    if server_pid == 0:
        _become(command, guard_pid, die_with_guard)
    # A service manager signals every process of the group: the server obeys, and the guard stays to see it end.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    return _watch(owner_pid, server_pid, woken)


def _watch(owner_pid: int, server_pid: int, woken: int) -> int:
    watched = [_STDIN, woken]
    kill_at_s: float | None = None
    while True:
        ended_pid, status = os.waitpid(server_pid, os.WNOHANG)
        if ended_pid == server_pid:
            return os.waitstatus_to_exitcode(status)
        if kill_at_s is not None and time.monotonic() >= kill_at_s:
            os.kill(server_pid, signal.SIGKILL)
        ready, _, _ = select.select(watched, [], [], PARENT_POLL_S)
        if woken in ready:
            os.read(woken, 512)
        order = b""
        if _STDIN in ready:
            order = os.read(_STDIN, 1)
            if not order:
                watched = [woken]
                order = STOP
        if order == KILL:
            os.kill(server_pid, signal.SIGKILL)
        elif kill_at_s is None and (order or os.getppid() != owner_pid):
            kill_at_s = time.monotonic() + STOP_DEADLINE_S
            os.kill(server_pid, signal.SIGTERM)
            # A server that is paused would hear of it only after the deadline.
            os.kill(server_pid, signal.SIGCONT)


def _become(command: list[str], guard_pid: int, die_with_guard: Callable[[], None]) -> None:
    """Turns the forked child into the server. Does not return."""
    try:
        die_with_guard()
        # The guard may have ended before the request above was in force.
        if os.getppid() == guard_pid:
            os.dup2(os.open(os.devnull, os.O_RDONLY), _STDIN)
            os.execv(command[0], command)
    except OSError as error:
        os.write(_STDERR, f"{command[0]} cannot be run: {error}\n".encode())
    finally:
        os._exit(127)


def _death_signal() -> Callable[[], None]:
    """Answers a call that has the kernel kill the caller when its parent ends; without Linux it does nothing."""
    if sys.platform == "linux":
        try:
            import ctypes

            prctl = ctypes.CDLL(None).prctl
        except (ImportError, OSError, AttributeError):
            return _nothing
        return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return _nothing


def _nothing() -> None:
    return None


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]) & 0xFF)
