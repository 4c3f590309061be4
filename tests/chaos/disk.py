"""A disk of its own for the servers, so that it can be filled: a tmpfs where that is permitted."""

import errno
import os
import subprocess
from pathlib import Path

BLOCK_BYTES = 4096


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
        """To the last block, while others write to it."""
        room = os.statvfs(self.path)
        taken, piece = 0, room.f_bavail * room.f_bsize
        with self._filler.open("wb") as file:
            while piece >= BLOCK_BYTES:
                try:
                    os.posix_fallocate(file.fileno(), taken, piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2
                else:
                    taken += piece

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.is_own:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)
