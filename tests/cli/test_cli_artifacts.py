"""`imx artifacts`: what is too large for a message, listed and fetched."""

import json
from pathlib import Path

import pytest
from command_line import CommandLine
from test_cli_executions import started


@pytest.fixture(scope="module")
def large(system: CommandLine) -> tuple[str, str]:
    """(an execution whose input and results are large, the text in its input)"""
    text = "large " * 100_000
    system.write("large.json", json.dumps({"text": text}))
    execution = started(system, "pair", "--input", "@large.json")
    assert system("watch", execution).code == 0
    return execution, text


def test_they_are_listed_with_what_they_are_for(system: CommandLine, large: tuple[str, str]) -> None:
    execution, text = large
    listed = system("artifacts", "ls", "--execution", execution, "--json")
    assert listed.code == 0, listed.err
    assert [item["of"] for item in listed.json] == ["result of second", "result of first", "input"]
    assert all(item["bytes"] > len(text) and item["named_at"].endswith("Z") for item in listed.json)
    everything = system("artifacts", "ls", "--json").json
    assert {item["name"] for item in listed.json} == {item["name"] for item in everything}
    table = system("artifacts", "ls", "--execution", execution).out.splitlines()
    assert table[0].split() == ["bytes", "of", "named", "name"]
    assert table[-1].split()[:2] == [f"{listed.json[-1]['bytes']:,}", "input"]
    assert system("artifacts", "ls", "--limit", "1").err == "1 of 3; --limit shows more\n"


def test_one_is_fetched_by_its_name_or_its_first_digits(system: CommandLine, large: tuple[str, str]) -> None:
    execution, text = large
    name = system("artifacts", "ls", "--execution", execution, "--json").json[-1]["name"]
    assert system("artifacts", "get", name).json == {"text": text}
    written = system("artifacts", "get", name[:8].upper(), "-o", "fetched.json")
    assert written.code == 0, written.err
    assert json.loads((system.folder / "fetched.json").read_text()) == {"text": text}
    assert written.out == ""


def test_the_status_shows_the_values_themselves(system: CommandLine, large: tuple[str, str]) -> None:
    execution, text = large
    record = system("status", execution, "--json").json
    assert record["tasks"]["second"]["result"] == {"task": "second", "input": {"text": text}}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("get", "0" * 64), 4, "it is not stored"),
        (("get", "0" * 10), 4, "none begins so"),
        (("get", "xyz"), 2, "no name of an artifact"),
        (("ls", "--execution", "no-such"), 4, "no-such"),
    ],
)
def test_what_is_not_there_is_said(system: CommandLine, arguments: tuple[str, ...], code: int, word: str) -> None:
    answer = system("artifacts", *arguments)
    assert answer.code == code
    assert word in answer.err and "Traceback" not in answer.err


def test_a_file_that_cannot_be_written_is_said(system: CommandLine, large: tuple[str, str]) -> None:
    name = system("artifacts", "ls", "--json").json[0]["name"]
    answer = system("artifacts", "get", name, "-o", str(Path("no") / "such" / "folder"))
    assert answer.code == 2
    assert "cannot be written: No such file or directory" in answer.err
