"""Every graph of up to four tasks, with every outcome, in every order: nothing is left to chance.

A story goes through a checkpoint after each fact, so a crash at every step is among it; each fact is told twice.
"""

from collections.abc import Iterator
from itertools import combinations, product

import pytest
from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.effect import PublishWork
from infinity_matrix_coordinator.saga import LEASE_S
from story import Story, task, undo, workflow

OK, FATAL, CLOSED = "ok", "fatal", "closed timed_out"
Fates = dict[str, str]


def graphs(size: int) -> Iterator[WorkflowDefinition]:
    """Every acyclic graph of so many tasks, each with what undoes it."""
    names = "abcd"[:size]
    pairs = list(combinations(names, 2))
    for chosen in product((False, True), repeat=len(pairs)):
        edges = [pair for pair, is_there in zip(pairs, chosen, strict=True) if is_there]
        tasks = [task(name, *(above for above, below in edges if below == name)) for name in names]
        yield workflow(*tasks, on_failure=tuple(undo(name, f"undo-{name}") for name in names))


def fates(size: int) -> Iterator[Fates]:
    """What becomes of each task: of three anything, of four no more than one of which nobody knows."""
    names = "abcd"[:size]
    for each in product((OK, FATAL, CLOSED), repeat=size):
        if size < 4 or (FATAL not in each and each.count(CLOSED) <= 1):
            yield dict(zip(names, each, strict=True))


def explore(definition: WorkflowDefinition, fate: Fates) -> int:
    """Goes every way the outcomes can come in; answers how many there are."""
    ways = 0
    untold: list[list[str]] = [[]]
    while untold:
        lines = untold.pop()
        story = Story(definition)
        told(story, "started", definition)
        for line in lines:
            told(story, line, definition)
        while not story.actor.is_decided:
            options = next_lines(story, fate)
            untold += [[*lines, other] for other in options[1:]]
            told(story, options[0], definition)
            lines = [*lines, options[0]]
        check_end(story, definition, fate)
        ways += 1
    return ways


def next_lines(story: Story, fate: Fates) -> list[str]:
    """What may be told next: an outcome of any task under way; undoing goes one way, as its order is checked."""
    under_way = sorted(story.actor.open)
    if story.actor.saga is None:
        return [f"{name} {fate[name]}" for name in under_way]
    if under_way:
        return [f"{under_way[0]} ok"]
    name = next(name for name, actor in story.actor.tasks.items() if actor.is_delayed)
    return [f"+{LEASE_S} {name} due {story.actor.tasks[name].attempt + 1}"]


def told(story: Story, line: str, definition: WorkflowDefinition) -> None:
    """Tells a fact twice, and holds what follows against the graph."""
    for effect in story.tell(line):
        if isinstance(effect, PublishWork):
            assert effect.attempt == 1
            check_may_begin(story, effect.task, definition)
    if line != "started" and " due " not in line:
        before = story.actor.record() | {"ignored": 0}
        assert story.tell(line) == []
        assert story.actor.record() | {"ignored": 0} == before


def check_may_begin(story: Story, name: str, definition: WorkflowDefinition) -> None:
    forward = name.removeprefix("undo-")
    if forward == name:
        above = next(one.depends_on for one in definition.tasks if one.id == name)
        assert all(story.state_of(upstream) == "completed" for upstream in above)
        assert story.actor.saga is None
        return
    below = [one.id for one in definition.tasks if forward in one.depends_on]
    # What came after it is undone, or was never done.
    assert all(story.state_of(f"undo-{one}") == "completed" or not is_to_undo(story, one) for one in below)
    assert not story.actor.open & {one.id for one in definition.tasks}


def is_to_undo(story: Story, name: str) -> bool:
    return story.state_of(name) == "completed" or bool(story.actor.tasks[name].closed)


def check_end(story: Story, definition: WorkflowDefinition, fate: Fates) -> None:
    reached = {name for name in fate if story.actor.tasks[name].attempt}
    faulty = {name for name in reached if fate[name] != OK}
    assert story.actor.state == ("failed" if faulty else "completed")
    if not faulty:
        assert reached == set(fate)
        assert not story.actor.compensated
        return
    assert set(story.actor.compensated) == {name for name in reached if fate[name] != FATAL}
    place = {name: index for index, name in enumerate(story.actor.compensated)}
    for one in definition.tasks:
        for above in one.depends_on:
            assert above not in place or one.id not in place or place[one.id] < place[above]


@pytest.mark.parametrize(("size", "graphs_of_it", "ways"), [(1, 1, 3), (2, 2, 27), (3, 8, 495), (4, 64, 1373)])
def test_every_graph_ends_as_it_should_whatever_comes_first(size: int, graphs_of_it: int, ways: int) -> None:
    definitions = list(graphs(size))
    assert len(definitions) == graphs_of_it
    assert sum(explore(definition, fate) for definition in definitions for fate in fates(size)) == ways
