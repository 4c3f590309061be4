"""The stream's time on this machine: the offset is learned from the server, so a skewed clock fires no timer early."""

import time


class StreamClock:
    """Seconds since the epoch as the server counts them."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def learn(self, server_time: float) -> None:
        """Takes in a time the server gave just now."""
        self._offset_s = server_time - time.time()

    def now(self) -> float:
        return time.time() + self._offset_s
