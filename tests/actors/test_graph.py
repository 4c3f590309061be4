"""The graph functions against small graphs checked by hand, random ones checked by definition, and large ones."""

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_actors.graph import ancestors, find_cycle, topological_order

Graph = dict[str, list[str]]
DIAMOND: Graph = {"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}


@st.composite
def graphs(draw: st.DrawFn, *, cycles: bool) -> Graph:
    count = draw(st.integers(min_value=1, max_value=8))
    graph: Graph = {}
    for task in range(count):
        above = st.integers(0, count - 1) if cycles else st.integers(0, task - 1)
        chosen = draw(st.lists(above, unique=True, max_size=3)) if cycles or task else []
        graph[f"t{task}"] = [f"t{one}" for one in chosen]
    return dict(draw(st.permutations(list(graph.items()))))


def reachable(graph: Graph, task: str) -> set[str]:
    seen: set[str] = set()
    queue = list(graph[task])
    while queue:
        one = queue.pop()
        if one not in seen:
            seen.add(one)
            queue.extend(graph[one])
    return seen


def test_a_diamond_is_ordered_and_its_ancestors_are_known() -> None:
    assert topological_order(DIAMOND) == ["a", "b", "c", "d"]
    assert find_cycle(DIAMOND) is None
    above = ancestors(DIAMOND, ["d", "b"])
    assert above.keys() == {"d", "b"}
    assert set(above["d"]) == {"a", "b", "c"}
    assert len(above["d"]) == 3
    assert "d" not in above["d"]
    assert "nobody" not in above["d"]
    assert 5 not in above["d"]
    assert above["d"] & {"a", "z"} == {"a"}


def test_a_cycle_is_named_in_the_order_of_its_tasks() -> None:
    graph = {"x": [], "a": ["c", "x"], "b": ["a"], "c": ["b"], "below": ["c"]}
    assert find_cycle(graph) == ["a", "b", "c", "a"]
    assert find_cycle({"a": ["a"]}) == ["a", "a"]


@given(graphs(cycles=True))
def test_a_cycle_is_found_exactly_when_a_task_is_upstream_of_itself(graph: Graph) -> None:
    cycle = find_cycle(graph)
    on_one = {task for task in graph if task in reachable(graph, task)}
    assert (cycle is None) == (not on_one)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
        assert all(above in graph[task] for above, task in itertools.pairwise(cycle))


@given(graphs(cycles=False))
def test_the_order_and_the_ancestors_are_those_of_the_definition(graph: Graph) -> None:
    order = topological_order(graph)
    assert sorted(order) == sorted(graph)
    assert all(order.index(above) < order.index(task) for task in graph for above in graph[task])
    assert {task: set(above) for task, above in ancestors(graph, graph).items()} == {
        task: reachable(graph, task) for task in graph
    }


def test_a_chain_and_a_wide_join_of_ten_thousand_tasks_are_quick_and_do_not_recurse() -> None:
    chain = {f"t{number}": [f"t{number - 1}"] if number else [] for number in range(10_000)}
    layers = {f"l{number}": [f"l{one}" for one in range(number // 100 * 100 - 100, number // 100 * 100) if one >= 0]
              for number in range(10_000)}  # fmt: skip
    for graph in (chain, layers):
        began = time.process_time()
        assert find_cycle(graph) is None
        above = ancestors(graph, graph)
        assert time.process_time() - began < 5
        assert len(above[list(graph)[-1]]) >= 9_900
    looped = {**chain, "t0": ["t9999"]}
    cycle = find_cycle(looped)
    assert cycle is not None
    assert len(cycle) == 10_001
