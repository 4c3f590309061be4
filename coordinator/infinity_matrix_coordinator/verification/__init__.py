"""The history checker: whether what is in the log, and in journals beside it, was allowed. Pure, but for `reading`."""

from infinity_matrix_coordinator.verification.check import partly_checked, verify
from infinity_matrix_coordinator.verification.history import (
    INVARIANTS,
    AgentLine,
    ClientLine,
    Entry,
    History,
    QueuedWork,
    Violation,
)

__all__ = [
    "INVARIANTS",
    "AgentLine",
    "ClientLine",
    "Entry",
    "History",
    "QueuedWork",
    "Violation",
    "partly_checked",
    "verify",
]
