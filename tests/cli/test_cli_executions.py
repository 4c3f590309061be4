"""The main paths on a running system: deploy, start, status, watch, ls, logs, cancel, trigger, tail, run."""

import json
import os
import pty
import subprocess
import threading

import pytest
from command_line import IMX, CommandLine, end, until

SLOW = """
name: slow
version: "1"
grace: 2
tasks:
  - {id: long, agent: cli-worker, config: {sleep: 60}}
  - {id: after, agent: cli-worker, depends_on: [long]}
"""


def started(system: CommandLine, name: str, *arguments: str) -> str:
    answer = system("start", name, *arguments)
    assert answer.code == 0, answer.err
    return answer.out.strip()


def test_a_deployed_workflow_is_started_watched_listed_and_its_logs_are_read(system: CommandLine) -> None:
    deployed = system("deploy", "flows:pair", "--json").json
    assert deployed["workflow"] == "pair" and len(deployed["definition"]) == 64
    execution = started(system, "pair", "--input", '{"n": 1}')

    watched = system("watch", execution)
    assert watched.code == 0, watched.err
    words = [line.split()[1:3] for line in watched.out.splitlines()]
    assert words[0] == ["running", "execution"]
    assert words[-1] == ["completed", "execution"]
    assert ["completed", "second"] in words

    lines = system("watch", execution, "--json").lines
    assert {"task_id": None, "status": "completed"}.items() <= lines[-1].items()
    assert lines[-1]["at"].endswith("Z")

    status = system("status", execution)
    assert status.code == 0
    assert "pair" in status.out and "2 of 2 tasks" in status.out
    assert [line.split()[:2] for line in status.out.splitlines()[-2:]] == [
        ["completed", "first"],
        ["completed", "second"],
    ]
    record = system("status", execution, "--json").json
    assert record["state"] == "completed" and record["progress"] == 100
    assert record["tasks"]["second"]["result"] == {"task": "second", "input": {"n": 1}}
    assert record["started_at"].endswith("Z")

    listed = system("ls", "--workflow", "pair", "--state", "completed", "--json").json
    assert execution in [item["execution_id"] for item in listed]
    assert system("ls", "--workflow", "nobody", "--json").json == []
    assert any(line.split()[:3] == ["completed", "pair", execution] for line in system("ls").out.splitlines())

    assert [line.split()[1:] for line in system("logs", execution, "--task", "first").out.splitlines()] == [
        ["info", "first", "doing", "task=first"]
    ]
    assert sorted(line["task_id"] for line in system("logs", execution, "--json").lines) == ["first", "second"]

    rows = [line.split() for line in system("metrics", execution).out.splitlines()[-3:]]
    assert [row[:3] for row in rows[:2]] == [["first", "completed", "1"], ["second", "completed", "1"]]
    assert rows[2][:3] == ["in", "all", "took"]
    metrics = system("metrics", execution, "--json").json
    assert (metrics["completed"], metrics["total_attempts"]) == (2, 2)
    assert metrics["tasks"]["first"]["run_time"] >= 0
    assert system("metrics", "nobody").code == 4


def test_the_newest_executions_are_listed_first_up_to_the_limit(system: CommandLine) -> None:
    ids = [started(system, "pair") for _ in range(3)]
    limited = system("ls", "--limit", "2", "--json").json
    assert [item["execution_id"] for item in limited] == [ids[2], ids[1]]
    assert "--limit shows more" in system("ls", "--limit", "1").err


def test_the_same_id_starts_nothing_twice_and_other_content_is_refused(system: CommandLine) -> None:
    assert started(system, "pair", "--id", "mine", "--input", "1") == "mine"
    assert started(system, "pair", "--id", "mine", "--input", "1") == "mine"
    answer = system("start", "pair", "--id", "mine", "--input", "2")
    assert answer.code == 2
    error, hint = answer.err.splitlines()
    assert error == "error: execution 'mine' exists already with another input"
    assert hint == "hint: choose another --id, or say what to do with --if-exists"


def test_a_cancelled_execution_ends_and_watch_says_that_it_did_not_complete(system: CommandLine) -> None:
    system("deploy", system.write("slow.yaml", SLOW))
    execution = started(system, "slow")
    until(lambda: system("status", execution, "--json").json["tasks"]["long"]["state"] == "running", "it runs")
    answer = system("cancel", execution, "--reason", "enough")
    assert answer.code == 0 and execution in answer.out
    watched = system("watch", execution)
    assert watched.code == 1
    assert watched.out.splitlines()[-1].endswith("cancelled  execution  cancelled: enough")
    assert system("status", execution).code == 0


