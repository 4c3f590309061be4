"""Every example is run as its reader would run it: as a program, with nothing prepared."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN_ALL = EXAMPLES / "run_all.py"
FILES = sorted({*EXAMPLES.glob("*.py"), EXAMPLES / "polyglot" / "run.py"} - {RUN_ALL})
STOP_RUNTIME = "import asyncio; from infinity_matrix.runtime import stop_runtime; asyncio.run(stop_runtime())"
PATTERNS = {
    "sequential",
    "parallel",
    "conditional",
    "fan_out_fan_in",
    "pipeline",
    "retry",
    "trigger",
    "agent_in_its_own_process",
}
DEADLINE_S = 100.0


@pytest.fixture
def user(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user with no system; a runtime that was started ends afterwards."""
    environment = {name: value for name, value in os.environ.items() if name not in ("IM_URL", "IM_PREFIX")}
    environment["IM_HOME"] = str(tmp_path / "home")
    yield environment
    subprocess.run([sys.executable, "-c", STOP_RUNTIME], env=environment, timeout=DEADLINE_S, check=True)


def run(environment: dict[str, str], *command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_every_pattern_has_an_example() -> None:
    assert {path.stem for path in FILES} >= PATTERNS | {"first_workflow", "run"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_does_what_it_asserts(path: Path, user: dict[str, str]) -> None:
    assert re.search(r"^ *assert ", path.read_text(), re.MULTILINE), "an example asserts its own result"
    done = run(user, "-W", "error", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "an example shows what it did"
    assert "Warning" not in done.stderr, done.stderr


def test_running_all_examples_fails_when_one_does(tmp_path: Path, user: dict[str, str]) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("print('so far so good')\nassert 1 == 2\n")
    done = run(user, RUN_ALL, EXAMPLES / "sequential.py", wrong)
    assert done.returncode == 1
    ok, failed, *printed = done.stdout.splitlines()
    assert ok.startswith("ok")
    assert ok.endswith("sequential.py")
    assert failed.startswith("FAILED")
    assert "so far so good" in printed
    assert printed[-1] == "1 of 2 examples went well"
