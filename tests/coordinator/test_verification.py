"""The history checker: it finds nothing in what was allowed, and names each rule by the log that breaks only it."""

import ast
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
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
from infinity_matrix_bus.artifacts import reference_to
from infinity_matrix_bus.codec import encode
from infinity_matrix_coordinator import verification
from infinity_matrix_coordinator.slots import KEY_PREFIX
from infinity_matrix_coordinator.verification import (
    INVARIANTS,
    AgentLine,
    ClientLine,
    History,
    QueuedWork,
    Violation,
    partly_checked,
    verify,
)
from test_execution_properties import CONDITIONS, INPUT
from world import AGENT, EXECUTION, World

BOOM = Error("boom", "it broke")
WORKFLOW = WorkflowDefinition(
    "w",
    (
        TaskDefinition("a", "agent-a"),
        TaskDefinition("b", "agent-b", ("a",), retry=RetryDefinition(2, Backoff.FIXED, initial_delay=2.0, jitter=0.0)),
        TaskDefinition("c", "agent-c", ("a",), condition="tasks['a'].result > 1"),
    ),
    on_failure=(TaskDefinition("undo-a", "agent-a", compensates="a"), TaskDefinition("undo-b", "", compensates="b")),
)
WORKFLOW = replace(WORKFLOW, on_failure=(WORKFLOW.on_failure[0], replace(WORKFLOW.on_failure[1], agent="agent-b")))
DIGEST = WORKFLOW.digest()
DONE, UNDONE, CLOSED = "done", "undone", "closed"


def outcome(execution: str, at: float, task: str, attempt: int = 1, **fields: Any) -> Outcome:
    return Outcome(execution, at, f"agent-{task[-1]}", task, attempt, **fields)


def numbered(*facts: Fact) -> list[tuple[int, Fact]]:
    """Facts of one execution, with room for others between them in the log."""
    return [(10 * (number + 1), fact) for number, fact in enumerate(facts)]


def allowed() -> History:
    """Three executions as they should be: one with a retry and a skipped task, one undone, one cancelled."""
    done = numbered(
        Started(
            DONE, 100.0, "w", DIGEST, cause={"schedule": "nightly", "due": "2026-01-01T02:00:00Z", "by": "schedule"}
        ),
        Taken(DONE, 101.0, "agent-a", "a", 1),
        outcome(DONE, 102.0, "a", result=1),
        outcome(DONE, 103.0, "b", error=BOOM),
        Due(DONE, 105.0, "b", 2),
        outcome(DONE, 106.0, "b", 2, result="b"),
        Finished(DONE, 106.1, 1, "completed"),
    )
    undone = numbered(
        Started(
            UNDONE, 200.0, "w", DIGEST, cause={"schedule": "nightly", "due": "2026-01-02T02:00:00Z", "by": "schedule"}
        ),
        outcome(UNDONE, 201.0, "a", result=2),
        outcome(UNDONE, 202.0, "c", result="c"),
        outcome(UNDONE, 203.0, "b", error=BOOM),
        Due(UNDONE, 205.0, "b", 2),
        outcome(UNDONE, 206.0, "b", 2, error=BOOM),
        outcome(UNDONE, 207.0, "undo-a", result=None),
        Finished(UNDONE, 207.1, 1, "failed", {**BOOM.record(), "task": "b"}, "complete", ("a",)),
    )
    cancelled = Error("cancelled", "stopped", retryable=False)
    closed = numbered(
        Started(CLOSED, 300.0, "w", DIGEST),
        outcome(CLOSED, 301.0, "a", result=2),
        Command(CLOSED, 302.0, CommandKind.CANCEL, "1", "enough"),
        outcome(CLOSED, 303.0, "c", result="c"),
        outcome(CLOSED, 312.0, "b", error=cancelled, closed=True),
        Due(CLOSED, 342.0, "undo-b", 1),
        outcome(CLOSED, 343.0, "undo-b"),
        outcome(CLOSED, 344.0, "undo-a"),
        Finished(CLOSED, 344.1, 1, "cancelled", {"type": "cancelled", "message": "enough"}, "complete", ("b", "a")),
    )
    facts = {DONE: done, UNDONE: undone, CLOSED: closed}
    journal = [
        AgentLine("began", fact.execution, fact.task, fact.attempt, fact.at - 0.5, 1)
        for facts_of_one in facts.values()
        for _, fact in facts_of_one
        if isinstance(fact, Outcome)
    ]
    clients = [
        ClientLine("start", DONE),
        ClientLine("update", DONE, task="a", state="queued", attempt=1),
        ClientLine("update", DONE, task="a", state="completed", attempt=1),
        ClientLine("update", DONE, state="completed"),
        ClientLine("ended", DONE, state="completed", data={"a": 1, "b": "b"}),
        ClientLine("metrics", DONE, data={"attempts": 3, "completed": 2, "failed": 0, "skipped": 1}),
        ClientLine("start", "refused", "unknown"),
    ]
    return History(facts, {DIGEST: WORKFLOW}, journal, clients, queue_read_at=1000.0, is_over=True)


