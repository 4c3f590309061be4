"""What holds of maps, loops, waits, pauses, compensations and further runs, over random graphs and faults.

The same world as in `test_execution_properties`, meddled with: two owners that lag and restart, agents that fail in
every way, people who pause, signal and retry. What is undone is counted here again, from the facts alone.
"""

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given, note, settings
from hypothesis import strategies as st
from infinity_matrix_actors.definition import (
    CompensateWhen,
    LoopDefinition,
    MapDefinition,
    RetryDefinition,
    RunWhen,
    TaskDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.effect import Disarm, Effect, PublishFinished, PublishWork
from infinity_matrix_actors.fact import Command, CommandKind, Fact, Finished, Outcome, Signal
from infinity_matrix_actors.state import TaskState
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from test_execution_properties import fold
from world import AGENT, World

EXAMPLES = settings().max_examples if settings.get_current_profile_name() == "explore" else 150
INPUT = {"none": [], "few": [{"parts": [1, 2]}, {"parts": []}, {"parts": [3]}], "many": [1, 2, 3, 4]}
ITEMS = (
    ("input.few",),
    ("input.many",),
    ("input.none",),
    ("input.few", "item.parts"),
    ("input.missing",),
    ("{u}.result.n > 0 ? [1, 2] : []",),
    ("{u}.result.n > 0 ? [1, 2, 3] : [1]",),
)
ENDS = ("result.n >= 2", "iteration >= 1", "result.missing", "result.n >= 9")
POLICIES = (
    None,
    None,
    None,
    ({"action": "skip"},),
    ({"action": "retry", "max_attempts": 2, "delay": 1.0}, {"action": "skip"}),
    ({"action": "retry", "max_attempts": 3},),
    ({"action": "compensate"},),
)


@st.composite
def definitions(draw: st.DrawFn) -> WorkflowDefinition:
    """Workflows of up to 7 tasks, of which some are maps, loops or waits, and some are undone."""
    tasks: list[TaskDefinition] = []
    undoing: list[TaskDefinition] = []
    for number in range(draw(st.integers(1, 7))):
        names = [task.id for task in tasks]
        upstream = tuple(draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else [])
        task = TaskDefinition(
            f"t{number}",
            AGENT,
            upstream,
            run_when=draw(st.sampled_from((RunWhen.DEFAULT, RunWhen.DEFAULT, RunWhen.DEFAULT, *RunWhen))),
            retry=RetryDefinition(draw(st.sampled_from((1, 1, 2))), initial_delay=1.0, max_delay=2.0),
            timeout=draw(st.sampled_from((None, None, 5.0))),
        )
        kind = draw(st.sampled_from(("agent", "agent", "map", "map", "loop", "both", "sleep", "signal")))
        if kind in ("map", "both"):
            items = tuple(one.format(u=upstream[0] if upstream else "") for one in draw(st.sampled_from(ITEMS)))
            items = ("input.many",) if items[0].startswith(".") else items
            limit, tolerated = draw(st.sampled_from((1, 2, 10))), draw(st.sampled_from((0.0, 0.0, 40.0, 100.0)))
            task = replace(task, map=MapDefinition(items, limit, 0, tolerated))
        if kind in ("loop", "both"):
            task = replace(task, loop=LoopDefinition(draw(st.sampled_from(ENDS)), 3))
        if kind in ("sleep", "signal"):
            loop = LoopDefinition("iteration >= 1", 3) if draw(st.booleans()) else None
            own = (
                {"sleep": 3.0} if kind == "sleep" else {"wait_for": "go", "timeout": draw(st.sampled_from((None, 9.0)))}
            )
            task = TaskDefinition(task.id, "", upstream, run_when=task.run_when, loop=loop, **own)  # type: ignore[arg-type]
        elif draw(st.booleans()):
            when = draw(st.sampled_from((CompensateWhen.DEFAULT, CompensateWhen.DEFAULT, *CompensateWhen)))
            undoing.append(TaskDefinition(f"u{number}", AGENT, compensates=task.id, compensate_when=when))
        tasks.append(task)
    if draw(st.booleans()):
        undoing.append(TaskDefinition("tell", AGENT))
    return WorkflowDefinition(
        "w",
        tuple(tasks),
        timeout=draw(st.sampled_from((None, None, None, 25.0))),
        grace=draw(st.sampled_from((0.0, 5.0))),
        on_failure=tuple(undoing),
        on_error=draw(st.sampled_from(POLICIES)),
        on_task_failure=draw(st.sampled_from(POLICIES)),
    )


SEEDS = st.integers(0, 2**32 - 1)
RUNS = st.sampled_from((1, 2, 3))
CANCELS = st.sampled_from((None, None, None, 0, 20, 100))


def ran(definition: WorkflowDefinition, seed: int, runs: int, cancel_at: int | None) -> World:
    """A world that came to its end, however often it was begun."""
    world = World(definition, seed, INPUT, runs=runs, is_meddled_with=True)
    try:
        world.chaos(Random(seed).randrange(600), cancel_at=cancel_at)
        world.calm()
    finally:
        note("\n".join(f"{number}: {fact}" for number, fact in enumerate(world.log.facts)))
    return world


@settings(max_examples=EXAMPLES)
@given(definition=definitions(), seed=SEEDS, runs=RUNS, cancel_at=CANCELS)
def test_every_run_has_one_end_and_everyone_agrees_on_it(
    definition: WorkflowDefinition, seed: int, runs: int, cancel_at: int | None
) -> None:
    world = ran(definition, seed, runs, cancel_at)
    actor, steps = fold(world, world.log.facts)
    assert actor.is_decided
    assert actor.outstanding() == []
    ends = [fact for fact in world.log.facts if isinstance(fact, Finished)]
    assert [end.n for end in ends] == list(range(1, len(ends) + 1))
    wanted = [effect for _, effects in steps for effect in effects if isinstance(effect, PublishFinished)]
    assert {repr(ending) for ending in world.endings} == {repr(ending) for ending in wanted}
    assert [(end.state, end.error, end.compensated) for end in ends] == [
        (ending.state, ending.error, ending.compensated) for ending in wanted
    ]
    dispatched = [(e.task, e.attempt) for _, effects in steps for e in effects if isinstance(e, PublishWork)]
    assert len(dispatched) == len(set(dispatched))
    assert world.asked <= set(dispatched)
    assert set(world.agents.journal) <= set(dispatched)
    check_groups(actor)
    check_effects(definition, steps)


@settings(max_examples=EXAMPLES)
@given(definition=definitions(), seed=SEEDS, runs=RUNS, cancel_at=CANCELS)
def test_folding_again_gives_the_same_and_nothing_that_comes_twice_changes_it(
    definition: WorkflowDefinition, seed: int, runs: int, cancel_at: int | None
) -> None:
    world = ran(definition, seed, runs, cancel_at)
    expected, steps = fold(world, world.log.facts)
    random = Random(seed)
    actor = ExecutionActor(expected.started, world.plan, 1)
    open_works: dict[str, int] = {}
    for number, (fact, effects) in enumerate(steps):
        assert actor.receive(fact) == effects
        if isinstance(fact, Outcome) and Disarm(fact.task) in effects:
            open_works.pop(fact.task, None)
        open_works |= {effect.task: effect.attempt for effect in effects if isinstance(effect, PublishWork)}
        outstanding = actor.outstanding()
        assert {e.task: e.attempt for e in outstanding if isinstance(e, PublishWork)} == open_works
        assert any(isinstance(e, PublishFinished) for e in outstanding) is (actor.is_decided and not actor.finished)
        again, _ = steps[random.randrange(number + 1)]
        if isinstance(again, Signal | Command | Finished):
            # Each has a place of its own in the log, and is read from there once.
            continue
        before = actor.record()
        assert actor.receive(again) == []
        assert actor.record() == before
    assert actor.record() == expected.record()


def check_groups(actor: ExecutionActor) -> None:
    """What a map or a loop came to is what its instances came to."""
    for name, task in actor.tasks.items():
        if task.group is None or task.state is not TaskState.COMPLETED:
            continue
        assert not task.group.running
        assert TaskState.CANCELLED not in task.group.states.values()
        if task.group.items is not None:
            assert isinstance(task.result, list)
            assert len(task.result) == len(task.group.items) == len(task.group.states)
        assert not any(other.is_open for key, other in actor.tasks.items() if key.startswith(f"{name}~"))


def check_effects(definition: WorkflowDefinition, steps: list[tuple[Fact, list[Effect]]]) -> None:
    """Nothing is undone twice, or before what is open has ended; and what is done and not undone is said."""
    undone_by = {task.compensates: task.id for task in definition.on_failure if task.compensates}
    done: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    undone: Counter[str] = Counter()
    #: Done and not undone since, and of that what the saga of this run has told of.
    present: set[str] = set()
    told: set[str] = set()
    is_open: dict[str, int] = {}
    state = ""
    for fact, effects in steps:
        if isinstance(fact, Outcome) and Disarm(fact.task) in effects:
            is_open.pop(fact.task, None)
            base, mark, instance = fact.task.partition("~")
            if base.startswith("u"):
                forward = f"t{base[1:]}{mark}{instance}"
                if fact.error is None:
                    undone[forward] += 1
                    present.discard(forward)
                    told.discard(forward)
                else:
                    told.add(forward)
            elif base in undone_by:
                done[fact.task] += fact.error is None
                unknown[fact.task] += fact.error is not None
                if fact.error is None:
                    present.add(fact.task)
        elif isinstance(fact, Command) and fact.kind is CommandKind.RETRY and effects:
            told.clear()
        for effect in effects:
            if isinstance(effect, PublishWork):
                if effect.task.startswith("u"):
                    assert not [name for name in is_open if name[0] == "t" and name != "tell"]
                is_open[effect.task] = effect.attempt
            elif isinstance(effect, PublishFinished):
                assert not is_open
                state = effect.state
                if state != "completed":
                    assert present <= told, f"{present - told} done, and neither undone nor told"
                    assert effect.compensation != "complete" or not present
    for name, count in undone.items():
        assert count <= done[name] + unknown[name], f"{name} was undone {count} times"
    assert state
