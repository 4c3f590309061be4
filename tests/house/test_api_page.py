"""The page of the API tells every verb there is, and no other."""

import re
from pathlib import Path
from typing import Any

from infinity_matrix_coordinator.service import ApiService

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"


def test_every_verb_is_told() -> None:
    nothing: Any = None
    verbs = set(ApiService(nothing, nothing, nothing, "")._verbs)
    assert len(verbs) > 20
    cells = re.findall(r"^\| (`[^|]+`) \|", PAGE.read_text(), re.MULTILINE)
    assert {verb for cell in cells for verb in re.findall(r"`([\w.-]+)`", cell)} == verbs
