"""Dead letters, and how the coordinators stand, from the command line."""

import pytest
from command_line import CommandLine, until


def a_dead_letter(system: CommandLine, name: str) -> str:
    """The id of the letter of work that nobody took."""
    document = f'name: {name}\nversion: "1"\ntasks: [{{id: a, agent: {name}, queue_timeout: 0.3}}]\n'
    assert system("deploy", system.write(f"{name}.yaml", document)).code == 0
    execution = system("start", name).out.strip()
    found = until(lambda: system("dead", "ls", "--agent", name, "--json").json, "the dead letter")
    assert [letter["execution_id"] for letter in found] == [execution]
    return str(found[0]["id"])


def test_a_letter_is_listed_shown_and_discarded(system: CommandLine) -> None:
    id = a_dead_letter(system, "untaken")
    listed = system("dead")
    assert id in listed.out
    assert "no agent took it" in listed.out
    assert '"queue_timeout"' not in listed.out
    shown = system("dead", "show", id)
    assert '"work": {' in shown.out
    assert [letter["id"] for letter in system("dead", "show", id.split("/")[0], "--json").json] == [id]
    assert system("dead", "discard", id).out == f"discarded {id}\n"
    gone = system("dead", "show", id)
    assert gone.code == 4
    assert "imx dead ls" in gone.err
    assert system("dead", "ls", "--agent", "untaken").err == "there are no dead letters\n"


def test_all_letters_of_an_agent_are_replayed(system: CommandLine) -> None:
    id = a_dead_letter(system, "replayed")
    replayed = system("dead", "replay", "--agent", "replayed", "--reason", "it runs now")
    assert (replayed.code, replayed.out) == (0, f"replayed {id}\n")
    again = until(lambda: system("dead", "ls", "--agent", "replayed", "--json").json, "the next attempt's letter")
    assert [letter["attempt"] for letter in again] == [2]
    # Nobody runs it still.
    assert system("dead", "discard", "--agent", "replayed").code == 0


@pytest.mark.parametrize("arguments", [(), ("id", "--all"), ("--all", "--agent", "a")])
def test_which_letters_are_meant_must_be_said_once(system: CommandLine, arguments: tuple[str, ...]) -> None:
    answer = system("dead", "discard", *arguments)
    assert answer.code == 2
    assert "which dead letters" in answer.err


def test_the_coordinators_are_listed(system: CommandLine) -> None:
    [found] = system("coordinators", "--json").json
    assert [shard["number"] for shard in found["shards"]] == [0, 1, 2, 3]
    assert all(shard["is_live"] for shard in found["shards"])
    shown = system("coordinators")
    assert "0, 1, 2, 3" in shown.out
    assert "quarantined" in shown.out
