"""The local runtime: started by whoever comes first, shared by all, gone by itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, sys
from infinity_matrix.agents import Agent
from infinity_matrix.workflow import Task, Workflow

agent = Agent("agent-" + sys.argv[1])

@agent.handler
async def work(work):
    await asyncio.sleep(float(sys.argv[2]))
    return work.input * 2

workflow = Workflow("double-" + sys.argv[1], tasks=[Task("double", agent.name)])
result = asyncio.run(workflow.execute(input=21))
again = asyncio.run(workflow.execute(input=4))
print(result.status, result.outputs["double"], again.outputs["double"])
"""
DEADLINE_S = 60.0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user with no runtime; one that was started ends afterwards."""
    environment = {key: value for key, value in os.environ.items() if key not in ("IM_URL", "IM_PREFIX")}
    environment |= {"IM_HOME": str(tmp_path / "home"), "IM_RUNTIME_IDLE_S": "60"}
    yield environment
    stop(environment)


def stop(environment: dict[str, str]) -> None:
    code = "import asyncio; from infinity_matrix.runtime import stop_runtime; asyncio.run(stop_runtime())"
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=DEADLINE_S, check=True)


def script(environment: dict[str, str], name: str, seconds: str = "0", code: str = SCRIPT) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, name, seconds],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert errors == ""
    return output.strip()


def endpoint(environment: dict[str, str]) -> dict[str, object]:
    path = Path(environment["IM_HOME"]) / "runtime.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_a_script_runs_with_nothing_prepared_and_the_runtime_outlives_it(home: dict[str, str]) -> None:
    assert finished(script(home, "one")) == "completed 42 8"
    pid = endpoint(home)["pid"]
    assert isinstance(pid, int)
    os.kill(pid, 0)
    assert finished(script(home, "one")) == "completed 42 8"
    assert endpoint(home)["pid"] == pid


def test_three_scripts_at_once_share_one_runtime(home: dict[str, str]) -> None:
    processes = [script(home, name) for name in ("one", "two", "three")]
    assert [finished(process) for process in processes] == ["completed 42 8"] * 3
    log = (Path(home["IM_HOME"]) / "runtime.log").read_text()
    assert log.count('"runtime_ready"') == 1


def test_a_script_killed_at_work_does_no_harm(home: dict[str, str]) -> None:
    stubborn = script(home, "killed", "600")
    deadline = time.monotonic() + DEADLINE_S
    while not (Path(home["IM_HOME"]) / "runtime.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stubborn.send_signal(signal.SIGKILL)
    stubborn.communicate(timeout=DEADLINE_S)
    assert finished(script(home, "after")) == "completed 42 8"


def test_a_runtime_nobody_needs_ends_by_itself(home: dict[str, str]) -> None:
    home["IM_RUNTIME_IDLE_S"] = "1"
    assert finished(script(home, "brief")) == "completed 42 8"
    deadline = time.monotonic() + DEADLINE_S
    while (Path(home["IM_HOME"]) / "runtime.json").exists():
        assert time.monotonic() < deadline, "the runtime did not end"
        time.sleep(0.05)
    assert finished(script(home, "later")) == "completed 42 8"


def test_a_task_nobody_takes_is_named_on_stderr(home: dict[str, str]) -> None:
    code = """
import asyncio, sys
from infinity_matrix.workflow import Task, Workflow
workflow = Workflow("lonely", tasks=[Task("wait", "agent-nobody")])
try:
    asyncio.run(workflow.execute(timeout=4))
except TimeoutError:
    print("timed out")
"""
    output, errors = script(home, "lonely", code=code).communicate(timeout=DEADLINE_S)
    assert output.strip() == "timed out"
    assert "task 'wait' waits: no agent 'agent-nobody' is running" in errors


def test_what_is_open_resumes_after_a_stop(home: dict[str, str]) -> None:
    start = """
import asyncio
from infinity_matrix.workflow import Task, Workflow
workflow = Workflow("resumed", tasks=[Task("double", "agent-resumed")])
asyncio.run(workflow.start(input=21, execution_id="resumed-1"))
print("started")
"""
    wait = """
import asyncio
from infinity_matrix.agents import Agent
from infinity_matrix.workflow import Task, Workflow
agent = Agent("agent-resumed")
@agent.handler
def double(work):
    return work.input * 2
workflow = Workflow("resumed", tasks=[Task("double", "agent-resumed")])
print(asyncio.run(workflow.wait("resumed-1", timeout=30)).outputs["double"])
"""
    assert finished(script(home, "start", code=start)) == "started"
    stop(home)
    assert finished(script(home, "wait", code=wait)) == "42"
