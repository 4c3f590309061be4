"""The graph of a workflow as ids and upstream lists: its order, its cycles, its ancestors.

Nothing here recurses, and all of it is linear in tasks and edges: a chain may be as long as a workflow is large.
`upstream` maps every id to the ids it depends on, all of which are keys themselves.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet


def topological_order(upstream: Mapping[str, Sequence[str]]) -> list[str]:
    """Answers the ids so that each comes after all it depends on; what lies on or behind a cycle is left out."""
    missing = {task: len(upstream[task]) for task in upstream}
    downstream: dict[str, list[str]] = {task: [] for task in upstream}
    for task, above in upstream.items():
        for one in above:
            downstream[one].append(task)
    order = [task for task, count in missing.items() if count == 0]
    for task in order:  # the list grows while it is read: it is the queue
        for below in downstream[task]:
            missing[below] -= 1
            if missing[below] == 0:
                order.append(below)
    return order


def find_cycle(upstream: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Answers a cycle as `[a, b, a]`, each running before the next, or None when there is none."""
    left = upstream.keys() - set(topological_order(upstream))
    if not left:
        return None
    # Whatever is left depends on something that is left, so walking upstream must come back to where it was.
    path: list[str] = []
    place: dict[str, int] = {}
    task = next(task for task in upstream if task in left)
    while task not in place:
        place[task] = len(path)
        path.append(task)
        task = next(above for above in upstream[task] if above in left)
    return [*path[place[task] :], task][::-1]


class Ancestors(AbstractSet[str]):
    """The ids upstream of one task, near and far: a set over one bit a task, so that 10,000 of them stay small."""

    __slots__ = ("_bits", "_order", "_place")

    def __init__(self, bits: int, place: Mapping[str, int], order: Sequence[str]) -> None:
        self._bits = bits
        self._place = place
        self._order = order

    @classmethod
    def _from_iterable(cls, tasks: Iterable[str]) -> frozenset[str]:  # type: ignore[override]
        return frozenset(tasks)  # what `&`, `|` and `-` answer: a plain set, since bits need a graph

    def __contains__(self, task: object) -> bool:
        place = self._place.get(task) if isinstance(task, str) else None
        return place is not None and bool(self._bits >> place & 1)

    def __iter__(self) -> Iterator[str]:
        return (task for task in self._order if task in self)

    def __len__(self) -> int:
        return self._bits.bit_count()


def ancestors(upstream: Mapping[str, Sequence[str]], wanted: Iterable[str]) -> dict[str, Ancestors]:
    """Answers the ancestors of each wanted task. The graph must have no cycle."""
    wanted = list(wanted)
    if not wanted:
        return {}
    order = topological_order(upstream)
    place = {task: number for number, task in enumerate(order)}
    bits: list[int] = []
    for task in order:
        above = 0
        for one in upstream[task]:
            number = place[one]
            above |= bits[number] | 1 << number
        bits.append(above)
    return {task: Ancestors(bits[place[task]], place, order) for task in wanted}
