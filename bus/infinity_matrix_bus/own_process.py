"""Runs the one thing a process of ours is for: a coordinator, a runtime, the agents of a command line.

Never used in a process that is its user's: event loop and collector are the user's there.
"""

import gc
from collections.abc import Coroutine
from typing import Any

#: Objects made before the collector looks at the young ones; Python's own is 700. Whatever a message makes is freed by
#: its reference count: with the default an agent under load spent a fifth of its time looking for cycles.
COLLECT_AFTER = 20_000


def run_in_own_process(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs `work` to its end and answers what it answers; by uvloop where that is installed."""
    # What was imported lives as long as the process: the collector need not go through it again and again.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    try:
        import uvloop
    except ImportError:
        import asyncio

        return asyncio.run(work)
    return uvloop.run(work)
