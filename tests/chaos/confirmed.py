"""The journal of outcomes that agents saw confirmed: of these none may be lost, and each is what its agent gave."""

import json
import os
import time
from pathlib import Path

from infinity_matrix_bus.publisher import Ack, AckCallback, Fate, Outbox


class Confirmed:
    """Lines of the agents' journal, beside those of what they began and did."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, execution: str, task: str, attempt: int, payload: bytes, sequence: int) -> None:
        """The server confirmed that it stored this outcome, and not that it was already there."""
        line = {
            "event": "acknowledged",
            "execution": execution,
            "task": task,
            "attempt": attempt,
            "at": time.time(),
            "process": os.getpid(),
            "sequence": sequence,
            "state": "failed" if json.loads(payload).get("error") else "completed",
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def listen(self) -> None:
        """Writes down all that the agents of this process see confirmed."""
        post = Outbox.post

        def noted(outbox: Outbox, subject: str, payload: bytes, on_done: AckCallback, tries: int | None = None) -> None:
            def done(ack: Ack) -> None:
                if ack.fate is Fate.STORED and ".outcome." in subject:
                    _, _, _, execution, _, _, task, attempt, _ = subject.split(".")
                    self.write(execution, task, int(attempt), payload, ack.sequence)
                on_done(ack)

            post(outbox, subject, payload, done, tries)

        Outbox.post = noted  # type: ignore[method-assign]
