"""Folds a stored history with the core of today, and says what it decided: after each fact, and in the end.

A history is the log's own messages, so that reading them is part of what must stay as it was.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.effect import Effect
from infinity_matrix_actors.fact import Fact
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.mailbox import Mailbox
from infinity_matrix_coordinator.snapshot import restore, snapshot

FOLDER = Path(__file__).parent
#: Capabilities are checked with a secret, which a history has none of.
SUBJECTS = Subjects("im")


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the log; `at` is seconds since the epoch, `data` its payload as text."""

    sequence: int
    at: float
    subject: str
    data: str

    def fact(self) -> Fact | None:
        subject = SUBJECTS.parse_fact(self.subject)
        return None if subject is None else decode_fact(subject, self.data.encode(), self.at)


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of a history: effects after each message, the state at the end, and a snapshot taken half way."""

    effects: list[list[Any]]
    state: dict[str, Any] | None
    half: int
    snapshot: dict[str, Any] | None


def plain(value: Any) -> Any:
    """The same as JSON has it."""
    return json.loads(json.dumps(value, sort_keys=True, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return asdict(value)


def rendered(effects: list[Effect]) -> list[Any]:
    return [plain([type(effect).__name__, asdict(effect)]) for effect in effects]


def fold(definition: WorkflowDefinition, digest: str, messages: list[Message]) -> Decided:
    """Decides a history as the mailbox of a coordinator does."""
    plan = Plan.of(definition, digest)
    mailbox = Mailbox({digest: plan}.get)
    actor: ExecutionActor | None = None
    effects: list[list[Any]] = []
    half = len(messages) // 2
    taken: dict[str, Any] | None = None
    facts: list[tuple[int, Fact]] = []
    for number, message in enumerate(messages):
        fact = message.fact()
        if fact is None:
            effects.append([])
            continue
        facts.append((message.sequence, fact))
        asked = mailbox.deliver(fact, message.sequence)
        if fact.execution in mailbox.reopening:
            mailbox.reopen(fact.execution, list(facts), plan)
            asked = mailbox.executions[fact.execution].outstanding() if fact.execution in mailbox.executions else []
        actor = mailbox.executions.get(fact.execution, actor)
        effects.append(rendered(asked))
        if number + 1 == half and actor is not None and fact.execution in mailbox.executions:
            taken = plain(snapshot(actor))
    return Decided(effects, None if actor is None else plain(actor.record()), half, taken)


def fold_from(record: dict[str, Any], definition: WorkflowDefinition, digest: str, messages: list[Message]) -> Decided:
    """Decides the rest of a history on a snapshot that was taken before it."""
    plan = Plan.of(definition, digest)
    # A copy, as it is when it is read: an execution goes on in what it is given.
    actor = restore(plain(record), plan, 1)
    effects = []
    for message in messages:
        fact = message.fact()
        effects.append([] if fact is None or actor.finished is not None else rendered(actor.receive(fact)))
    return Decided(effects, plain(actor.record()), 0, None)


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """Where `found` is not as `expected`; what a later version says beside that is no difference."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            difference
            for key, value in expected.items()
            for difference in (
                differences(value, found[key], f"{where}.{key}") if key in found else [f"{where}.{key} is gone"]
            )
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [one for number, (left, right) in pairs for one in differences(left, right, f"{where}[{number}]")]
    return [] if expected == found else [f"{where} was {json.dumps(expected)} and is {json.dumps(found)}"]
