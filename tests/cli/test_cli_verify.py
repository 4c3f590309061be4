"""`imx verify` on a live system."""

import infinity_matrix
from command_line import CommandLine, until
from infinity_matrix_bus.subjects import shard_of


def test_a_system_that_kept_every_rule_is_told_so(system: CommandLine) -> None:
    execution = system("start", "pair").out.strip()
    assert system("watch", execution).code == 0
    until(lambda: system("verify", "--json", "--execution", execution).json["open"] == 0, "the end being written")
    answer = system("verify")
    assert (answer.code, answer.out) == (0, "every rule was kept\n"), answer.err
    assert "0 of them open" in answer.err
    report = system("verify", "--execution", execution, "--json").json
    assert (report["violations"], report["executions"], report["facts"]) == ([], 1, 4)


def test_an_execution_that_is_not_there_is_unknown(system: CommandLine) -> None:
    answer = system("verify", "--execution", "nobody")
    assert (answer.code, answer.out) == (4, "")
    assert "nobody" in answer.err


async def test_a_rule_that_was_broken_is_shown_in_a_table(system: CommandLine) -> None:
    assert system("start", "pair", "--id", "doctored").code == 0
    assert system("watch", "doctored").code == 0
    async with infinity_matrix.connect(system("env", "--json").json["IM_URL"]) as client:
        subjects, shards = client.operations.subjects, client.operations.installation.shards
        # Whoever has the secret of the installation can write what the rules do not allow.
        subject = subjects.taken(shard_of("doctored", shards), "doctored", "cli-worker", "third", 1)
        await (await client.operations.session()).request(subject, b"{}")
    answer = system("verify")
    assert answer.code == 1, answer.err
    assert answer.out.splitlines()[1].split()[:3] == ["I13", "doctored", "third"]
    assert "I13: a result comes from the agent" in answer.err
    answer = system("verify", "--json")
    (violation,) = answer.json["violations"]
    assert (answer.code, violation["invariant"], violation["task"]) == (1, "I13", "third")
