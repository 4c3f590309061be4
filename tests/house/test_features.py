"""The table of features: each has an example that is there, and no example is left out of it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ROW = re.compile(
    r"^\| ([^|]+) \| \[`([\w/.]+)`\]\(\.\./\.\./examples/([\w/.]+)\) \| \[[^\]]+\]\(([^)]+)\) \|$", re.MULTILINE
)
#: Words of what a workflow guide promises; each is in some row.
PROMISED = (
    *("sequential", "parallel", "conditional", "pipeline", "fan-out and fan-in", "saga", "map", "loop", "wait"),
    *("start", "scheduled", "tried again", "error callbacks", "status", "real-time updates", "metrics", "logs"),
    *(
        "event",
        "signal",
        "approve",
        "cancel",
        "pause",
        "forked",
        "versions",
        "priorities",
        "key",
        "templates",
        "schemas",
    ),
)


def rows() -> list[tuple[str, str, str, str]]:
    """What each row says: the feature, the example's name and link, the guide."""
    return ROW.findall((ROOT / "docs" / "guides" / "features.md").read_text())


def test_every_row_of_the_table_has_an_example_that_is_there() -> None:
    assert len(rows()) > 30
    for feature, name, link, _ in rows():
        assert name == link, feature
        assert (EXAMPLES / link).is_file(), f"{feature}: {link} is not there"


def test_every_line_of_a_table_is_a_row() -> None:
    text = (ROOT / "docs" / "guides" / "features.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and "| example |" not in line]
    assert len(lines) == len(rows())


def test_no_example_is_left_out() -> None:
    shown = {link for _, _, link, _ in rows()}
    there = {path.name for path in EXAMPLES.glob("*.py")} - {"run_all.py"}
    assert there - shown == set()


def test_what_is_promised_has_a_row() -> None:
    told = " ".join(feature.lower() for feature, *_ in rows())
    assert [word for word in PROMISED if word not in told] == []
