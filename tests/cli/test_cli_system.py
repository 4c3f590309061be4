"""Commands on the system itself: dev, env, coordinator; and what is said when nothing is there."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from command_line import CommandLine, end, first_line, free_port, until
from infinity_matrix_bus.server import EmbeddedServer


def started_at(imx: CommandLine, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, object]]:
    process = imx.start("dev", "--sync", "lazy", "--json", *arguments)
    return process, json.loads(first_line(process))


@pytest.mark.parametrize("arguments", [("ls",), ("start", "x"), ("agents",), ("tail",), ("coordinator",), ("env",)])
def test_without_a_system_the_exit_code_is_3(imx: CommandLine, arguments: tuple[str, ...]) -> None:
    answer = imx(*arguments)
    assert answer.code == 3
    assert answer.out == ""
    assert answer.err.startswith("error: no NATS server answers at the local runtime")
    assert "Traceback" not in answer.err


def test_an_unreachable_server_is_exit_code_3_wherever_it_is_named(imx: CommandLine) -> None:
    url = f"nats://secret@127.0.0.1:{free_port()}"
    for answer in (imx("ls", "--url", url), imx("--url", url, "ls"), imx("ls", IM_URL=url)):
        assert answer.code == 3
        assert "secret" not in answer.err and url.rpartition("@")[2] in answer.err


def test_an_unknown_context_is_a_usage_error(imx: CommandLine) -> None:
    answer = imx("ls", "--context", "nowhere")
    assert answer.code == 2
    assert answer.err.startswith("error: nats context 'nowhere': there is no ")


async def test_a_server_without_an_installation_is_exit_code_3(imx: CommandLine, server: EmbeddedServer) -> None:
    answer = imx("ls", "--url", server.connect_url)
    assert answer.code == 3
    assert "no Infinity Matrix installation with prefix 'im'" in answer.err
    assert "imx coordinator" in answer.err


async def test_no_coordinator_is_exit_code_3(imx: CommandLine, server: EmbeddedServer) -> None:
    coordinator = imx.start("coordinator", "--url", server.connect_url, "--json")
    file = imx.write("one.yaml", 'name: one\nversion: "1"\ntasks: [{id: a, agent: b}]\n')
    until(lambda: imx("deploy", file, "--url", server.connect_url).code == 0, "it is installed")
    assert end(coordinator) == 0
    answer = imx("start", "one", "--url", server.connect_url)
    assert answer.code == 3
    assert answer.err.startswith("error: no coordinator answered within 5 s")


async def test_a_coordinator_waits_for_its_server_and_stops_in_order(imx: CommandLine, tmp_path: Path) -> None:
    port = free_port()
    coordinator = imx.start("coordinator", "--url", f"nats://127.0.0.1:{port}", "--prefix", "own", "--shards", "2")
    errors = imx.folder / "coordinator---url.err"
    until(lambda: "server_not_reached" in errors.read_text(), "it says that it waits")
    async with EmbeddedServer(tmp_path / "store", port=port, token="", sync="lazy") as server:
        until(lambda: "coordinator_ready" in errors.read_text(), "it runs")
        assert imx("agents", "--url", server.url, "--prefix", "own", "--json").json == []
        assert imx("agents", "--url", server.url).code == 3
        assert end(coordinator) == 0
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert lines[-1]["event"] == "coordinator_stopped"
    assert sum(line["event"] == "shard_taken" for line in lines) == 2


def test_a_coordinator_that_still_waits_stops_at_once(imx: CommandLine) -> None:
    coordinator = imx.start("coordinator", "--url", f"nats://127.0.0.1:{free_port()}")
    errors = imx.folder / "coordinator---url.err"
    until(lambda: "server_not_reached" in errors.read_text(), "it says that it waits")
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(5) == 0
    end(coordinator)


def test_dev_keeps_its_store_and_env_leads_to_it(imx: CommandLine) -> None:
    file = imx.write("one.yaml", 'name: one\nversion: "1"\ntasks: [{id: a, agent: b}]\n')
    dev, said = started_at(imx, "--store", "kept", "--port", str(free_port()))
    try:
        assert said["store"] == str(imx.folder / "kept")
        assert imx("deploy", file).code == 0
        env = imx("env")
        assert env.out == f"export IM_URL='{said['IM_URL']}'\n"
        context = imx.folder / "config/nats/context/infinity-matrix.json"
        assert str(context) in env.err
        assert context.stat().st_mode & 0o777 == 0o600
        assert json.loads(context.read_text())["token"] == said["token"]
        elsewhere = CommandLine(imx.folder, {"IM_HOME": str(imx.folder / "elsewhere")})
        assert elsewhere("ls").code == 3
        assert elsewhere("ls", "--context", "infinity-matrix").code == 0
        assert elsewhere("ls", IM_URL=str(said["IM_URL"])).code == 0
        assert imx("ls", "--url", str(said["url"])).code == 3
        again = imx("dev", "--store", "kept", "--port", str(free_port()))
        assert again.code == 2 and "is in use by a server of process" in again.err
    finally:
        assert end(dev) == 0
    assert imx("ls").code == 3

    dev, said = started_at(imx, "--store", "kept", "--no-auth", "--port", str(free_port()))
    try:
        assert said["token"] == "" and said["IM_URL"] == said["url"]
        assert imx("start", "one", "--url", str(said["url"])).code == 0
        assert imx("dev", "--stop", "--json").json == {"stopped": True}
        assert dev.wait(10) == 0
    finally:
        assert end(dev) == 0


def test_dev_takes_a_free_port_unless_one_was_asked_for(imx: CommandLine) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = str(holder.getsockname()[1])
        answer = imx("dev", "--port", taken, "--store", "store")
        assert answer.code == 2
        assert answer.err.startswith(f"error: port {taken} is taken\nhint: ")
    with socket.socket() as holder:
        try:
            holder.bind(("127.0.0.1", 4222))
        except OSError:
            pytest.skip("something listens on 4222 already")
        holder.listen()
        dev = imx.start("dev", "--store", "store", "--sync", "lazy")
        try:
            line = first_line(dev)
            assert "(port 4222 is taken, so it is another one)" in line
        finally:
            assert end(dev) == 0


def test_dev_brings_its_server_back(imx: CommandLine) -> None:
    dev, said = started_at(imx, "--store", "store", "--port", str(free_port()))
    try:
        ports = until(lambda: list((imx.folder / "store/run").glob("*.ports")), "the server listens")
        os.kill(int(ports[0].stem.rpartition("_")[2]), signal.SIGKILL)
        errors = imx.folder / "dev---sync.err"
        until(lambda: "server_started_again" in errors.read_text(), "it is back")
        until(lambda: imx("ls", "--url", str(said["IM_URL"])).code == 0, "it answers")
    finally:
        assert end(dev) == 0


def test_run_starts_the_local_runtime_serves_the_agents_and_stop_ends_it(imx: CommandLine) -> None:
    imx.write(
        "flow.py",
        "from infinity_matrix.agents import Agent\n"
        "from infinity_matrix.workflow import Task, Workflow\n"
        "own = Agent('own')\n"
        "@own.handler\n"
        "def do(work):\n"
        "    return work.input\n"
        "it = Workflow('it', tasks=[Task('a', 'own')])\n",
    )
    file = imx.write("it.yaml", 'name: it\nversion: "1"\ntasks: [{id: a, agent: own}]\n')
    try:
        answer = imx("run", "flow:it", "--input", '"hello"')
        assert (answer.code, answer.json) == (0, {"a": "hello"}), answer.err
        answer = imx("run", file, "--agents", "flow", "--input", "@it.json", "--json")
        assert answer.code == 2
        answer = imx("run", file, "--agents", "flow", "--json")
        assert answer.code == 0 and answer.json["outputs"] == {"a": None}
        assert imx("env").code == 0
    finally:
        stopped = imx("dev", "--stop", "--json")
    assert stopped.json == {"stopped": True}
    assert imx("dev", "--stop", "--json").json == {"stopped": False}
    assert imx("ls").code == 3


def test_a_task_nobody_takes_is_named_and_ctrl_c_leaves_the_execution_running(imx: CommandLine) -> None:
    file = imx.write("it.yaml", 'name: it\nversion: "1"\ntasks: [{id: a, agent: missing}]\n')
    dev, _ = started_at(imx, "--store", "store", "--port", str(free_port()))
    try:
        run = imx.start("run", file)
        errors = imx.folder / "run-it.yaml.err"
        until(lambda: "no agent 'missing' is running" in errors.read_text(), "it says who is missing")
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
        end(run)
        assert "goes on; 'imx watch " in errors.read_text() and "Traceback" not in errors.read_text()
        assert [item["state"] for item in imx("ls", "--json").json] == ["running"]
    finally:
        assert end(dev) == 0