def change(history: History, execution: str, place: int, **fields: Any) -> None:
    sequence, fact = history.facts[execution][place]
    history.facts[execution][place] = (sequence, replace(fact, **fields))


def insert(history: History, execution: str, sequence: int, fact: Fact) -> None:
    history.facts[execution] = sorted([*history.facts[execution], (sequence, fact)], key=lambda entry: entry[0])


def tell(history: History, *lines: ClientLine) -> None:
    history.clients = [*history.clients, *lines]


def make_large(history: History, value: Any) -> None:
    """Puts a value that no message holds, and its hash stands for, in place of the result of `a`."""
    data = encode(value)
    change(history, DONE, 2, result=reference_to(sha256(data).hexdigest(), len(data)))


def begin(history: History, task: str, at: float) -> None:
    assert history.journal is not None
    history.journal.append(AgentLine("began", DONE, task, 1, at, 1))


def lose_line(history: History, task: str) -> None:
    history.journal = [line for line in history.journal or () if line.task != task]


def swap(history: History, execution: str, one: int, other: int) -> None:
    """Two facts in each other's place, with the times and sequences of that place."""
    facts = history.facts[execution]
    (first, fact), (second, later) = facts[one], facts[other]
    facts[one], facts[other] = (first, replace(later, at=fact.at)), (second, replace(fact, at=later.at))
    if history.journal is not None:
        outcomes = history.outcomes()
        history.journal = [
            line._replace(at=outcomes[line.execution, line.task, line.attempt].at - 0.5) for line in history.journal
        ]


def third_attempt(history: History) -> None:
    insert(history, UNDONE, 61, Due(UNDONE, 206.4, "b", 3))
    history.facts[UNDONE].pop(6)
    insert(history, UNDONE, 62, Taken(UNDONE, 206.5, "agent-b", "b", 3))


def cancel_of(execution: str, at: float) -> Command:
    return Command(execution, at, CommandKind.CANCEL, "2")


def undo_in_vain(history: History) -> None:
    insert(history, UNDONE, 75, Taken(UNDONE, 207.05, "agent-b", "undo-b", 1))


def close_early(history: History) -> None:
    change(history, DONE, 3, closed=True)
    swap(history, DONE, 2, 3)
    history.journal = [line for line in history.journal or () if (line.task, line.attempt) != ("b", 1)]


def acknowledge(history: History, task: str, attempt: int = 1, sequence: int = 0, state: str = "") -> None:
    assert history.journal is not None
    history.journal.append(AgentLine("acknowledged", DONE, task, attempt, 103.0, 1, sequence, state))


def show(history: History, execution: str, task: str, state: str, attempt: int = 1) -> None:
    tell(history, ClientLine("update", execution, task=task, state=state, attempt=attempt))


def retry_of(execution: str, at: float) -> Command:
    return Command(execution, at, CommandKind.RETRY, "1")


