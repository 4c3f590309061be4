"""The history checker: it finds nothing in what was allowed, and names each rule by the log that breaks only it."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from doctored_logs import (
    BOOM,
    CLOSED,
    DIGEST,
    DOCTORED,
    DONE,
    UNDONE,
    WORKFLOW,
    acknowledge,
    allowed,
    begin,
    change,
    hold_slot,
    insert,
    make_large,
    numbered,
    outcome,
    retry_of,
    show,
    swap,
    tell,
)
from infinity_matrix_actors.definition import (
    Backoff,
    CompensateWhen,
    RetryDefinition,
    RunWhen,
    TaskDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.fact import Command, CommandKind, Due, Fact, Finished, Outcome, Signal, Started, Taken
from infinity_matrix_actors.fact import TaskError as Error
from infinity_matrix_coordinator import verification
from infinity_matrix_coordinator.slots import KEY_PREFIX
from infinity_matrix_coordinator.verification import (
    INVARIANTS,
    ClientLine,
    History,
    QueuedWork,
    Violation,
    partly_checked,
    verify,
)
from test_execution_properties import CONDITIONS, INPUT
from world import AGENT, EXECUTION, World


def test_what_was_allowed_is_found_to_be_so() -> None:
    history = allowed()
    assert verify(history) == []
    assert partly_checked(history) == []
    assert history.open() == []


def test_a_client_is_shown_the_value_that_a_large_results_hash_stands_for() -> None:
    history = allowed()
    make_large(history, 1)
    assert verify(history) == []


def test_an_end_is_told_once_it_is_decided_and_before_it_is_written() -> None:
    history = allowed()
    history.is_over = False
    history.facts[DONE].pop()
    assert verify(history) == []


def test_a_slot_that_was_let_go_or_given_out_a_moment_ago_is_not_left_over() -> None:
    history = allowed()
    hold_slot(history, "1")
    key = f"{KEY_PREFIX}k"
    insert(history, key, 20, Signal(key, 345.0, "im-leave", "1"))
    assert verify(history) == []
    hold_slot(history, "1", "2")
    insert(history, key, 30, Signal(key, 950.0, "im-leave", "1"))
    assert verify(history) == []
    history.queue_read_at = 1100.0
    assert [found.invariant for found in verify(history)] == ["I14"]


def test_what_was_undone_and_closed_is_shown_so() -> None:
    history = allowed()
    show(history, UNDONE, "b", "failed", 2)
    show(history, UNDONE, "undo-a", "completed")
    show(history, CLOSED, "b", "cancelled")
    tell(history, ClientLine("update", CLOSED, state="cancelled"))
    assert verify(history) == []


def test_what_was_acknowledged_is_found_where_it_was_said_to_be() -> None:
    history = allowed()
    acknowledge(history, "b", sequence=40, state="failed")
    acknowledge(history, "b", 2, sequence=60, state="completed")
    acknowledge(history, "a")
    assert verify(history) == []


def test_an_agent_that_died_before_it_acknowledged_what_it_had_done_breaks_no_rule() -> None:
    history = allowed()
    history.queued = [QueuedWork("agent-b", DONE, "b", 1)]
    assert verify(history) == []


@pytest.mark.parametrize(("invariant", "what", "doctor"), DOCTORED, ids=[f"{one}: {what}" for one, what, _ in DOCTORED])
def test_a_log_that(invariant: str, what: str, doctor: Callable[[History], object]) -> None:
    history = allowed()
    doctor(history)
    found = verify(history)
    assert {violation.invariant for violation in found} == {invariant}, "\n".join(map(str, found))


def test_every_invariant_has_a_log_that_breaks_only_it() -> None:
    # What concerns children has logs of its own.
    assert {invariant for invariant, _, _ in DOCTORED} == set(INVARIANTS) - {"I16"}


def test_a_violation_says_where_it_is() -> None:
    history = allowed()
    history.facts[DONE].pop(3)
    (violation,) = verify(history)
    assert violation == Violation("I7", DONE, "attempt 2 has no outcome of the one before it", "b", 50 + 10)
    assert str(violation) == "I7 done b: attempt 2 has no outcome of the one before it (sequence 60)"


def test_open_executions_are_no_violation_while_there_is_time() -> None:
    history = allowed()
    history.is_over = False
    history.clients = ()
    for facts in history.facts.values():
        while len(facts) > 1:
            facts.pop()
            history.journal = None
            assert verify(history) == []
    assert set(history.open()) == {DONE, UNDONE, CLOSED}


def test_without_its_beginning_a_log_may_lack_starts() -> None:
    history = allowed()
    history.clients, history.journal = (), None
    del history.facts[DONE][0]
    assert {violation.invariant for violation in verify(history)} == {"I8"}
    history.is_whole = False
    assert verify(history) == []


def test_what_is_not_understood_is_said_to_be_checked_in_part() -> None:
    history = allowed()
    insert(history, DONE, 15, Signal(DONE, 100.5, "im-other", "1"))
    assert partly_checked(history) == [DONE]
    history.definitions.clear()
    assert set(partly_checked(history)) == {DONE, UNDONE, CLOSED}
    change(history, DONE, 7, n=2)
    assert {violation.invariant for violation in verify(history)} == {"I2"}


def random_definition(random: Random) -> WorkflowDefinition:
    """A workflow of up to ten tasks, with conditions, retries, timeouts and compensations."""
    tasks: list[TaskDefinition] = []
    for number in range(random.randint(1, 10)):
        names = [task.id for task in tasks]
        upstream = tuple(random.sample(names, min(len(names), random.randint(0, 3))))
        condition = random.choice(list(CONDITIONS) if upstream else list(CONDITIONS)[:2])
        retry = RetryDefinition(
            random.choice((1, 1, 2, 3)),
            random.choice(list(Backoff)),
            initial_delay=random.choice((0.0, 1.0, 4.0)),
            max_delay=5.0,
            jitter=random.choice((0.0, 0.2)),
            non_retryable=random.choice(((), ("bad-input",))),
        )
        tasks.append(
            TaskDefinition(
                f"t{number}",
                AGENT,
                upstream,
                condition=condition.format(u=upstream[0] if upstream else "") if random.random() < 0.3 else None,
                run_when=random.choice((RunWhen.DEFAULT, RunWhen.DEFAULT, *RunWhen)),
                retry=retry,
                timeout=random.choice((None, None, 5.0)),
                queue_timeout=random.choice((None, None, 8.0)),
                total_timeout=random.choice((86_400.0, 86_400.0, 20.0)),
            )
        )
    undoing = [
        TaskDefinition(
            f"undo-{task.id}",
            AGENT,
            compensates=task.id,
            compensate_when=random.choice(list(CompensateWhen)),
            retry=RetryDefinition(random.choice((1, 3)), initial_delay=1.0),
        )
        for task in tasks
        if random.random() < 0.5
    ]
    undoing += [TaskDefinition(f"plain{number}", AGENT) for number in range(random.randint(0, 2))]
    random.shuffle(undoing)
    timeout = random.choice((None, None, 15.0))
    return WorkflowDefinition("w", tuple(tasks), timeout=timeout, grace=5.0, on_failure=tuple(undoing))


def history_of(world: World) -> History:
    """The log of a world; its owners write no more of an end than its state and error."""
    facts: list[tuple[int, Fact]] = []
    for number, fact in enumerate(world.log.facts):
        if isinstance(fact, Finished):
            end = world.endings[0]
            fact = replace(fact, compensation=end.compensation, compensated=end.compensated)
        facts.append((number + 1, fact))
    return History({EXECUTION: facts}, {world.plan.digest: world.plan.definition}, is_over=True)


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_nothing_is_found_in_what_two_owners_and_their_agents_did(first: int) -> None:
    undone = 0
    for seed in range(first, first + 100):
        random = Random(seed)
        world = World(random_definition(random), seed, INPUT)
        world.chaos(random.randrange(600), cancel_at=random.choice((None, None, None, 0, 2, 20, 100)))
        world.calm()
        history = history_of(world)
        assert verify(history) == [], f"seed {seed}"
        assert partly_checked(history) == []
        undone += any(isinstance(fact, Finished) and bool(fact.compensated) for _, fact in history.facts[EXECUTION])
    assert undone > 10


def test_a_fact_that_is_lost_is_missed_in_almost_every_history() -> None:
    lost = missed = 0
    for seed in range(150):
        random = Random(seed)
        world = World(random_definition(random), seed, INPUT)
        world.chaos(random.randrange(600))
        world.calm()
        history = history_of(world)
        facts = history.facts[EXECUTION]
        places = [place for place, (_, fact) in enumerate(facts) if isinstance(fact, Outcome | Started | Finished)]
        del facts[random.choice(places)]
        lost += 1
        missed += bool(verify(history))
    # What was lost may have changed nothing: the last attempt of two that failed, say.
    assert missed > 0.95 * lost


def test_an_execution_that_was_taken_up_again_may_end_again() -> None:
    history = allowed()
    history.clients, history.journal = (), None
    again = [
        Command(UNDONE, 208.0, CommandKind.RETRY, "1"),
        outcome(UNDONE, 209.0, "a", 2, result=2),
        outcome(UNDONE, 210.0, "b", 3, result="b"),
        outcome(UNDONE, 211.0, "c", 2, result="c"),
    ]
    for number, fact in enumerate(again):
        insert(history, UNDONE, 100 + number, fact)
    assert (history.open(), [found.invariant for found in verify(history)]) == ([UNDONE], ["I1"])
    history.is_over = False
    assert verify(history) == []
    history.is_over = True
    insert(history, UNDONE, 110, Finished(UNDONE, 211.1, 2, "completed"))
    assert verify(history) == []
    change(history, UNDONE, 12, state="failed")
    assert [found.invariant for found in verify(history)] == ["I12"]
    change(history, UNDONE, 12, state="completed", n=3)
    assert [found.invariant for found in verify(history)] == ["I2"]


@pytest.mark.parametrize(
    ("invariant", "facts"),
    [
        ("I4", [outcome(UNDONE, 209.0, "b", 3, result="b")]),
        ("I5", [outcome(UNDONE, 209.0, "a", 2, result=2), outcome(UNDONE, 210.0, "b", 9, result="b")]),
        ("I6", [outcome(UNDONE, 209.0, "a", 2, result=2), outcome(UNDONE, 210.0, "undo-b", 1)]),
        ("I11", [outcome(UNDONE, 209.0, "a", 2, result=2), Finished(UNDONE, 210.0, 2, "completed")]),
        ("I11", [outcome(UNDONE, 209.0, "a", 2, error=BOOM), Due(UNDONE, 210.0, "a", 3)]),
    ],
)
def test_what_was_taken_up_again_does_only_what_was_asked_for(invariant: str, facts: list[Fact]) -> None:
    history = allowed()
    history.clients, history.journal = (), None
    history.is_over = False
    for number, fact in enumerate([retry_of(UNDONE, 208.0), *facts]):
        insert(history, UNDONE, 100 + number, fact)
    found = verify(history)
    assert {violation.invariant for violation in found} == {invariant}, "\n".join(map(str, found))


def test_what_was_cancelled_before_its_start_begins_nothing() -> None:
    facts = numbered(
        Command(CLOSED, 299.0, CommandKind.CANCEL, "1", "enough"),
        Started(CLOSED, 300.0, "w", DIGEST),
        Finished(CLOSED, 300.1, 1, "cancelled", {"type": "cancelled", "message": "enough"}),
    )
    history = History({CLOSED: facts}, {DIGEST: WORKFLOW}, is_over=True)
    assert (verify(history), partly_checked(history)) == ([], [])
    insert(history, CLOSED, 25, Taken(CLOSED, 300.05, "agent-a", "a", 1))
    assert [found.invariant for found in verify(history)] == ["I4"]


def test_what_is_undone_may_be_given_up_before_its_attempts_are_spent() -> None:
    retry = RetryDefinition(5, Backoff.FIXED, initial_delay=2.0, jitter=0.0)
    undo = replace(WORKFLOW.on_failure[0], retry=retry, total_timeout=2.5)
    workflow = replace(WORKFLOW, on_failure=(undo,))
    history = allowed()
    history.definitions[workflow.digest()] = workflow
    change(history, UNDONE, 0, definition=workflow.digest())
    change(history, UNDONE, 6, error=BOOM)
    change(history, UNDONE, 7, compensation="incomplete", compensated=())
    assert verify(history) == []
    # With more time another attempt had to follow.
    longer = replace(workflow, on_failure=(replace(undo, total_timeout=3.5),))
    history.definitions[longer.digest()] = longer
    change(history, UNDONE, 0, definition=longer.digest())
    assert {found.invariant for found in verify(history)} == {"I6"}


def test_the_systems_own_agents_and_instances_may_say_something() -> None:
    history = allowed()
    history.journal = None
    insert(history, DONE, 35, Outcome(DONE, 102.5, "im-notify", "im-call~1", 1))
    insert(history, DONE, 36, Outcome(DONE, 102.5, "agent-c", "c~0", 1))
    assert verify(history) == []
    insert(history, DONE, 37, Outcome(DONE, 102.5, "thief", "c~1", 1))
    assert [found.invariant for found in verify(history)] == ["I13"]


def test_a_tick_may_be_asked_for_again_and_again() -> None:
    history = allowed()
    for execution in (DONE, UNDONE):
        change(history, execution, 0, cause={"schedule": "nightly", "due": "2026-01-01T02:00:00Z", "by": "backfill"})
    assert verify(history) == []
    for execution in (DONE, UNDONE):
        change(history, execution, 0, cause={"trigger": "order.made", "sequence": "7"})
    assert [found.invariant for found in verify(history)] == ["I10"]


@pytest.mark.parametrize(
    ("invariant", "doctor"),
    [
        ("I3", lambda h: change(h, DONE, 3, error=None, result="b")),
        ("I4", lambda h: swap(h, DONE, 2, 3)),
        ("I5", lambda h: insert(h, UNDONE, 62, outcome(UNDONE, 206.5, "b", 3, error=BOOM))),
        ("I5", lambda h: swap(h, UNDONE, 3, 5)),
        ("I6", lambda h: insert(h, CLOSED, 35, Taken(CLOSED, 302.5, "agent-b", "b", 1)) or swap(h, CLOSED, 4, 7)),
        ("I7", lambda h: h.facts[DONE].pop(3)),
        ("I12", lambda h: change(h, UNDONE, 7, state="cancelled")),
        ("I13", lambda h: insert(h, DONE, 35, Outcome(DONE, 102.5, "thief", "c", 1))),
        # What nothing had asked for.
        ("I4", lambda h: insert(h, DONE, 35, outcome(DONE, 102.5, "c", result="c"))),
        ("I5", lambda h: change(h, DONE, 4, at=104.0)),
        ("I5", lambda h: h.facts[DONE].pop(4)),
        ("I6", lambda h: insert(h, DONE, 65, outcome(DONE, 106.05, "undo-a"))),
        ("I11", lambda h: h.facts[UNDONE].pop(6)),
        ("I11", lambda h: insert(h, DONE, 65, Due(DONE, 106.05, "a", 2))),
        ("I11", lambda h: insert(h, DONE, 35, Command(DONE, 102.5, CommandKind.DEADLINE, "timeout"))),
        ("I11", lambda h: swap(h, DONE, 5, 6)),
        ("I11", lambda h: insert(h, DONE, 35, outcome(DONE, 102.5, "c", error=BOOM, closed=True))),
        ("I11", lambda h: change(h, DONE, 3, error=Error("timed_out", "too long"), closed=True)),
    ],
)
def test_what_no_account_covers_keeps_at_least_the_rules_of_every_task(
    invariant: str, doctor: Callable[[History], object]
) -> None:
    history = allowed()
    history.clients, history.journal = (), None
    for execution in (DONE, UNDONE, CLOSED):
        # Of a kind that says nothing to the actor: a decision nobody waits for.
        insert(history, execution, 5, Signal(execution, 99.0, "im-other", "1"))
    assert verify(history) == []
    assert set(partly_checked(history)) == {DONE, UNDONE, CLOSED}
    for execution in (DONE, UNDONE, CLOSED):
        del history.facts[execution][0]
    doctor(history)
    for execution in (DONE, UNDONE, CLOSED):
        insert(history, execution, 5, Signal(execution, 99.0, "im-other", "1"))
    found = verify(history)
    assert {violation.invariant for violation in found} == {invariant}, "\n".join(map(str, found))


def test_who_asked_may_be_slow_to_begin() -> None:
    history = allowed()
    begin(history, "a", 104.0)
    assert [found.invariant for found in verify(history)] == ["I3"]
    history.journal_skew_s = 6.0
    assert verify(history) == []


def test_the_checker_is_pure_but_for_what_reads() -> None:
    banned = {"asyncio", "nats", "socket", "time", "random", "subprocess", "threading", "logging", "os"}
    modules = sorted(path for path in Path(verification.__file__).parent.glob("*.py") if path.name != "reading.py")
    assert len(modules) > 8
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {name.split(".")[0] for name in names} & banned, f"{path.name} imports {names}"
