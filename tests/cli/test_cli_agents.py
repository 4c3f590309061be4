"""Agents from the command line: listed, served from a module, and programs as agents."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, end, first_line, until
from infinity_matrix_agents.cancels import own_time_s
from infinity_matrix_agents.command import failure_of, read_result

#: An agent in bash, without jq: its work is on stdin, and the commonest facts of it are variables.
PROGRAM = r"""#!/bin/bash
read -r work
echo "task $IM_TASK, attempt $IM_ATTEMPT" >&2
case $IM_TASK in
  flaky) if [ "$IM_ATTEMPT" -lt 2 ]; then echo "not yet" >&2; exit 7; fi ;;
  text) echo "just text"; exit ;;
  typed) echo '{"error": {"type": "NoStock", "message": "none left", "retryable": false}}'; exit 3 ;;
  leaves) sleep 600 & ;;
  polite) trap 'echo "told to stop" >&2; exit 1' TERM; echo $$ > polite.pid; sleep 600 & wait ;;
  stubborn) trap '' TERM; echo $$ > stubborn.pid; while true; do sleep 600; done ;;
esac
echo "a line before the result"
printf '{"bytes": %d, "key": "%s"}\n' "${#work}" "$IM_IDEMPOTENCY_KEY"
"""
WORDS = """
name: words
version: "1"
tasks:
  - {id: count, agent: bash}
  - {id: flaky, agent: bash, depends_on: [count], retry_config: {max_attempts: 3, initial_delay: 0.1}}
  - {id: text, agent: bash, depends_on: [count]}
  - {id: leaves, agent: bash, depends_on: [count]}
