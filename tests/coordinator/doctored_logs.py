"""A log in which all was allowed, and for each invariant what is done to it to break only that."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

from infinity_matrix_actors.definition import (
    Backoff,
    RetryDefinition,
    TaskDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.fact import Command, CommandKind, Due, Fact, Finished, Outcome, Signal, Started, Taken
from infinity_matrix_actors.fact import TaskError as Error
from infinity_matrix_bus.artifacts import reference_to
from infinity_matrix_bus.codec import encode
from infinity_matrix_coordinator.slots import KEY_PREFIX
from infinity_matrix_coordinator.verification import (
    AgentLine,
    ClientLine,
    History,
    QueuedWork,
)

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
