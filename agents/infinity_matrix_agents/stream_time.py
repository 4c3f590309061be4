"""The stream's time, as an agent can know it: from what the server says, and when its messages were stored."""

import time


class StreamTime:
    """Seconds since the epoch by the server's clock. Off by the quickest delivery seen, below a millisecond.

    What passes between is measured, not read off the machine's clock, which may be set.
    """

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self._own_s = time.time() - time.monotonic()

    def know(self, server_time: float) -> None:
        """Takes in what the server says its time is now; work that was queued for long says nothing of it."""
        self._offset_s = self._measured() - server_time

    def learn(self, stored_at: float) -> None:
        """Takes in when a message that is here now was stored."""
        offset_s = self._measured() - stored_at
        if self._offset_s is None or offset_s < self._offset_s:
            self._offset_s = offset_s

    def now(self) -> float:
        return self._measured() - (self._offset_s or 0.0)

    def _measured(self) -> float:
        return time.monotonic() + self._own_s
