"""The local runtime and schedules: a script that only schedules prepares nothing, and what it scheduled comes due."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DEADLINE_S = 60.0
IDLE_S = 1
DUE_AFTER_S = 4
SCRIPT = f"""
import datetime
from infinity_matrix.workflow import Task, Workflow

at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={DUE_AFTER_S})
handle = Workflow("later", tasks=[Task("only", "nobody")]).schedule(run_at=at, name="once")
print(handle.name)
"""
STOP = "import asyncio; from infinity_matrix.runtime import stop_runtime; asyncio.run(stop_runtime())"
IMX = str(Path(sys.executable).with_name("imx"))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user with no runtime; one that was started ends afterwards."""
    environment = {key: value for key, value in os.environ.items() if key not in ("IM_URL", "IM_PREFIX")}
    environment |= {"IM_HOME": str(tmp_path / "home"), "IM_RUNTIME_IDLE_S": str(IDLE_S)}
    yield environment
    run(environment, sys.executable, "-c", STOP)


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_runtime_stays_while_something_is_to_come_due(home: dict[str, str]) -> None:
    assert run(home, sys.executable, "-W", "error", "-c", SCRIPT) == "once\n"
    endpoint = Path(home["IM_HOME"]) / "runtime.json"
    began = time.monotonic()
    # Nobody is connected meanwhile: asking would keep the runtime, too.
    while time.monotonic() - began < DUE_AFTER_S + 2:
        assert endpoint.exists(), "the runtime ended before the schedule came due"
        time.sleep(0.1)
    assert [one["state"] for one in json.loads(run(home, IMX, "ls", "--json"))] == ["running"]
    assert json.loads(run(home, IMX, "schedule", "show", "once", "--json"))["started"] == 1
