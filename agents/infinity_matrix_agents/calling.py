"""Calling a function of the user's in a thread."""

from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def called(function: Callable[..., Answer], *arguments: object) -> Answer:
    """What the function answers, or raises; a StopIteration as a RuntimeError.

    A future takes no StopIteration: whoever waited for the thread would wait for ever (PEP 479 does the same for
    coroutines).
    """
    try:
        return function(*arguments)
    except StopIteration as error:
        raise RuntimeError("the function raised StopIteration: next() found nothing left") from error
