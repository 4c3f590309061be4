"""Runs the real command line as users do: a process of its own, its streams and exit code."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMX = str(Path(sys.executable).with_name("imx"))
TIMEOUT_S = 40.0
POLL_S = 0.05


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class CommandLine:
    """`imx` with a home, a current directory and an environment of its own."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IM_", "FORCE_"))}
        own = {"IM_HOME": str(self.folder / "home"), "XDG_CONFIG_HOME": str(self.folder / "config")}
        return {**kept, **own, **self.variables}

    def __call__(self, *arguments: str, input: str | None = None, **variables: str) -> Answer:
        done = subprocess.run(
            [IMX, *arguments],
            cwd=self.folder,
            env={**self.environment(), **variables},
            input=input,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that goes on; its stderr is in `<folder>/<first words>.err`."""
        with (self.folder / f"{'-'.join(arguments[:2])}.err").open("ab") as errors:
            return subprocess.Popen(
                [IMX, *arguments],
                cwd=self.folder,
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return name


def end(process: subprocess.Popen[str], *, kills: bool = False) -> int:
    """Ends a command in order (or at once), and answers its exit code."""
    if process.poll() is None:
        process.kill() if kills else process.terminate()
    try:
        process.wait(TIMEOUT_S)
    finally:
        assert process.stdout is not None
        process.stdout.close()
    return process.returncode


def first_line(process: subprocess.Popen[str]) -> str:
    """The first line a command writes."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args} ended without a word"
    return line


def until(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """What `condition` answers, once that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
