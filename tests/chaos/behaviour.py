"""What the agents of the chaos run do with a work, the same whether they use the SDK or not.

Whether an attempt fails or hangs follows from its name, so that it does so again when it is begun again.
"""

import hashlib
from typing import Any

HANG_S = 60.0


def lot(record: dict[str, Any], purpose: str) -> float:
    """A number from 0 to 1 that follows from the attempt."""
    name = f"{record['execution']}/{record['task']}/{record['attempt']}/{purpose}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") / 2**32


def fails(record: dict[str, Any]) -> bool:
    return lot(record, "fails") < record["config"].get("errors", 0.0)


def result(record: dict[str, Any]) -> str:
    """What it gives: its task's name, `bytes` long where it is to be so long, and then its own."""
    size = int(record["config"].get("bytes", 0))
    words = f"{record['task']} of {record['execution']} "
    return words * (size // len(words)) if size else str(record["task"])


def seconds(record: dict[str, Any]) -> float:
    """How long it takes."""
    config = record["config"]
    if lot(record, "hangs") < config.get("hangs", 0.0):
        return HANG_S
    return float(config.get("seconds", 0.0)) * (0.5 + lot(record, "seconds"))
