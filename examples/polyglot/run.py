"""One workflow done by agents in bash, Node and plain nats-py, triggered and tailed from bash and from Node.

Run: python examples/polyglot/run.py
What is in Node is left out, and that is said, when there is no Node here; its packages are installed at the first run.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import infinity_matrix
from infinity_matrix.workflow import Task, Trigger, Workflow

HERE = Path(__file__).parent
EVENT = "text.arrived"
TEXT = "the log is the truth and the server keeps the log"
COUNTED = {"words": 11}
FREQUENT = {"word": "the", "times": 4}
INSTALL_TIMEOUT_S = 120
TIMEOUT_S = 30


def node_is_ready() -> bool:
    """Answers whether the programs in Node can run, and installs their packages if they are not there yet."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        print(
            f"skipped: the agent, the trigger and the tail in Node, because there is no {' and no '.join(missing)} here"
        )
        return False
    if not (HERE / "node_modules").is_dir():
        command = ["npm", "ci", "--no-audit", "--no-fund"]
        try:
            subprocess.run(command, cwd=HERE, check=True, timeout=INSTALL_TIMEOUT_S, stdout=subprocess.DEVNULL)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"skipped: what is in Node, because its packages could not be installed: {error}")
            return False
    return True


def polyglot(with_node: bool) -> Workflow:
    """Two tasks read a text at the same time, a third one joins what they found."""
    tasks = [Task(id="count", agent="agent-bash")]
    if with_node:
        tasks.append(Task(id="frequent", agent="agent-node"))
    tasks.append(Task(id="report", agent="agent-plain", depends_on=[task.id for task in tasks]))
    workflow = Workflow(name="polyglot", version="1", triggers=[Trigger(EVENT)])
    workflow.add_tasks(tasks)
    return workflow


class Programs:
    """The programs of this example: each one is a process that knows the URL and nothing else."""

    def __init__(self, url: str) -> None:
        self._environment = {**os.environ, "IM_URL": url}
        self._running: list[Process] = []

    async def start(self, *command: str | Path, stdout: int | None = None, stderr: int | None = None) -> Process:
        process = await asyncio.create_subprocess_exec(*command, env=self._environment, stdout=stdout, stderr=stderr)
        self._running.append(process)
        return process

    async def tail(self, *command: str | Path) -> Process:
        """Starts a tail, and returns once it hears everything that is published from now on."""
        process = await self.start(*command, stdout=PIPE, stderr=PIPE)
        assert process.stderr is not None
        line = await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)
        assert line == b"listening\n", line
        return process

    async def trigger(self, *command: str | Path) -> dict[str, Any]:
        """Publishes an event; answers the PubAck."""
        process = await self.start(*command, EVENT, json.dumps({"text": TEXT}), f"from-{command[0]}", stdout=PIPE)
        output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        assert process.returncode == 0, (command, process.returncode)
        ack: dict[str, Any] = json.loads(output)
        return ack

    async def stop(self) -> None:
        for process in self._running:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def completed(tail: Process) -> dict[str, set[str]]:
    """Answers the tasks that completed, by execution (`_` is the execution itself), once the tail ended by itself."""
    output, errors = await asyncio.wait_for(tail.communicate(), TIMEOUT_S)
    assert tail.returncode == 0, errors
    tasks: dict[str, set[str]] = {}
    for line in output.splitlines():
        _, _, _, execution, task, state, *_ = json.loads(line)["subject"].split(".")
        if state == "completed":
            tasks.setdefault(execution, set()).add(task)
    return tasks


async def run(programs: Programs, workflow: Workflow, with_node: bool) -> None:
    """Triggers the workflow once from each language, starts every program, and checks what came of it."""
    count = ("--count", "2" if with_node else "1")
    finished = ("--finished", count[1])
    upstream: dict[str, Any] = {"count": COUNTED}
    tails = [await programs.tail("bash", HERE / "tail.sh", *finished)]
    if with_node:
        upstream["frequent"] = FREQUENT
        tails.append(await programs.tail("node", HERE / "tail.mjs", *finished))
        await programs.trigger("node", HERE / "trigger.mjs")
    await programs.trigger("bash", HERE / "trigger.sh")
    again = await programs.trigger("bash", HERE / "trigger.sh")
    assert again["duplicate"], again  # the same event once more starts nothing

    # The work waits for its agents: none of them was there when it was published.
    agents = [
        await programs.start("bash", HERE / "agent.sh", "agent-bash", *count),
        await programs.start(sys.executable, HERE / "agent_plain.py", "agent-plain", *count),
    ]
    if with_node:
        agents.append(await programs.start("node", HERE / "agent.mjs", "agent-node", *count))

    for tail in tails:
        seen = await completed(tail)
        assert len(seen) == int(count[1]), seen
        assert all(tasks == {*upstream, "report", "_"} for tasks in seen.values()), seen
    for execution in seen:
        result = await workflow.wait(execution, timeout=TIMEOUT_S)
        assert result.status == "completed", result
        assert result.outputs["report"] == {"longest": "server", "upstream": upstream}, result.outputs
        print(f"{execution}: {json.dumps(result.outputs['report'])}")
    for agent in agents:
        assert await asyncio.wait_for(agent.wait(), TIMEOUT_S) == 0


async def main() -> None:
    with_node = node_is_ready()
    workflow = polyglot(with_node)
    async with infinity_matrix.local(agents=[]) as im:
        await workflow.deploy()
        programs = Programs(im.url)
        try:
            await run(programs, workflow, with_node)
        finally:
            await programs.stop()


if __name__ == "__main__":
    asyncio.run(main())
