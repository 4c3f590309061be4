"""What holds of every execution, over random graphs, faults and orders: I1 to I5 and I12, and rule 4 (`outstanding`).

Each example is a definition and a seed for its world: `test_...(definition=..., seed=...)` in a failure runs it again.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st
from infinity_matrix_actors.definition import (
    HANDLES_FAILURE,
    Backoff,
    RetryDefinition,
    RunWhen,
    TaskDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.effect import Disarm, Effect, PublishFinished, PublishStatus, PublishWork
from infinity_matrix_actors.fact import (
    Command,
    CommandKind,
    Due,
    Fact,
    Finished,
    Outcome,
    Signal,
    Started,
    Taken,
    TaskError,
)
from infinity_matrix_actors.plan import Plan
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from world import AGENT, EXECUTION, World

EXAMPLES = settings().max_examples if settings.get_current_profile_name() == "explore" else 150
INPUT = {"go": True}
#: Conditions over the first upstream task `u`, each with what it must answer: None is an error.
CONDITIONS: dict[str, Callable[[str, Any], bool | None]] = {
    "input.go": lambda state, result: True,
    "!input.go": lambda state, result: False,
    "{u}.state == 'completed'": lambda state, result: state == "completed",
    "{u}.error == null": lambda state, result: state in ("completed", "skipped"),
    "{u}.result.missing > 0": lambda state, result: None,
    "{u}.result.n > 0": lambda state, result: result["n"] > 0 if state == "completed" else None,
}
ERRORS = (TaskError("boom", ""), TaskError("bad-input", "", retryable=False), TaskError("cancelled", ""))
SETTLED = ("completed", "failed", "skipped", "cancelled")


@st.composite
def definitions(draw: st.DrawFn) -> WorkflowDefinition:
    """Workflows of up to 12 tasks with everything a task may have."""
    tasks: list[TaskDefinition] = []
    for number in range(draw(st.integers(1, 12))):
        names = [task.id for task in tasks]
        upstream = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
        kinds = list(CONDITIONS) if upstream else list(CONDITIONS)[:2]
        condition = draw(st.one_of(st.none(), st.none(), st.sampled_from(kinds)))
        retry = RetryDefinition(
            draw(st.sampled_from((1, 1, 2, 3))),
            draw(st.sampled_from(Backoff)),
            initial_delay=draw(st.sampled_from((0.0, 1.0, 4.0))),
            max_delay=5.0,
            jitter=draw(st.sampled_from((0.0, 0.2))),
            non_retryable=draw(st.sampled_from(((), ("bad-input",)))),
        )
        tasks.append(
            TaskDefinition(
                f"t{number}",
                AGENT,
                tuple(upstream),
                condition=condition and condition.format(u=upstream[0] if upstream else ""),
                run_when=draw(st.sampled_from((RunWhen.DEFAULT, RunWhen.DEFAULT, *RunWhen))),
                retry=retry,
                timeout=draw(st.sampled_from((None, None, 5.0))),
                queue_timeout=draw(st.sampled_from((None, None, 8.0))),
                total_timeout=draw(st.sampled_from((86_400.0, 86_400.0, 20.0))),
            )
        )
    timeout = draw(st.sampled_from((None, None, 15.0)))
    return WorkflowDefinition("w", tuple(tasks), timeout=timeout, grace=draw(st.sampled_from((0.0, 5.0))))


SEEDS = st.integers(0, 2**32 - 1)
CANCELS = st.sampled_from((None, None, None, 0, 2, 20, 100))


def ran(definition: WorkflowDefinition, seed: int, cancel_at: int | None = None) -> World:
    """A world that came to its end."""
    world = World(definition, seed, INPUT)
    world.chaos(Random(seed).randrange(600), cancel_at=cancel_at)
    world.calm()
    note("\n".join(f"{number}: {fact}" for number, fact in enumerate(world.log.facts)))
    return world


def fold(world: World, facts: list[Fact]) -> tuple[ExecutionActor, list[tuple[Fact, list[Effect]]]]:
    """The execution as of `facts`, and each fact with its effects."""
    started = next(fact for fact in facts if isinstance(fact, Started))
    actor = ExecutionActor(started, Plan.of(world.plan.definition), 1)
    return actor, [(fact, actor.receive(fact)) for fact in facts]


@settings(max_examples=EXAMPLES)
@given(definition=definitions(), seed=SEEDS, cancel_at=CANCELS)
def test_two_owners_come_to_one_end_and_everyone_agrees_on_it(
    definition: WorkflowDefinition, seed: int, cancel_at: int | None
) -> None:
    world = ran(definition, seed, cancel_at)
    ends = [fact for fact in world.log.facts if isinstance(fact, Finished)]
    assert len(ends) == 1  # I1
    actor, steps = fold(world, world.log.facts)
    assert actor.decided_at is not None
    # I2: whoever wrote an end, wrote this one.
    assert set(map(repr, world.endings)) == {repr(PublishFinished(actor.state, actor.error, actor.decided_at))}
    assert (ends[0].state, ends[0].error) == (actor.state, actor.error)
    assert actor.outstanding() == []
    # Nobody made up work, and agents ran nothing else.
    dispatched = {(e.task, e.attempt) for _, effects in steps for e in effects if isinstance(e, PublishWork)}
    assert world.asked <= dispatched
    assert set(world.agents.journal) <= dispatched
    check_rules(definition, steps)


@settings(max_examples=EXAMPLES)
@given(definition=definitions(), seed=SEEDS, cancel_at=CANCELS)
def test_folding_a_log_again_gives_the_same_state_and_the_same_effects(
    definition: WorkflowDefinition, seed: int, cancel_at: int | None
) -> None:
    world = ran(definition, seed, cancel_at)
    one, its_steps = fold(world, world.log.facts)
    two, other_steps = fold(world, world.log.facts)
    assert one.record() == two.record()  # I12
    assert its_steps == other_steps
    # And at every prefix, what is outstanding is what was asked for and has no answer yet (rule 4).
    actor = ExecutionActor(one.started, world.plan, 1)
    open_works: dict[str, int] = {}
    for fact, effects in its_steps:
        actor.receive(fact)
        if is_accepted(fact, effects):
            del open_works[fact.task]  # type: ignore[union-attr]
        open_works |= {effect.task: effect.attempt for effect in effects if isinstance(effect, PublishWork)}
        outstanding = actor.outstanding()
        assert {e.task: e.attempt for e in outstanding if isinstance(e, PublishWork)} == open_works
        wants_end = actor.is_decided and actor.finished is None
        assert any(isinstance(e, PublishFinished) for e in outstanding) is wants_end


@settings(max_examples=EXAMPLES)
@given(definition=definitions(), seed=SEEDS, cancel_at=CANCELS)
def test_a_fact_that_comes_twice_changes_nothing(
    definition: WorkflowDefinition, seed: int, cancel_at: int | None
) -> None:
    world = ran(definition, seed, cancel_at)
    expected, steps = fold(world, world.log.facts)
    random = Random(seed)
    actor = ExecutionActor(expected.started, world.plan, 1)
    for number, (fact, effects) in enumerate(steps):
        assert actor.receive(fact) == effects
        again, _ = steps[random.randrange(number + 1)]
        before = actor.record()
        assert actor.receive(again) == []
        assert actor.record() == before
    assert actor.record() == expected.record()


@settings(max_examples=EXAMPLES)
@given(definition=definitions(), seed=SEEDS, cancel_at=CANCELS)
def test_facts_after_the_one_that_decided_change_nothing(
    definition: WorkflowDefinition, seed: int, cancel_at: int | None
) -> None:
    world = ran(definition, seed, cancel_at)
    expected, steps = fold(world, world.log.facts)
    random = Random(seed)
    actor = ExecutionActor(expected.started, world.plan, 1)
    for fact, _ in steps:
        actor.receive(fact)
        if actor.is_decided:
            break
    decided = actor.record()
    end = actor.outstanding()
    assert any(isinstance(effect, PublishFinished) for effect in end)
    for _ in range(20):
        assert actor.receive(any_fact(definition, random, world.now)) == []
        # A signal is kept for who may wait for it if it is taken up again.
        assert {**actor.record(), "signals": {}} == {**decided, "signals": {}}
        assert actor.outstanding() == end


@settings(max_examples=EXAMPLES)
@given(definition=definitions(), seed=SEEDS)
def test_no_fact_at_all_breaks_an_actor_or_the_rules(definition: WorkflowDefinition, seed: int) -> None:
    # What the capabilities keep out of the log, the actor survives all the same.
    random = Random(seed)
    plan = Plan.of(definition)
    started = Started(EXECUTION, 1000.0, "w", plan.digest, INPUT)
    actor = ExecutionActor(started, plan, 1)
    steps: list[tuple[Fact, list[Effect]]] = [(started, actor.receive(started))]
    now = 1000.0
    for _ in range(60):
        now += random.random() * 20
        steps.append((fact := any_fact(definition, random, now), actor.receive(fact)))
        before = actor.record()
        for name in (None, "t0", "t5", "t11"):
            actor.expire(name, now)
        actor.outstanding()
        assert actor.record() == before
    check_rules(definition, steps, are_due_facts_in_time=False)


def any_fact(definition: WorkflowDefinition, random: Random, now: float) -> Fact:
    """A fact about a random task and attempt, likely or not."""
    name = random.choice(definition.tasks).id
    attempt = random.choice((1, 1, 1, 2, 2, 3, 4))
    agent = random.choice((AGENT, AGENT, AGENT, "thief"))
    outcome = Outcome(EXECUTION, now, agent, name, attempt, result={"n": 1})
    return random.choice(
        (
            outcome,
            outcome,
            outcome,
            replace(outcome, result=None, error=random.choice(ERRORS)),
            replace(outcome, result=None, error=random.choice(ERRORS), closed=True),
            Taken(EXECUTION, now, agent, name, attempt),
            Due(EXECUTION, now, name, attempt),
            Command(EXECUTION, now, random.choice(list(CommandKind)), "9")
            if random.random() < 0.2
            else Signal(EXECUTION, now, "s", "1"),
        )
    )


def is_accepted(fact: Fact, effects: list[Effect]) -> bool:
    """Whether an outcome counted: then the task's timer goes."""
    return isinstance(fact, Outcome) and Disarm(fact.task) in effects


