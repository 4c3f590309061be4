"""A coordinator in a process of its own, as `imx coordinator` runs it, and what the kernel counts of it."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from infinity_matrix.client import Client
from infinity_matrix_coordinator.standing import ShardStanding

MB = 1_000_000
READY_S = 60.0
POLL_S = 0.1


class CoordinatorProcess:
    """`imx coordinator` for a server; its log is in `folder`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._log = folder / "coordinators.log"
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        self.began = time.monotonic()
        with self._log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "infinity_matrix.cli.main", "--url", url, "coordinator"],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    async def ready(self) -> "CoordinatorProcess":
        """Returns once its shards are at the head; raises RuntimeError."""
        while b'"coordinator_ready"' not in self._log.read_bytes()[self._log_begins :]:
            if self._child.poll() is not None or time.monotonic() - self.began > READY_S:
                raise RuntimeError(f"the coordinator is not ready: {self._log.read_text()[-2000:]}")
            await asyncio.sleep(POLL_S)
        return self

    @property
    def resident_mb(self) -> float:
        """Its memory in RAM now."""
        return self._status_mb("VmRSS")

    @property
    def peak_mb(self) -> float:
        """The most that it ever had in RAM."""
        return self._status_mb("VmHWM")

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU since it began."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self._child.kill()
        self._child.wait()

    def _status_mb(self, name: str) -> float:
        if self._child.poll() is not None:
            raise RuntimeError(f"the coordinator ended: {self._log.read_text()[-2000:]}")
        for line in Path(f"/proc/{self._child.pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024 / MB
        raise RuntimeError(f"the kernel does not tell {name}")


async def standing(client: Client) -> tuple[ShardStanding, ...]:
    """The shards of all coordinators that answer; of a shard that two have both."""
    return tuple(shard for each in await client.operations.standings() for shard in each.shards)


async def until(
    client: Client, condition: Callable[[tuple[ShardStanding, ...]], bool], timeout_s: float, what: str
) -> float:
    """Seconds until the coordinators stand so; raises RuntimeError after `timeout_s`."""
    began = time.monotonic()
    while True:
        shards = await standing(client)
        took_s = time.monotonic() - began
        if condition(shards):
            return took_s
        if took_s > timeout_s:
            raise RuntimeError(f"{what}: not within {timeout_s:g} s; {shards}")
        await asyncio.sleep(POLL_S)


def are_live(shards: tuple[ShardStanding, ...], number: int) -> bool:
    """Whether each of so many shards has an owner at the head."""
    return {shard.number for shard in shards if shard.is_live} == set(range(number))


def held(shards: tuple[ShardStanding, ...]) -> tuple[int, int]:
    """Executions in memory, and those that left it."""
    return sum(shard.open for shard in shards), sum(shard.waiting for shard in shards)
