"""A snapshot holds all there is: a field that is added to the state and not to the snapshot is found here."""

from infinity_matrix_actors.group import Group
from infinity_matrix_coordinator import snapshot
from infinity_matrix_coordinator.execution import Execution
from infinity_matrix_coordinator.saga import Saga

#: Kept in a form of their own, or not part of the state: found anew by who restores it.
OTHERWISE = {"state", "stopped_by", "held", "signals", "finished", "saga", "tasks", "started", "leaving"}
ANEW = {"id", "plan", "input", "sequence", "folded", "ignored"}


def test_every_field_of_an_execution_is_in_its_snapshot() -> None:
    assert set(Execution.__slots__) - set(snapshot._PLAIN) - set(snapshot._SETS) == OTHERWISE | ANEW


def test_every_field_of_a_group_and_a_saga_is_in_its_snapshot() -> None:
    assert set(snapshot._group(Group())) == set(Group.__dataclass_fields__) - {"results", "states"} | {"settled"}
    assert set(Saga.__slots__) == set(snapshot._SAGA_PLAIN) | {"after", "running"}
