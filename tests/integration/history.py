"""What happened in a world: its log, read by the history checker, and the journal of its agents."""

import json
from pathlib import Path

from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.installation import read_installation
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.verification import AgentLine as Line
from infinity_matrix_coordinator.verification import History, verify
from infinity_matrix_coordinator.verification.reading import read_history

__all__ = ["History", "Line", "history_of", "lines_of", "verify"]


def lines_of(journal: Path) -> list[Line]:
    """What the journal says so far. Its last line may be half written: one that has no end yet is not there yet."""
    if not journal.exists():
        return []
    whole, _, _ = journal.read_text().rpartition("\n")
    return [Line(**json.loads(line)) for line in whole.splitlines()]


async def history_of(url: str, journal: Path) -> History:
    """The whole log of an installation whose executions have all had the time to end, and the journal."""
    connection = await Connection(Endpoint(url)).open()
    try:
        session = connection.session
        history = await read_history(session, await read_installation(session, with_secret=True))
    finally:
        await connection.close()
    history.journal = lines_of(journal)
    history.is_over = True
    return history