def hold_slot(history: History, *tickets: str) -> None:
    """The first has the slot of a key, and the others wait for it."""
    key = f"{KEY_PREFIX}k"
    history.facts[key] = [
        (10 * (number + 1), Signal(key, 300.0, "im-enter", id, {"execution": CLOSED, "max": 1, "n": int(id)}))
        for number, id in enumerate(tickets)
    ]


def tell_early(history: History) -> None:
    """An end of one that still runs, and may."""
    history.is_over = False
    del history.facts[DONE][4:]
    history.clients = [ClientLine("ended", DONE, state="completed")]


def lose_signal(history: History) -> None:
    insert(history, DONE, 75, Signal(DONE, 107.0, "go", "1"))
    tell(history, ClientLine("signal", DONE, id="1"), ClientLine("signal", DONE, id="2"))


def lose_cancel(history: History) -> None:
    # One that comes after the end, so that nothing follows from it.
    insert(history, DONE, 75, Command(DONE, 107.0, CommandKind.RETRY, "1"))
    tell(history, ClientLine("retry", DONE, id="1"), ClientLine("cancel", DONE))


def retry_completed(history: History) -> None:
    insert(history, DONE, 75, Command(DONE, 107.0, CommandKind.RETRY, "1"))
    insert(history, DONE, 80, Finished(DONE, 107.0, 2, "completed"))


