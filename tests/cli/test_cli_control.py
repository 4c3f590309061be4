"""Controlling executions and workflows on the command line: one by one, many at a time, and what is refused."""

import json

import pytest
from command_line import CommandLine, until

WAITS = """
name: {name}
version: "{version}"
grace: 0
tasks:
  - {{id: first, agent: cli-worker}}
  - {{id: wait, wait_for: go, depends_on: [first]}}
  - {{id: last, agent: cli-worker, depends_on: [wait], config: {{size: {size}}}}}
"""


def deployed(system: CommandLine, name: str, version: str = "1", size: int = 1) -> str:
    file = system.write(f"{name}.yaml", WAITS.format(name=name, version=version, size=size))
    answer = system("deploy", file)
    assert answer.code == 0, answer.err
    return name


def started(system: CommandLine, name: str, *arguments: str) -> str:
    answer = system("start", name, *arguments)
    assert answer.code == 0, answer.err
    return answer.out.strip()


def state(system: CommandLine, execution: str) -> str:
    return str(system("status", execution, "--json").json["state"])


def ids(system: CommandLine, *arguments: str) -> set[str]:
    return {each["execution_id"] for each in system("ls", *arguments, "--json").json}


def test_a_signal_is_sent_and_the_task_that_waits_has_its_data(system: CommandLine) -> None:
    execution = started(system, deployed(system, "signalled"))
    assert system("signal", execution, "go", '{"by": "ada"}', "--id", "once").out == f"sent go to {execution}\n"
    assert system("signal", execution, "go", "2", "--id", "once", "--json").json["signal"] == "go"
    assert system("watch", execution).code == 0
    assert system("status", execution, "--json").json["tasks"]["wait"]["result"] == {"by": "ada"}
    assert system("signal", "nobody", "go").code == 4
    assert system("signal", execution, "im-approval").code == 2


def test_all_of_a_workflow_are_cancelled_after_a_look_at_which(system: CommandLine) -> None:
    name = deployed(system, "many")
    other = started(system, deployed(system, "other"))
    executions = {started(system, name) for _ in range(3)}
    dry = system("cancel", "--workflow", name, "--state", "running", "--dry-run")
    assert dry.code == 0 and "cancel would be given to 3 executions" in dry.err
    assert all(execution in dry.out for execution in executions)
    assert ids(system, "--workflow", name, "--state", "running") == executions
    assert ids(system, "--workflow", name, "--older-than", "1h") == set()
    assert ids(system, "--workflow", name, "--newer-than", "1h") == executions

    assert "gave cancel to 0 executions" in system("cancel", "--workflow", name, "--older-than", "1h").err
    asked = system("cancel", "--workflow", name, "--reason", "enough", "--json")
    assert {(each["execution_id"], each["asked"]) for each in asked.lines} == {(each, True) for each in executions}
    until(lambda: ids(system, "--workflow", name, "--state", "cancelled") == executions, "all of them end")
    assert state(system, other) == "running"
    assert system("cancel", "--all").code == 0
    until(lambda: state(system, other) == "cancelled", "the last one ends")


