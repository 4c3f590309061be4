"""A system of `imx dev` for all tests of a module, and a command line that finds it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine, end, first_line, free_port

AGENTS = """
import asyncio
from infinity_matrix.agents import Agent, Failure
from infinity_matrix.workflow import Task, Workflow

worker = Agent("cli-worker")

@worker.handler
async def do(work):
    work.log.info("doing", task=work.task)
    await work.progress(50, "half")
    await asyncio.sleep(work.config.get("sleep", 0))
    if work.config.get("fails"):
        raise Failure("NoStock", "none left", retryable=False)
    return {"task": work.task, "input": work.input}

pair = Workflow("pair", tasks=[Task("first", "cli-worker"), Task("second", "cli-worker", depends_on=["first"])])
failing = Workflow("failing", tasks=[Task("only", "cli-worker", config={"fails": True})])
"""


@pytest.fixture
def imx(tmp_path: Path) -> CommandLine:
    """A command line with nothing running."""
    return CommandLine(tmp_path)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line beside `imx dev`, an agent of `flows.py`, and its workflow `pair` deployed."""
    command_line = CommandLine(tmp_path_factory.mktemp("cli"))
    command_line.write("flows.py", AGENTS)
    port = str(free_port())
    dev = command_line.start("dev", "--store", "store", "--port", port, "--sync", "lazy", "--json")
    try:
        first_line(dev)
        agent = command_line.start("agent", "serve", "flows:worker", "--json")
        try:
            first_line(agent)
            assert command_line("deploy", "flows:pair").code == 0
            yield command_line
        finally:
            assert end(agent) == 0
    finally:
        assert end(dev) == 0
