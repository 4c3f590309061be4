"""What the recorder writes down is a golden history: some of each of its sources, into a folder of its own."""

from pathlib import Path

import pytest

from .folding import FOLDER, differences, fold, fold_from
from .record import (
    KILLED,
    Stored,
    examples,
    from_examples,
    from_failpoints,
    from_simulation,
    source_of,
    words_of,
    write,
)
from .test_golden import read

SEEDS = range(3)
#: Its results stand in the log, 11 MB of them.
TOO_LARGE = "large_payloads"


def written(folder: Path, source: str, stored: Stored, count_max: int = 100) -> list[str]:
    """The files that came of a source, each of which is decided as it says."""
    names = list(write(source, stored, count_max, folder))
    for name in names:
        record, definition, messages = read(folder / name)
        decided = fold(definition, record["digest"], messages)
        assert differences(record["effects"], decided.effects) == []
        assert differences(record["state"], decided.state) == []
        if record["snapshot"] is not None:
            rest = fold_from(record["snapshot"], definition, record["digest"], messages[record["half"] :])
            assert differences(record["state"], rest.state) == []
    return names


@pytest.mark.timeout(240)
async def test_a_world_in_which_a_coordinator_was_killed_is_written_down(tmp_path: Path) -> None:
    ((source, stored),) = await from_failpoints(KILLED[:1])
    names = written(tmp_path, source, stored)
    assert source == "killed-coordinator"
    assert len(names) > 5
    words = set().union(*(words_of(read(tmp_path / name)[0]) for name in names))
    assert words >= {"command cancel", "task compensates", "effect PurgeWork", "effect AskSlot", "task child"}


def test_an_example_is_written_down_once(tmp_path: Path) -> None:
    ((source, stored),) = from_examples(["versions"])
    # Two executions of different definitions.
    (name,) = written(tmp_path, source, stored, 1)
    assert name.startswith("example-versions-")
    before = (tmp_path / name).read_bytes()
    assert name not in written(tmp_path, source, stored)
    assert (tmp_path / name).read_bytes() == before


def test_simulated_worlds_are_written_down_for_what_is_rare_in_them(tmp_path: Path) -> None:
    worlds = list(from_simulation(SEEDS))
    assert [source for source, _ in worlds] == [f"simulation-{seed}" for seed in SEEDS]
    assert [source for source, stored in worlds if written(tmp_path, source, stored)] != []
    # The same again has nothing that is new.
    assert [list(write(source, stored, 100, tmp_path, only_rare=True)) for source, stored in worlds] == [[], [], []]


def test_every_example_has_a_history() -> None:
    names = [path.name for path in FOLDER.glob("*.json")]
    lacking = [
        name
        for name in examples()
        if name != TOO_LARGE and not any(one.startswith(f"{source_of(name)}-") for one in names)
    ]
    assert lacking == [], f"python -m tests.golden.record {' '.join(lacking)}"
