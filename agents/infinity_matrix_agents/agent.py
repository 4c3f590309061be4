"""An agent: a name, a handler, and how many works it takes at once.

Whatever serves agents (`serve`, a local system, a client that waits) finds those of this process in `agents()`.
"""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.names import check_name

from infinity_matrix_agents.rate import parse_rate
from infinity_matrix_agents.work import Work

CONCURRENCY_DEFAULT = 16
CONCURRENCY_MAX = 10_000
VERSIONS_MAX = 100

Handler = Callable[[Work], Any]
_agents: "weakref.WeakSet[Agent]" = weakref.WeakSet()


class InvalidAgent(InfinityMatrixError):
    """Raised when an agent cannot be defined as written. Correct its name, concurrency, rate, versions or handler."""


class Agent:
    """An agent of this process. `concurrency` works run at once; a plain function runs in a thread.

    `rate` ("10/s", "600/m", "5000/h", or a number a second) is how fast this process begins works; what would be too
    fast stays in the queue, where other processes find it. `versions` are the versions of workflows it serves, all
    unless given; work of another is left to other processes. Raises InvalidName, InvalidAgent.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = CONCURRENCY_DEFAULT,
        rate: str | float | None = None,
        versions: Iterable[str] | None = None,
    ) -> None:
        self.name = check_name("agent", name)
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= CONCURRENCY_MAX:
            raise InvalidAgent(f"agent {name!r}: concurrency is {concurrency!r}, it must be 1 to {CONCURRENCY_MAX}")
        self.concurrency = concurrency
        self.rate = rate
        try:
            #: Works a second that may be begun, or None.
            self.rate_per_s = None if rate is None else parse_rate(rate)
        except ValueError as error:
            raise InvalidAgent(f"agent {name!r}: {error}") from None
        self.versions = None if versions is None else _checked_versions(name, versions)
        #: Whether its handler is cancelled at once when it is told to stop, because it keeps to the grace itself.
        self.keeps_grace = False
        self.function: Handler | None = None
        self.is_async = False
        _agents.add(self)

    @classmethod
    def built_in(cls, name: str, function: Handler, *, concurrency: int = CONCURRENCY_DEFAULT) -> "Agent":
        """An agent of the system itself: its name may be a reserved one, and only who made it serves it."""
        agent = cls("built-in", concurrency=concurrency)
        _agents.discard(agent)
        agent.name = name
        agent.handler(function)
        return agent

    def handler(self, function: Handler) -> Handler:
        """Registers the one handler of this agent, as a decorator; a second raises InvalidAgent."""
        if self.function is not None:
            raise InvalidAgent(f"agent {self.name!r} has a handler already: {self.function.__qualname__}")
        if not callable(function):
            raise InvalidAgent(f"agent {self.name!r}: the handler must be a function")
        try:
            inspect.signature(function).bind(object())
        except TypeError:
            raise InvalidAgent(
                f"agent {self.name!r}: {getattr(function, '__qualname__', function)} must take one argument, the work"
            ) from None
        self.function = function
        with contextlib.suppress(AttributeError):
            # The registry is weak: `@Agent("name").handler` keeps its agent as long as its function.
            function.__im_agent__ = self  # type: ignore[attr-defined]
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004
        )
        return function

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, concurrency={self.concurrency})"


def _checked_versions(name: str, versions: Iterable[str]) -> tuple[str, ...]:
    # A string is a list of its letters, and never meant so.
    given = None if isinstance(versions, str) or not isinstance(versions, Iterable) else tuple(versions)
    if not given or len(given) > VERSIONS_MAX or not all(isinstance(one, str) and one for one in given):
        raise InvalidAgent(
            f"agent {name!r}: versions is {versions!r}, it must be a list of 1 to {VERSIONS_MAX} texts, e.g. ['1', '2']"
        )
    return given


def agents_of_this_process() -> list[Agent]:
    """Every agent of this process that has a handler; of two with one name the first."""
    by_name: dict[str, Agent] = {}
    for agent in sorted((agent for agent in _agents if agent.function is not None), key=lambda agent: agent.name):
        by_name.setdefault(agent.name, agent)
    return list(by_name.values())
