"""The two streams of a world: the log and the work queue, with the server's rules about what they take."""

from dataclasses import dataclass

from infinity_matrix_actors.fact import Command, Due, Fact, Finished, Outcome, Signal, Taken

EXECUTION = "e1"
AGENT = "agent-x"
DUPLICATE_WINDOW_S = 120.0
Key = tuple[str, int]  #: task, attempt


class Log:
    """Facts in order; a subject takes one, and refuses the second."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self._taken: set[tuple[object, ...]] = set()

    def publish(self, fact: Fact) -> bool:
        subject = subject_of(fact)
        if subject in self._taken:
            return False
        self._taken.add(subject)
        self.facts.append(fact)
        return True

    def has_outcome(self, key: Key) -> bool:
        return ("outcome", AGENT, *key) in self._taken


def subject_of(fact: Fact) -> tuple[object, ...]:
    match fact:
        case Outcome(agent=agent, task=task, attempt=attempt):
            return ("outcome", agent, task, attempt)
        case Taken(agent=agent, task=task, attempt=attempt):
            return ("taken", agent, task, attempt)
        case Due(task=task, attempt=attempt):
            return ("due", task, attempt)
        case Command(kind=kind, id=id):
            return ("command", kind, id)
        case Finished(n=n):
            return ("finished", n)
        case Signal(name=name, id=id):
            return ("signal", name, id)
    return (type(fact).__name__,)


@dataclass(slots=True)
class Message:
    ready_at: float
    stored_at: float
    is_repair: bool
    deliveries: int = 0
    is_held: bool = False


class WorkQueue:
    """Work by (task, attempt): write-once while it is there, and a duplicate window for what has a Msg-Id."""

    def __init__(self, *, repairs_burn_ids: bool) -> None:
        self.messages: dict[Key, Message] = {}
        self._repairs_burn_ids = repairs_burn_ids
        self._ids: dict[Key, float] = {}

    def publish(self, key: Key, ready_at: float, now: float, *, is_repair: bool) -> bool:
        if key in self.messages or (not is_repair and now < self._ids.get(key, 0.0)):
            return False
        if not is_repair or self._repairs_burn_ids:
            self._ids[key] = now + DUPLICATE_WINDOW_S
        self.messages[key] = Message(ready_at, now, is_repair)
        return True

    def close(self, key: Key, now: float) -> None:
        """Plants the tombstone, and purges."""
        self._ids.setdefault(key, now + DUPLICATE_WINDOW_S)
        self.messages.pop(key, None)