"""


def one_task(name: str, grace_s: float = 8) -> str:
    return f'name: {name}\nversion: "1"\ngrace: {grace_s}\ntasks: [{{id: {name}, agent: bash}}]\n'


@pytest.fixture
def bash(system: CommandLine) -> CommandLine:
    """The system, with the program served for the test."""
    path = system.folder / "program.sh"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return system


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_agents_lists_queues_and_the_instances_that_answer(system: CommandLine) -> None:
    file = system.write("idle.yaml", 'name: idle\nversion: "1"\ntasks: [{id: a, agent: nobody-runs-it}]\n')
    assert system("deploy", file).code == 0
    execution = system("start", "idle").out.strip()
    found = {record["agent"]: record for record in system("agents", "--json").json}
    worker, missing = found["cli-worker"], found["nobody-runs-it"]
    assert len(worker["instances"]) == 1 and worker["instances"][0]["concurrency"] == "16"
    assert worker["asking"] >= 1
    counts = {"queued": 1, "in_work": 0, "asking": 0}
    assert missing == {"agent": "nobody-runs-it", **counts, "paused": False, "instances": []}
    rows = [line.split() for line in system("agents").out.splitlines()]
    assert ["nobody-runs-it", "1", "0", "0", "none"] in rows
    system("cancel", execution)


def test_an_agent_is_paused_and_resumed(system: CommandLine) -> None:
    file = system.write("held.yaml", 'name: held\nversion: "1"\ntasks: [{id: a, agent: is-held}]\n')
    assert system("deploy", file).code == 0

    def listed() -> dict[str, Any]:
        return next(record for record in system("agents", "--json").json if record["agent"] == "is-held")

    answer = system("agents", "pause", "is-held", "--for", "1h", "--json").json
    assert (answer["agent"], answer["paused"]) == ("is-held", True)
    assert (listed()["paused"], listed()["paused_until"]) == (True, answer["paused_until"])
    assert "paused until 20" in system("agents").out
    assert system("agents", "pause", "is-held").err == "is-held is given no more work until it is resumed\n"
    assert (listed()["paused"], listed()["paused_until"]) == (True, None)
    assert system("agents", "resume", "is-held").code == 0
    assert (listed()["paused"], "paused_until" in listed()) == (False, False)


def test_who_pauses_an_agent_that_is_not_there_is_told(system: CommandLine) -> None:
    answer = system("agents", "pause", "nobody-at-all")
    assert (answer.code, answer.out) == (4, "")
    assert "there is no agent 'nobody-at-all'" in answer.err
    answer = system("agents", "pause", "cli-worker", "--for", "soon")
    assert (answer.code, "--for" in answer.err) == (2, True)


def test_a_bash_program_is_an_agent(bash: CommandLine) -> None:
    limits = ("--concurrency", "4", "--rate", "100/s", "--serves", "1", "--serves", "2")
    agent = bash.start("agent", "exec", "bash", *limits, "--json", "--", "./program.sh")
    try:
        assert '"serving": ["bash"]' in first_line(agent)
        instance = next(record for record in bash("agents", "--json").json if record["agent"] == "bash")["instances"][0]
        assert (instance["concurrency"], instance["rate"], instance["versions"]) == ("4", "100/s", "1, 2")
        assert "(rate 100/s; versions 1, 2)" in bash("agents").out
        answer = bash("run", bash.write("words.yaml", WORDS), "--json")
        assert answer.code == 0, answer
        outputs = answer.json["outputs"]
        execution = answer.json["execution_id"]
        assert outputs["text"] == "just text"
        assert outputs["flaky"]["key"] == f"{execution}/flaky"
        assert outputs["count"]["bytes"] > 100
        status = bash("status", execution, "--json").json
        assert status["tasks"]["flaky"]["attempt"] == 2
        lines = [line["event"] for line in bash("logs", execution, "--task", "flaky", "--json").lines]
        assert [line for line in lines if line != "failed"] == [
            "task flaky, attempt 1",
            "not yet",
            "task flaky, attempt 2",
        ]

        answer = bash("run", bash.write("typed.yaml", one_task("typed")), "--json")
        assert answer.code == 1
        assert answer.json["error"] == {"type": "NoStock", "message": "none left", "retryable": False, "task": "typed"}
    finally:
        assert end(agent) == 0


def test_a_cancelled_program_gets_sigterm_and_one_that_does_not_listen_sigkill(bash: CommandLine) -> None:
    agent = bash.start("agent", "exec", "bash", "--concurrency", "4", "--json", "--", "./program.sh")
    try:
        first_line(agent)
        ids, pids = {}, {}
        for name in ("polite", "stubborn"):
            bash("deploy", bash.write(f"{name}.yaml", one_task(name, grace_s=8)))
            ids[name] = bash("start", name).out.strip()
            pids[name] = int(until(lambda name=name: _text(bash.folder / f"{name}.pid"), "it runs"))
        began = time.monotonic()
        bash("cancel", ids["stubborn"], "--reason", "enough")
        bash("cancel", ids["polite"], "--reason", "enough")
        until(lambda: not is_alive(pids["polite"]), "it listens")
        assert is_alive(pids["stubborn"])
        until(lambda: not is_alive(pids["stubborn"]), "it is killed")
        assert time.monotonic() - began >= own_time_s(8.0)
        for name, execution in ids.items():
            assert bash("watch", execution).code == 1
            # The outcome is the agent's own, not the coordinator's after the grace: it says why.
            error = bash("status", execution, "--json").json["tasks"][name]["error"]
            assert (error["type"], error["message"]) == ("cancelled", "enough")
    finally:
        assert end(agent) == 0


def test_an_agent_told_to_stop_ends_its_program_too(bash: CommandLine) -> None:
    agent = bash.start("agent", "exec", "bash", "--json", "--", "./program.sh")
    first_line(agent)
    (bash.folder / "polite.pid").unlink(missing_ok=True)
    bash("deploy", bash.write("polite.yaml", one_task("polite")))
    execution = bash("start", "polite").out.strip()
    pid = int(until(lambda: _text(bash.folder / "polite.pid"), "it runs"))
    # It has its 10 s to finish first, and takes no notice.
    assert end(agent) == 0
    until(lambda: not is_alive(pid), "it is gone")
    bash("cancel", execution)


def test_what_cannot_be_served_is_a_usage_error(system: CommandLine) -> None:
    for arguments in (
        ("agent", "exec", "bash", "--", "no-such-program"),
        ("agent", "exec", "im-reserved", "--", "cat"),
        ("agent", "exec", "bash"),
        ("agent", "exec", "bash", "--rate", "fast", "--", "cat"),
        ("agent", "serve", "nowhere"),
        ("agent", "serve", "flows:pair"),
        ("agent", "serve", "json"),
    ):
        answer = system(*arguments)
        assert answer.code == 2, arguments
        assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", None),
        (" \n", None),
        ("7\n", 7),
        ('{"a": 1}', {"a": 1}),
        ('{\n "a": 1\n}\n', {"a": 1}),
        ('reading\ndone\n{"a": 1}\n', {"a": 1}),
        ("reading\n[1]", [1]),
        ("42 rows\n17", "42 rows\n17"),
        ("plain\n", "plain"),
        ("NaN", "NaN"),
        ('"text"', "text"),
        ("{broken", "{broken"),
    ],
)
def test_stdout_is_read_as_a_result(text: str, result: object) -> None:
    assert read_result(text) == result


def test_an_exit_code_is_a_failure_with_the_end_of_stderr() -> None:
    failure = failure_of(7, "", [f"line {n}" for n in range(9)])
    assert (failure.type, failure.retryable) == ("exit_7", True)
    assert failure.message.splitlines() == ["line 4", "line 5", "line 6", "line 7", "line 8"]
    assert failure_of(-9, "", []).type == "signal_9"
    typed = failure_of(1, '{"error": {"type": "Busy", "retry_after": 5}}', ["noise"])
    assert (typed.type, typed.message, typed.retryable, typed.retry_after) == ("Busy", "", True, 5)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