def check_rules(
    definition: WorkflowDefinition, steps: list[tuple[Fact, list[Effect]]], *, are_due_facts_in_time: bool = True
) -> None:
    """Walks an execution's facts and effects and checks them against the rules, written here a second time."""
    tasks = {task.id: task for task in definition.tasks}
    handled = {above for task in definition.tasks if task.run_when in HANDLES_FAILURE for above in task.depends_on}
    states: dict[str, str] = {}
    results: dict[str, Any] = {}
    attempts = dict.fromkeys(tasks, 0)
    failed_at: dict[str, float] = {}
    accepted: set[tuple[str, int]] = set()
    is_open: set[str] = set()
    is_stopped = is_over = False
    for fact, effects in steps:
        assert not (is_over and effects)
        if isinstance(fact, Command) and any(effects):
            is_stopped = True
        if is_accepted(fact, effects):
            assert isinstance(fact, Outcome)
            assert fact.agent == tasks[fact.task].agent
            assert attempts[fact.task] == fact.attempt
            assert (fact.task, fact.attempt) not in accepted  # I3
            accepted.add((fact.task, fact.attempt))
            is_open.remove(fact.task)
            failed_at[fact.task] = fact.at
            results[fact.task] = fact.result
        for effect in effects:
            match effect:
                case PublishStatus(str() as name, state) if state in SETTLED:
                    assert name not in states
                    assert name not in is_open
                    states[name] = str(state)
                    if state == "completed":
                        assert (name, attempts[name]) in accepted
                    elif state == "skipped":
                        assert may_run(tasks[name], states, results) is False
                    elif state == "failed" and attempts[name] == 0:
                        assert may_run(tasks[name], states, results) is None
                    is_stopped |= state == "failed" and name not in handled
                case PublishWork(name, attempt):
                    assert not is_stopped
                    assert not is_open & {name}
                    assert attempt == attempts[name] + 1 <= tasks[name].retry.max_attempts  # I5
                    if attempt == 1:
                        assert may_run(tasks[name], states, results) is True  # I4
                    else:
                        assert isinstance(fact, Due)
                        shortest = shortest_s(tasks[name].retry, attempt - 1) - 1e-6
                        assert not are_due_facts_in_time or fact.at >= failed_at[name] + shortest
                    attempts[name] = attempt
                    is_open.add(name)
                case PublishFinished(state):
                    assert not is_open  # the barrier
                    assert states.keys() == tasks.keys()
                    assert (state == "completed") is not is_stopped
                    is_over = True
    assert is_over or not are_due_facts_in_time


