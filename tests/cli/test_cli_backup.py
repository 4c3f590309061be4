"""`imx backup` of a running system, and `imx restore` on a server with nothing on it."""

from pathlib import Path

from command_line import CommandLine
from infinity_matrix_bus.server import EmbeddedServer


async def test_a_running_system_is_saved_and_comes_back_on_another_server(
    system: CommandLine, server: EmbeddedServer
) -> None:
    assert system("start", "pair", "--id", "saved").code == 0
    assert system("watch", "saved").code == 0
    answer = system("backup", "saved-here")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("saved: im of 2")
    assert "IM_FACTS_0: " in answer.err
    assert system("ls", "--url", server.connect_url).code == 3
    answer = system("restore", "saved-here", "--url", server.connect_url, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["prefix"] == "im"
    assert answer.json["messages"] > 4
    executions = system("ls", "--url", server.connect_url, "--json").json
    assert "saved" in {execution["execution_id"] for execution in executions}
    assert system("verify", "--url", server.connect_url).code == 0


def test_what_cannot_be_saved_or_restored_is_refused_with_a_reason(system: CommandLine) -> None:
    assert system("backup", "once").code == 0
    answer = system("backup", "once")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: the backup once is of no use: it is not empty\n")
    answer = system("restore", "once")
    assert answer.code == 2
    assert "there is an installation 'im' already" in answer.err
    assert "hint: stop its coordinators" in answer.err
    answer = system("restore", "once", "--prefix", "other")
    assert (answer.code, "of the prefix 'im'" in answer.err) == (2, True)
    answer = system("restore", "nowhere")
    assert answer.code == 2
    assert "it is no backup, or one that broke off" in answer.err
    assert not (Path(system.folder) / "nowhere").exists()