def test_several_ids_are_asked_each_and_the_first_refusal_is_the_exit_code(system: CommandLine) -> None:
    name = deployed(system, "several")
    executions = [started(system, name) for _ in range(2)]
    answer = system("cancel", executions[0], "nobody", executions[1], "--grace", "0s")
    assert answer.code == 4
    assert "error: no execution 'nobody' in the log" in answer.err
    assert [line.split()[1] for line in answer.out.splitlines()] == executions
    until(lambda: [state(system, each) for each in executions] == ["cancelled"] * 2, "both end")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cancel",), "which executions shall cancel be given to?"),
        (("retry", "--dry-run"), "which executions shall retry be given to?"),
        (("pause", "some", "--workflow", "other"), "give either ids or a filter"),
        (("cancel", "some", "--dry-run"), "give either ids or a filter"),
        (("cancel", "--state", "done"), "'done' is none"),
        (("cancel", "some", "--grace", "soon"), "grace"),
        (("resume", "--older-than", "x"), "older_than"),
        (("fork", "some", "--input", "{"), "--input is not JSON"),
        (("ls", "--state", "compensating"), "'compensating' is no state"),
        (("start", "pair", "--if-exists", "rerun"), "if_exists: 'rerun' is none"),
        (("start", "pair", "--priority", "urgent"), "priority: 'urgent' is none"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(system: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    answer = system(*arguments)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ") and message in answer.err and "Traceback" not in answer.err


def test_a_command_that_does_not_fit_the_state_says_which_it_is_in(system: CommandLine) -> None:
    execution = started(system, "pair")
    assert system("watch", execution).code == 0
    for name in ("pause", "resume", "retry", "compensate"):
        answer = system(name, execution)
        assert answer.code == 2, answer
        assert f"error: execution '{execution}' is completed: " in answer.err
    open_one = started(system, deployed(system, "still-open"))
    assert "it has not ended yet" in system("retry", open_one).err
    assert system("cancel", open_one).code == 0


def test_a_paused_workflow_is_not_started_and_says_how_it_would_be(system: CommandLine) -> None:
    name = deployed(system, "held")
    assert system("workflows", "pause", name).out == "held is paused\n"
    answer = system("start", name)
    assert answer.code == 2 and "imx workflows resume held" in answer.err
    assert "deployed, paused" in system("workflows", "ls", name).out
    assert system("workflows", "resume", name, "--json").json == {"workflow": name, "paused": False, "executions": []}
    execution = started(system, name)
    assert system("cancel", execution).code == 0
    assert system("workflows", "pause", "nobody").code == 4


def test_an_undeployed_workflow_is_not_started_by_events_any_more(system: CommandLine) -> None:
    tasks = [{"id": "only", "agent": "nobody-serves-this"}]
    definition = {"name": "armed", "triggers": [{"event": "cli.armed"}], "tasks": tasks}
    assert system("deploy", system.write("armed.json", json.dumps(definition))).code == 0
    assert "deployed, armed" in system("workflows", "ls", "armed").out
    assert system("workflows", "undeploy", "armed").out == "no event starts armed any more\n"
    assert "armed" not in system("workflows", "ls", "armed").out.splitlines()[1].split()[2:]
    assert system("workflows", "undeploy", "armed", "--json").json == {"workflow": "armed", "armed": False}
    assert system("workflows", "undeploy", "nobody").code == 4


def test_versions_are_listed_with_what_runs_on_them_and_compared(system: CommandLine) -> None:
    name = deployed(system, "versioned")
    execution = started(system, name)
    deployed(system, name, "2", size=20)
    rows = [line.split()[:2] for line in system("workflows", "ls", name).out.splitlines()[1:]]
    assert rows == [[name, "2"], [name, "1"]]
    listed = system("workflows", "ls", name, "--json").json
    assert [(each["version"], each["open"], each["is_deployed"]) for each in listed] == [
        ("2", 0, True),
        ("1", 1, False),
    ]
    assert listed[0]["stored_at"].endswith("Z")
    assert any(each["workflow"] == name for each in system("workflows", "--json").json)
    changes = system("workflows", "diff", name, "1", "deployed").out.splitlines()
    assert changes == ["~ tasks.last.config.size  1 -> 20", '~ version  "1" -> "2"']
    assert "they are the same" in system("workflows", "diff", name, "2", "deployed").err
    answer = system("workflows", "diff", name, "1", "7")
    assert answer.code == 4 and "'7' names no one version of 'versioned'" in answer.err
    assert system("cancel", execution).code == 0


def test_an_id_that_is_there_is_run_again_and_found_under_the_first(system: CommandLine) -> None:
    assert started(system, "pair", "--id", "order-7", "--input", "1") == "order-7"
    assert started(system, "pair", "--id", "order-7", "--input", "2", "--if-exists", "return") == "order-7"
    answer = system("start", "pair", "--id", "order-7", "--input", "2")
    assert answer.code == 2 and "--if-exists" in answer.err
    assert started(system, "pair", "--id", "order-7", "--input", "2", "--if-exists", "cancel") == "order-7-r2"
    assert system("watch", "order-7-r2").code == 0
    assert system("status", "order-7").out.splitlines()[0] == "run again: the last run is order-7-r2"
    assert system("status", "order-7-r2").out.splitlines()[0] == "run 2 of order-7"
    assert system("status", "order-7-r2", "--json").json["lineage"]["rerun_of"] == "order-7"
    listed = system("ls", "--json", "--limit", "1").json
    assert listed[0]["cause"] == {"rerun_of": "order-7", "run": 2}


def test_nothing_waits_for_a_decision(system: CommandLine) -> None:
    answer = system("approvals")
    assert answer.code == 0 and "nothing waits for a decision" in answer.err
    assert system("approvals", "ls", "--json").json == []
    execution = started(system, "pair")
    assert system("watch", execution).code == 0
    assert system("approvals", "approve", execution).code == 2
    assert "has no task 'first' for this" in system("approvals", "reject", execution, "first").err
    assert system("approvals", "approve", "nobody", "x").code == 4


APPROVED = """
name: approved
version: "1"
tasks:
  - {id: first, agent: cli-worker}
  - {id: ok, depends_on: [first], approval: {assignees: [ada, grace]}}
  - {id: last, agent: cli-worker, depends_on: [ok]}
"""


def test_an_approval_is_listed_and_decided(system: CommandLine) -> None:
    assert system("deploy", system.write("approved.yaml", APPROVED)).code == 0
    approved, rejected = started(system, "approved"), started(system, "approved")
    found = until(lambda: len(found := system("approvals", "--json").json) == 2 and found, "both wait")
    assert {(each["execution_id"], each["task_id"]) for each in found} == {(approved, "ok"), (rejected, "ok")}
    assert found[0]["asked_at"].endswith("Z")
    assert found[0]["upstream"] == {"first": {"task": "first", "input": None}}
    row = system("approvals", "ls", "--workflow", "approved").out.splitlines()[1]
    assert row.startswith("approved") and "ada, grace" in row

    answer = system("approvals", "approve", approved, "--by", "bob")
    assert answer.code == 2 and "bob may not decide 'ok'; it is up to: ada, grace" in answer.err
    answer = system("approvals", "approve", approved, "ok", "--by", "ada", "--comment", "fine", "--data", "[1]")
    assert answer.out == "approved by ada\n"
    assert system("watch", approved).code == 0
    decision = {"decision": "approved", "by": "ada", "comment": "fine", "data": [1]}
    assert system("status", approved, "--json").json["tasks"]["ok"]["result"] == decision
    assert system("approvals", "reject", rejected, "--by", "grace", "--json").json["decision"] == "reject"
    assert system("watch", rejected).code == 1


def test_an_execution_is_held_and_let_go_on(system: CommandLine) -> None:
    execution = started(system, deployed(system, "holdable"))
    answer = system("pause", execution, "--reason", "lunch")
    assert answer.out == f"asked {execution} to hold; 'imx resume {execution}' lets it go on\n"
    until(lambda: state(system, execution) == "paused", "it is held")
    assert ids(system, "--workflow", "holdable", "--state", "paused") == {execution}
    assert system("signal", execution, "go").code == 0
    assert "gave resume to 1 execution" in system("resume", "--workflow", "holdable").err
    assert system("watch", execution).code == 0


def test_a_failed_execution_is_retried_and_forked_from_where_it_was(system: CommandLine) -> None:
    system("deploy", "flows:failing")
    execution = started(system, "failing", "--input", '{"n": 1}')
    assert system("watch", execution).code == 1
    assert system("retry", execution, "--reason", "again").out.startswith(f"reopened {execution}")
    assert system("watch", execution).code == 1
    assert state(system, execution) == "failed"
    assert system("status", execution).out.splitlines()[0].startswith("retry at ")

    arguments = ("--set", "config.only.fails=false", "--set", "input.n=2", "--set", "input.who=ada")
    forked = system("fork", execution, "--from", "only", *arguments)
    assert forked.out == f"{execution}-f1\n"
    assert system("watch", f"{execution}-f1").code == 0
    record = system("status", f"{execution}-f1", "--json").json
    assert record["tasks"]["only"]["result"] == {"task": "only", "input": {"n": 2, "who": "ada"}}
    assert (record["lineage"]["fork_of"], record["lineage"]["from_task"]) == (execution, "only")
    assert f"forks: {execution}-f1" in system("status", execution).out
    assert f"forked from {execution}, from only on" in system("status", f"{execution}-f1").out


def test_a_result_is_edited_where_a_fork_begins_after_it(system: CommandLine) -> None:
    execution = started(system, "pair", "--input", "1")
    assert system("watch", execution).code == 0
    fork = ("fork", execution, "--from", "second")
    forked = system(*fork, "--set", "results.first.task=edited", "--input", "2", "--id", "edited", "--json").json
    assert forked == {"execution_id": "edited", "fork_of": execution, "from_task": "second"}
    assert system("watch", "edited").code == 0
    tasks = system("status", "edited", "--json").json["tasks"]
    assert tasks["first"]["result"] == {"task": "edited", "input": 1}
    assert tasks["second"]["result"] == {"task": "second", "input": 2}
    for change in ("first=1", "results=1", "config.second=1", "input=1", "results..x=1", "results.first"):
        answer = system(*fork, "--set", change)
        assert answer.code == 2 and "cannot be read" in answer.err, change
    answer = system(*fork, "--set", "results.first.task.deeper=1")
    assert answer.code == 2 and "what it is part of is no object" in answer.err
    assert system("fork", execution, "--from", "third").code == 4


def test_a_purge_says_what_it_would_take_and_wants_to_be_sure(system: CommandLine) -> None:
    execution = system("start", "pair", "--id", "purged-soon").out.strip()
    assert system("watch", execution).code == 0
    until(lambda: system("ls", "--workflow", "pair", "--state", "completed", "--json").json, "its end")
    asked = system("purge", "--all")
    assert asked.code == 2
    assert "nobody to ask" in asked.err
    assert "--yes" in asked.err
    # It ended just now, so it is kept, and whoever asks for it by name is told so.
    listed = system("purge", "--workflow", "pair", "--dry-run", "--json").lines
    assert {one["execution_id"]: one["purged"] for one in listed}[execution] is False
    assert "ended less than 60 s ago" in system("purge", "--state", "completed", "--dry-run").out
    named = system("purge", execution, "--yes")
    assert (named.code, named.err.count("ended less than 60 s ago")) == (2, 1)
    done = system("purge", "--older-than", "1h", "--yes")
    assert (done.code, done.err) == (0, "purged 0 executions\n")
    assert system("purge", "no-such-execution", "--yes").code == 4
    assert system("purge").code == system("purge", execution, "--all").code == 2
    assert system("purge", "--state", "running", "--yes").code == 2
    assert system("status", execution).code == 0