def test_an_event_starts_what_is_armed_for_it(system: CommandLine) -> None:
    file = system.write(
        "ordered.yaml",
        'name: ordered\nversion: "1"\ntasks: [{id: a, agent: cli-worker}]\n'
        'triggers: [{event: orders.created, filter: "event.total > 100"}]\n',
    )
    assert "starts on orders.created" in system("deploy", file).out
    assert system("trigger", "orders.created", '{"total": 50}').code == 0
    system.write("event.json", '{"total": 150}')
    for _ in range(2):
        answer = system("trigger", "orders.created", "@event.json", "--id", "order-1", "--json")
        assert answer.json == {"event": "orders.created", "subject": "im.trigger.orders.created"}
    found = until(lambda: system("ls", "--workflow", "ordered", "--state", "completed", "--json").json, "it ran")
    assert len(found) == 1


def test_tail_shows_what_goes_by_as_json_lines(system: CommandLine) -> None:
    statuses = system.start("tail")
    everything = system.start("tail", "im.fact.>")
    try:
        for name in ("tail.err", "tail-im.fact.>.err"):
            until(lambda name=name: "tailing" in (system.folder / name).read_text(), "it listens")
        execution = started(system, "pair")
        assert statuses.stdout is not None and everything.stdout is not None
        seen = []
        while not seen or (seen[-1]["task"], seen[-1]["status"]) != (None, "completed"):
            record = json.loads(statuses.stdout.readline())
            if record["execution"] == execution:
                seen.append(record)
        assert seen[0]["subject"] == f"im.status.pair.{execution}._.running"
        facts = [json.loads(everything.stdout.readline()) for _ in range(3)]
        assert facts[0]["subject"].endswith(f"{execution}.started")
    finally:
        end(statuses)
        end(everything)


def test_a_reader_that_has_enough_ends_tail_quietly(system: CommandLine) -> None:
    command = f"{IMX} tail | head -1"
    piped = subprocess.Popen(
        ["bash", "-c", command],
        cwd=system.folder,
        env=system.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = threading.Event()
    said: list[str] = []

    def read() -> None:
        said.extend(piped.communicate(timeout=60))
        ended.set()

    threading.Thread(target=read).start()
    until(lambda: (started(system, "pair"), ended.is_set())[1], "tail ends once its reader is gone")
    assert json.loads(said[0])["workflow"] == "pair"
    assert "Traceback" not in said[1] and "error" not in said[1]


def test_run_prints_the_result_and_tells_failure_by_its_exit_code(system: CommandLine) -> None:
    answer = system("run", "flows:pair", "--input", "7")
    assert answer.code == 0
    assert answer.json == {"second": {"task": "second", "input": 7}}
    assert "completed  execution" in answer.err

    answer = system("run", "flows:failing")
    assert answer.code == 1
    assert answer.out == ""
    assert "NoStock: none left" in answer.err and "Traceback" not in answer.err

    answer = system("run", "flows:failing", "--json")
    assert answer.code == 1
    assert answer.json["status"] == "failed" and answer.json["error"]["type"] == "NoStock"


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "nobody"),
        ("watch", "nobody"),
        ("cancel", "nobody"),
        ("logs", "nobody"),
        ("start", "nobody"),
        ("status", "no.such.*"),
    ],
)
def test_an_unknown_id_or_name_is_exit_code_4(system: CommandLine, arguments: tuple[str, ...]) -> None:
    answer = system(*arguments)
    assert answer.code == 4
    assert answer.err.startswith("error: no ") and "\nhint: " in answer.err
    assert answer.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("start", "pair", "--input", "{"),
        ("start", "pair", "--input", "@nowhere.json"),
        ("trigger", "orders.*", "{}"),
        ("trigger", "orders", "NaN"),
        ("ls", "--state", "done"),
        ("tail", "im .>"),
        ("start", "pair", "--id", "a.b"),
    ],
)
def test_what_cannot_be_meant_is_exit_code_2(system: CommandLine, arguments: tuple[str, ...]) -> None:
    answer = system(*arguments)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ") and "Traceback" not in answer.err


@pytest.mark.parametrize("colours", [True, False])
def test_watch_draws_a_table_on_a_terminal(system: CommandLine, colours: bool) -> None:
    execution = started(system, "pair")
    variables = {} if colours else {"NO_COLOR": "1"}
    master, slave = pty.openpty()
    watching = subprocess.Popen(
        [IMX, "watch", execution],
        cwd=system.folder,
        env={**system.environment(), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **variables},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    screen = b""
    try:
        while chunk := os.read(master, 65536):
            screen += chunk
    except OSError:
        # How a terminal tells on Linux that nobody has it open any more.
        pass
    finally:
        os.close(master)
    assert watching.wait(20) == 0
    text = screen.decode()
    assert "2 of 2 tasks" in text and "✓ completed" in text and "━" in text
    assert ("\x1b[32m" in text) == colours
