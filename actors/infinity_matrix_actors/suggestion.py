"""The nearest known word to one that is not known: most unknown words are slips of the keyboard."""

import difflib
from collections.abc import Iterable

#: Lower than difflib's own 0.6: `retry` should find `retry_config`.
SIMILARITY_MIN = 0.5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Answers a hint such as `did you mean 'load'?`, or the empty string when nothing known is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=SIMILARITY_MIN)
    return f"did you mean {near[0]!r}?" if near else ""
