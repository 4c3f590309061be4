"""A disk of its own for the servers, so that it can be filled: a tmpfs where that is permitted."""

import os
import subprocess
from pathlib import Path

FREE_BYTES = 4096


class Disk:
    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)], capture_output=True, check=False
        )
        #: Without a mount of its own it must not be filled: it is everybody's.
        self.is_own = done.returncode == 0
        self._filler = path / "filler"

    def fill(self) -> None:
        room = os.statvfs(self.path)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_bsize - FREE_BYTES))

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.is_own:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)
