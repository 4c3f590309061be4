"""Commands on schedules, against a system of `imx dev`."""

import datetime
import json

from command_line import CommandLine, until


def test_a_schedule_is_made_listed_shown_and_deleted(system: CommandLine) -> None:
    options = ("--timezone", "Europe/Berlin", "--overlap", "buffer_one", "--jitter", "90", "--catch-up", "2h")
    made = system("schedule", "create", "nightly", "--workflow", "pair", "--cron", "0 2 * * *", *options)
    assert made.code == 0, made.err
    assert made.out.startswith("nightly starts pair, next ")
    assert made.out.rstrip().endswith((" 02:00:00+01:00", " 02:00:00+02:00"))
    found = system("schedule", "ls", "--json").json
    assert [(view["name"], view["cron"], view["jitter"], view["catch_up"]) for view in found] == [
        ("nightly", "0 2 * * *", 90.0, 7200.0)
    ]
    assert system("schedule", "ls", "--workflow", "failing", "--json").json == []
    listed = system("schedule", "ls").out
    assert "nightly" in listed and "0 2 * * * Europe/Berlin" in listed and "next 20" in listed
    shown = system("schedule", "show", "nightly", "--next", "3")
    assert shown.out.count("next ") == 3
    assert "overlap    buffer_one" in shown.out
    assert len(system("schedule", "show", "nightly", "--next", "7", "--json").json["upcoming"]) == 7
    assert system("schedule", "delete", "nightly").out == "deleted nightly\n"
    assert "there is no schedule" in system("schedule", "ls").err


def test_a_schedule_is_paused_triggered_resumed_and_backfilled(system: CommandLine) -> None:
    arguments = ("--workflow", "pair", "--cron", "@daily", "--input", '{"n": 1}', "--paused", "--limit", "9")
    assert system("schedule", "create", "by-hand", *arguments).code == 0
    assert "paused" in system("schedule", "ls").out
    execution = system("schedule", "trigger", "by-hand", "--id", "now").out.strip()
    until(lambda: system("status", execution).code == 0, "it is started")
    assert system("watch", execution).code == 0
    assert system("schedule", "resume", "by-hand", "--json").json == {"schedule": "by-hand", "state": "resumed"}
    assert system("schedule", "pause", "by-hand", "--reason", "holidays").out == "paused by-hand\n"
    assert "paused: holidays" in system("schedule", "show", "by-hand").out
    filled = system(
        "schedule",
        "backfill",
        "by-hand",
        "--from",
        "2026-01-01",
        "--to",
        "2026-01-03",
        "--overlap",
        "allow_all",
        "--json",
    )
    executions = filled.json["execution_ids"]
    assert len(executions) == 3
    for one in executions:
        until(lambda one=one: system("status", one).code == 0, "it is started")  # type: ignore[misc]
        assert system("watch", one).code == 0
    assert system("schedule", "delete", "by-hand").code == 0


def test_a_time_that_comes_starts_it_once(system: CommandLine) -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3)
    assert system("schedule", "create", "once", "--workflow", "pair", "--at", at.isoformat()).code == 0
    until(lambda: system("schedule", "show", "once", "--json").json["started"] == 1, "it is started")
    assert "over" in system("schedule", "ls").out
    assert system("schedule", "delete", "once").code == 0


def test_what_is_wrong_is_said_with_its_exit_code(system: CommandLine) -> None:
    create = ("schedule", "create", "x", "--workflow")
    for arguments, code, message in (
        ((*create, "pair", "--cron", "61 * * * *"), 2, "error: schedule 'x': '61 * * * *' is no cron expression"),
        ((*create, "pair", "--cron", "0 0 31 2 *"), 2, "error: schedule 'x': '0 0 31 2 *' never comes due"),
        ((*create, "pair"), 2, "error: schedule 'x': it needs one of cron and run_at"),
        ((*create, "pair", "--cron", "@daily", "--timezone", "Mars"), 2, "error: schedule 'x': there is no time zone"),
        ((*create, "pair", "--cron", "@daily", "--overlap", "no"), 2, "error: schedule 'x': 'no' is no overlap policy"),
        ((*create, "nope", "--cron", "@daily"), 4, "error: no workflow 'nope' is deployed"),
        (("schedule", "show", "nope"), 4, "error: there is no schedule 'nope'"),
        (("schedule", "trigger", "nope", "--overlap", "no"), 2, "error: 'no' is no overlap policy"),
    ):
        answer = system(*arguments)
        assert (answer.code, answer.out) == (code, "")
        assert answer.err.startswith(message), answer.err
        assert "Traceback" not in answer.err
    answer = system("schedule", "show", "nope", "--json")
    assert json.loads(answer.err)["error"]["type"] == "UnknownSchedule"
