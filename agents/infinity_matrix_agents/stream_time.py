"""The stream's time, as an agent can know it: from what the server says, and when its messages were stored."""

import time


class StreamTime:
    """Seconds since the epoch by the server's clock. Off by the quickest delivery seen, below a millisecond."""

    def __init__(self) -> None:
        self._offset_s: float | None = None

    def know(self, server_time: float) -> None:
        """Takes in what the server says its time is now; work that was queued for long says nothing of it."""
        self._offset_s = time.time() - server_time

    def learn(self, stored_at: float) -> None:
        """Takes in when a message that is here now was stored."""
        offset_s = time.time() - stored_at
        if self._offset_s is None or offset_s < self._offset_s:
            self._offset_s = offset_s

    def now(self) -> float:
        return time.time() - (self._offset_s or 0.0)
