"""The grammar of ids and names, and who may make which.

The server itself would store a subject with a wildcard in it as a literal, so a name is refused where it enters.
"""

import re

from infinity_matrix_actors.errors import InvalidName

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: What only the system makes: an instance of a task (map, loop, undo) has a `~<n>` suffix.
INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(~[0-9]{1,9})*")
RESERVED = "im-"


def check_name(kind: str, value: object) -> str:
    """Answers `value` when a user may give it as a name; raises `InvalidName` otherwise."""
    if not isinstance(value, str) or not NAME.fullmatch(value) or value.startswith(RESERVED):
        raise InvalidName(kind, value)
    return value