def may_run(task: TaskDefinition, states: dict[str, str], results: dict[str, Any]) -> bool | None:
    """Whether a task may run by its upstream tasks and its condition; None: the condition has no answer."""
    upstream = [states[above] for above in task.depends_on]  # KeyError: one is not settled
    holds = {
        RunWhen.DEFAULT: not upstream or ("failed" not in upstream and "completed" in upstream),
        RunWhen.ALL_COMPLETED: all(state == "completed" for state in upstream),
        RunWhen.ANY_COMPLETED: not upstream or "completed" in upstream,
        RunWhen.ALL_SETTLED: True,
        RunWhen.ANY_FAILED: "failed" in upstream,
    }[task.run_when]
    if not holds or task.condition is None:
        return holds
    first = task.depends_on[0] if task.depends_on else ""
    (answer,) = [answer for source, answer in CONDITIONS.items() if source.format(u=first) == task.condition]
    return answer(states.get(first, ""), results.get(first))


def shortest_s(retry: RetryDefinition, attempt: int) -> float:
    """The least time between the failure of an attempt and the next; an agent's `retry_after` here is longer."""
    factor = {Backoff.FIXED: 1.0, Backoff.LINEAR: attempt, Backoff.EXPONENTIAL: retry.multiplier ** (attempt - 1)}
    return min(retry.initial_delay * factor[retry.backoff], retry.max_delay) * (1 - retry.jitter)
