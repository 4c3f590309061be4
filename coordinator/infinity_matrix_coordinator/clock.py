"""The stream's time on this machine, learned from the server, so that the machine's own time fires no timer early."""

import time


class StreamClock:
    """Seconds since the epoch as the server counts them.

    Between two times that the server gave, the time that passed is measured: a clock of the machine may be set.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def learn(self, server_time: float) -> None:
        """Takes in a time the server gave just now."""
        self._offset_s = server_time - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset_s
