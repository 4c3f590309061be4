"""Which artifacts an execution's log names, and for what: its input, the results of its tasks, its signals."""

from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import UnknownExecution
from infinity_matrix_actors.fact import Fact, Outcome, Signal, Started
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import read_facts
from infinity_matrix_bus.references import artifacts_in

from infinity_matrix_coordinator.operations import Operations, check_id


@dataclass(frozen=True, slots=True)
class NamedArtifact:
    """An artifact that a log names; `of` says for what, `named_at` when, in seconds since the epoch."""

    name: str
    bytes: int
    of: str
    named_at: float


async def artifacts_of(operations: Operations, execution: str) -> list[NamedArtifact]:
    """The artifacts of an execution, in the order of its log; raises UnknownExecution, StorageUnavailable.

    Works that were too large for a message are not among them: no fact names what was stored of them.
    """
    reads = GatheredReads(await operations.session())
    try:
        facts = await read_facts(reads, operations.subjects, operations.installation.shards, check_id(execution))
    finally:
        reads.close()
    if not any(isinstance(fact, Started) for _, fact in facts):
        raise UnknownExecution(execution)
    return [
        NamedArtifact(name, size_bytes, of, fact.at)
        for _, fact in facts
        for of, value in _values_of(fact)
        for name, size_bytes in artifacts_in(value).items()
    ]


def _values_of(fact: Fact) -> list[tuple[str, Any]]:
    match fact:
        case Started():
            return [("input", fact.input), *((f"earlier result of {task}", value) for task, value in fact.seed.items())]
        case Outcome():
            return [(f"result of {fact.task}", fact.result)]
        case Signal():
            return [(f"signal {fact.name}", fact.data)]
        case _:
            return []
