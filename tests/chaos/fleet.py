"""The processes of a run: each behind proxies of its own, each started again whenever it has ended."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from .proxy import Mode, Proxy

ROOT = Path(__file__).parents[2]
RESTART_S = 0.3
STOP_S = 15.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Run in the child before it begins: nothing of a run outlives it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Member:
    """One process of the system, by its role and number."""

    def __init__(self, role: str, number: int, folder: Path, options: tuple[str, ...] = ()) -> None:
        self.role = role
        self.name = f"{role}-{number}"
        self._folder = folder
        self._options = options
        self._log = folder / f"{self.name}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self._url = ""
        self.proxies: list[Proxy] = []
        #: A fault has it in its hands: no other may take it, and nobody starts it.
        self.is_struck = False
        #: How often it ended by itself and was started again.
        self.ended_by_itself = 0

    async def place(self, targets: list[tuple[str, int]], token: str) -> "Member":
        """Puts its proxies between it and the servers."""
        self.proxies = [await Proxy(target).open() for target in targets]
        self._url = ",".join(f"nats://{token}@127.0.0.1:{proxy.port}" for proxy in self.proxies)
        return self

    @property
    def runs(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        if self.runs:
            return
        self._runs += 1
        options = [option.replace("{run}", str(self._runs)) for option in self._options]
        with self._log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", f"tests.chaos.{self.role}", self._url, str(self._folder), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                preexec_fn=die_with_parent,
            )

    def send(self, number: signal.Signals) -> None:
        if self.runs:
            assert self._child is not None
            os.kill(self._child.pid, number)

    async def ended(self, timeout_s: float = STOP_S) -> bool:
        """Whether it ended in time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.runs:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def strike(self, mode: Mode, randomness: object) -> None:
        for proxy in self.proxies:
            proxy.strike(mode, randomness)  # type: ignore[arg-type]

    def heal(self) -> None:
        for proxy in self.proxies:
            proxy.heal()

    async def close(self) -> None:
        self.send(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()
        for proxy in self.proxies:
            await proxy.close()


class Fleet:
    """All members, and who sees to it that they run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self._watching: asyncio.Task[None] | None = None
        #: Clients start nothing more, and end when they are done.
        self.is_stopping = False

    async def add(self, role: str, targets: list[tuple[str, int]], token: str, *options: str) -> Member:
        number = 1 + sum(member.role == role for member in self.members)
        member = await Member(role, number, self.folder, options).place(targets, token)
        self.members.append(member)
        return member

    def start(self) -> None:
        for member in self.members:
            member.start()
        self._watching = asyncio.create_task(self._watch())

    def of(self, *roles: str) -> list[Member]:
        return [member for member in self.members if member.role in roles]

    async def _watch(self) -> None:
        """Starts again what ended, as an init system would; but for clients that were told to stop."""
        while True:
            for member in self.members:
                is_wanted = member.role != "client" or not self.is_stopping
                if is_wanted and not member.runs and not member.is_struck:
                    member.ended_by_itself += 1
                    member.start()
            await asyncio.sleep(RESTART_S)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for member in self.members:
            await member.close()
