"""How a handler fails on purpose."""


class Failure(Exception):
    """Raised by a handler: the attempt failed with this type and message.

    `retryable=False` ends the task whatever its retry policy; `retry_after` (seconds) goes before its backoff.
    """

    def __init__(
        self, type: str, message: str = "", *, retryable: bool = True, retry_after: float | None = None
    ) -> None:
        self.type = type
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        super().__init__(f"{type}: {message}" if message else type)