DOCTORED: list[tuple[str, str, Callable[[History], object]]] = [
    ("I1", "never ends", lambda h: h.facts[CLOSED].pop()),
    ("I1", "is taken up again and never ends", lambda h: insert(h, UNDONE, 85, retry_of(UNDONE, 208.0))),
    ("I2", "ends twice", lambda h: insert(h, DONE, 80, Finished(DONE, 107.0, 2, "completed"))),
    ("I2", "ends again after a retry that nothing follows from", retry_completed),
    ("I2", "begins with its second end", lambda h: change(h, DONE, 6, n=2)),
    ("I2", "goes on although it was skipped", lambda h: change(h, DONE, 0, skipped=True)),
    ("I3", "has an outcome twice", lambda h: insert(h, DONE, 35, outcome(DONE, 102.5, "a", result=7))),
    ("I3", "runs on after a completion", lambda h: change(h, DONE, 3, error=None, result="b")),
    ("I3", "began after its outcome", lambda h: begin(h, "a", 102.5)),
    (
        "I3",
        "shows a client another result",
        lambda h: tell(h, ClientLine("ended", DONE, state="completed", data={"a": 2})),
    ),
    ("I3", "shows a client another large result", lambda h: make_large(h, 2)),
    ("I3", "tells a client another end", lambda h: tell(h, ClientLine("ended", DONE, state="failed"))),
    ("I3", "tells a client an end it has not", tell_early),
    (
        "I3",
        "gives a client a result of a task that has none",
        lambda h: tell(h, ClientLine("ended", DONE, state="completed", data={"c": 5})),
    ),
    ("I3", "shows at last that what completed failed", lambda h: show(h, DONE, "b", "failed", 2)),
    ("I3", "shows at last that what was skipped completed", lambda h: show(h, DONE, "c", "completed")),
    ("I3", "shows at last that what was undone was not", lambda h: show(h, UNDONE, "undo-a", "failed")),
    ("I3", "shows at last another end", lambda h: tell(h, ClientLine("update", UNDONE, state="completed"))),
    ("I4", "begins before its upstream", lambda h: insert(h, DONE, 25, Taken(DONE, 101.5, "agent-b", "b", 1))),
    ("I4", "begins what its condition skips", lambda h: insert(h, DONE, 35, Taken(DONE, 102.5, "agent-c", "c", 1))),
    ("I4", "begins after it was stopped", lambda h: insert(h, UNDONE, 15, cancel_of(UNDONE, 200.5))),
    ("I4", "began before its upstream, says the agent", lambda h: begin(h, "b", 101.0)),
    ("I5", "tries again too often", third_attempt),
    ("I5", "tries again too early", lambda h: change(h, DONE, 4, at=104.0)),
    ("I5", "tries again without a due", lambda h: h.facts[DONE].pop(4)),
    ("I6", "undoes before the barrier", lambda h: swap(h, CLOSED, 4, 7)),
    ("I6", "undoes in the forward order", lambda h: swap(h, CLOSED, 6, 7)),
    ("I6", "undoes without need", lambda h: insert(h, DONE, 65, Taken(DONE, 106.05, "agent-a", "undo-a", 1))),
    ("I6", "undoes what was never done", undo_in_vain),
    ("I6", "forgets to undo", lambda h: h.facts[UNDONE].pop(6)),
    ("I6", "says another order", lambda h: change(h, CLOSED, 8, compensated=("a", "b"))),
    ("I6", "says incomplete", lambda h: change(h, UNDONE, 7, compensation="incomplete")),
    ("I7", "lost an attempt's outcome", lambda h: h.facts[DONE].pop(3)),
    ("I7", "lost an acknowledged start", lambda h: tell(h, ClientLine("start", "lost"))),
    ("I7", "lost an acknowledged signal", lambda h: tell(h, ClientLine("signal", DONE))),
    ("I7", "lost one of two acknowledged signals", lose_signal),
    ("I7", "lost an acknowledged cancel, and has another command", lose_cancel),
    ("I7", "lost an acknowledged outcome", lambda h: acknowledge(h, "c")),
    ("I7", "has another outcome than was acknowledged", lambda h: acknowledge(h, "b", state="completed")),
    ("I7", "has something else where it was acknowledged", lambda h: acknowledge(h, "b", 2, sequence=70)),
    ("I8", "has no start", lambda h: h.facts.update(half=h.facts[DONE][1:2])),
    ("I8", "started twice", lambda h: insert(h, DONE, 15, Started(DONE, 100.5, "w", DIGEST))),
    ("I8", "has another input", lambda h: tell(h, ClientLine("start", DONE, "unknown", data={"other": 1}))),
    ("I8", "has another input than was acknowledged", lambda h: tell(h, ClientLine("start", DONE, data={"other": 1}))),
    ("I9", "goes back", lambda h: tell(h, ClientLine("update", DONE, task="a", state="running", attempt=1))),
    ("I9", "goes on after its end", lambda h: tell(h, ClientLine("update", DONE, state="running"))),
    ("I10", "starts a tick twice", lambda h: change(h, UNDONE, 0, cause=h.facts[DONE][0][1].cause)),  # type: ignore[union-attr]
    ("I11", "is due without a failure", lambda h: insert(h, DONE, 75, Due(DONE, 107.0, "a", 2))),
    ("I11", "is due before the failure", lambda h: swap(h, DONE, 3, 4)),
    ("I11", "closes what was not begun", close_early),
    ("I11", "ends before its last outcome", lambda h: swap(h, DONE, 5, 6)),
    (
        "I11",
        "meets a deadline it has not",
        lambda h: insert(h, DONE, 35, Command(DONE, 102.5, CommandKind.DEADLINE, "t")),
    ),
    ("I12", "ended otherwise", lambda h: change(h, UNDONE, 7, state="cancelled")),
    ("I12", "ended with another error", lambda h: change(h, UNDONE, 7, error=None)),
    ("I13", "has another agent's outcome", lambda h: insert(h, DONE, 35, Outcome(DONE, 102.5, "thief", "c", 1))),
    ("I13", "has a task that is not its own", lambda h: insert(h, DONE, 35, Taken(DONE, 102.5, "agent-a", "d", 1))),
    ("I13", "has a result nobody began", lambda h: lose_line(h, "undo-b")),
    ("I14", "left work over", lambda h: setattr(h, "queued", [QueuedWork("agent-b", CLOSED, "b", 1)])),
    ("I14", "left its checkpoint", lambda h: setattr(h, "checkpoints", [CLOSED])),
    ("I14", "left its slot held", lambda h: hold_slot(h, "1")),
    ("I15", "shows other metrics", lambda h: tell(h, ClientLine("metrics", DONE, data={"attempts": 2}))),
]


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
