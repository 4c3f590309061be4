"""The mailbox of a shard: who hears a fact, what is parked, what is isolated, and where to read from again."""

from dataclasses import replace

import pytest
from infinity_matrix_actors.effect import Effect, PublishFinished, PublishWork
from infinity_matrix_actors.fact import DECIDE_VERSION, Command, CommandKind, Fact, Finished, Outcome, Signal, Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_coordinator import mailbox as mailbox_module
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.mailbox import ORPHANS_KEPT_S, Mailbox
from story import AGENT, task, workflow

PLAN = Plan.of(workflow(task("a"), task("b", "a")))
HEAD = 1000  #: What `position` is given as the next sequence.


def started(execution: str, definition: str = PLAN.digest) -> Started:
    return Started(execution, 1.0, "w", definition)


def ok(execution: str, name: str) -> Outcome:
    return Outcome(execution, 2.0, AGENT, name, 1)


def cancel(execution: str, at: float = 0.5) -> Command:
    return Command(execution, at, CommandKind.CANCEL, "1")


def finished(execution: str) -> Finished:
    return Finished(execution, 3.0, 1, "completed")


def works(effects: list[Effect]) -> list[str]:
    return [effect.task for effect in effects if isinstance(effect, PublishWork)]


def filled(*facts: Fact, plans: dict[str, Plan] | None = None) -> Mailbox:
    """A mailbox that was given these facts, the first with sequence 1."""
    mailbox = Mailbox((plans if plans is not None else {PLAN.digest: PLAN}).get)
    for sequence, fact in enumerate(facts, 1):
        mailbox.deliver(fact, sequence)
    return mailbox


def test_each_fact_reaches_the_actor_of_its_execution_only() -> None:
    mailbox = filled(started("e1"), started("e2"))
    assert works(mailbox.deliver(ok("e2", "a"), 3)) == ["b"]
    assert mailbox.executions["e1"].open == {"a"}
    assert mailbox.executions["e2"].open == {"b"}


def test_an_actor_is_gone_once_its_end_is_a_fact_and_late_facts_are_dropped() -> None:
    mailbox = filled(started("e1"), ok("e1", "a"))
    assert any(isinstance(effect, PublishFinished) for effect in mailbox.deliver(ok("e1", "b"), 3))
    assert "e1" in mailbox.executions
    assert mailbox.deliver(finished("e1"), 4) == []
    assert not mailbox.executions
    for late in (ok("e1", "b"), cancel("e1"), finished("e1")):
        assert mailbox.deliver(late, 5) == []
    assert (mailbox.dropped, mailbox.executions, mailbox.parked) == (3, {}, {})
    assert mailbox.position(HEAD) == HEAD


def test_an_end_alone_is_remembered() -> None:
    mailbox = filled(finished("e1"))
    assert mailbox.deliver(ok("e1", "a"), 2) == []
    assert not mailbox.executions
    assert not mailbox.parked


def test_an_id_that_is_free_again_begins_anew() -> None:
    # The log takes one start of an id: a second one says that the first is in it no more.
    mailbox = filled(started("e1"), ok("e1", "a"), finished("e1"))
    assert works(mailbox.deliver(started("e1"), 40)) == ["a"]
    assert mailbox.position(HEAD) == 40


# Parked.


def test_what_ended_and_was_taken_up_again_while_it_was_parked_is_taken_up_here_too() -> None:
    facts = [started("e1"), ok("e1", "a"), finished("e1"), Command("e1", 4.0, CommandKind.RETRY, "1"), ok("e1", "b")]
    mailbox = filled(*facts, plans={})
    mailbox.unpark("e1", PLAN)
    assert not mailbox.executions
    assert [fact for _, fact in mailbox.reopening["e1"].facts] == facts[3:]
    assert mailbox.position(HEAD) == 4


def test_facts_wait_for_a_definition_that_is_not_readable_yet() -> None:
    plans: dict[str, Plan] = {}
    mailbox = filled(started("e1"), ok("e1", "a"), started("e2"), plans=plans)
    assert not mailbox.executions
    assert mailbox.awaited_definitions() == {PLAN.digest: ["e1", "e2"]}
    answers = mailbox.unpark("e1", PLAN)
    assert [(type(fact).__name__, works(effects)) for fact, effects in answers] == [
        ("Started", ["a"]),
        ("Outcome", ["b"]),
    ]
    assert mailbox.executions["e1"].open == {"b"}
    assert mailbox.awaited_definitions() == {PLAN.digest: ["e2"]}
    assert mailbox.unpark("e1", PLAN) == []


def test_one_definition_that_is_missing_holds_up_no_other_execution() -> None:
    mailbox = filled(started("e1", "unknown"), started("e2"))
    assert list(mailbox.executions) == ["e2"]
    assert mailbox.awaited_definitions() == {"unknown": ["e1"]}


def test_a_cancel_before_its_start_is_kept_and_nothing_begins() -> None:
    mailbox = filled(cancel("e1"))
    assert mailbox.awaited_definitions() == {}
    mailbox.deliver(started("e1"), 2)
    answers = mailbox.unpark("e1", PLAN)
    assert [type(fact).__name__ for fact, _ in answers] == ["Command", "Started"]
    execution = mailbox.executions["e1"]
    assert execution.state == "cancelled"
    assert [type(effect).__name__ for effect in execution.outstanding()] == ["PublishFinished"]
    assert {actor.attempt for actor in execution.tasks.values()} == {0}


def test_facts_without_a_start_are_not_lost_by_an_early_try_to_open_them() -> None:
    mailbox = filled(cancel("e1"))
    assert mailbox.unpark("e1", PLAN) == []
    mailbox.deliver(started("e1"), 2)
    mailbox.unpark("e1", PLAN)
    assert mailbox.executions["e1"].stopped_by == "cancelled"


def test_an_execution_that_ends_while_it_is_parked_opens_and_closes_at_once() -> None:
    mailbox = filled(started("e1"), ok("e1", "a"), ok("e1", "b"), finished("e1"), cancel("e1"), plans={})
    answers = mailbox.unpark("e1", PLAN)
    assert [type(fact).__name__ for fact, _ in answers] == ["Started", "Outcome", "Outcome", "Finished"]
    assert not mailbox.executions
    assert mailbox.position(HEAD) == HEAD


def test_orphans_are_dropped_after_an_hour_of_stream_time_and_counted() -> None:
    mailbox = filled(cancel("e1", at=10.0), Signal("e1", 11.0, "s", "1"), cancel("e2", at=50.0))
    mailbox.drop_orphans(10.0 + ORPHANS_KEPT_S)
    assert list(mailbox.parked) == ["e1", "e2"]
    mailbox.drop_orphans(10.1 + ORPHANS_KEPT_S)
    assert list(mailbox.parked) == ["e2"]
    assert mailbox.dropped == 2


def test_what_has_a_start_is_no_orphan_however_long_its_definition_takes() -> None:
    mailbox = filled(started("e1"), plans={})
    mailbox.drop_orphans(1e9)
    assert list(mailbox.parked) == ["e1"]


def test_orphans_have_a_limit_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_module, "ORPHAN_EXECUTIONS_MAX", 3)
    mailbox = filled(*(cancel(f"e{number}") for number in range(5)))
    assert list(mailbox.parked) == ["e2", "e3", "e4"]
    assert mailbox.dropped == 2


def test_a_start_is_never_dropped_for_the_limit_of_orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    # The one being parked once was itself the oldest without a start, and was lost for good.
    monkeypatch.setattr(mailbox_module, "ORPHAN_EXECUTIONS_MAX", 3)
    mailbox = filled(*(started(f"e{number}") for number in range(6)), plans={})
    assert sorted(mailbox.awaited_definitions()[PLAN.digest]) == [f"e{number}" for number in range(6)]
    assert mailbox.dropped == 0


# Quarantine.


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals named "poison" raise in whoever receives them."""
    receive = ExecutionActor.receive

    def receive_or_raise(actor: ExecutionActor, fact: Fact) -> list[Effect]:
        if isinstance(fact, Signal) and fact.name == "poison":
            raise RuntimeError("a fault of ours")
        return receive(actor, fact)

    monkeypatch.setattr(ExecutionActor, "receive", receive_or_raise)


@pytest.mark.usefixtures("poisoned")
def test_an_actor_that_raises_is_isolated_and_the_others_go_on() -> None:
    mailbox = filled(started("e1"), started("e2"), Signal("e1", 2.0, "poison", "1"))
    assert list(mailbox.quarantined) == ["e1"]
    assert mailbox.quarantined["e1"].reason == "RuntimeError: a fault of ours"
    assert mailbox.deliver(ok("e1", "a"), 4) == []
    assert works(mailbox.deliver(ok("e2", "a"), 5)) == ["b"]
    assert mailbox.dropped == 1


@pytest.mark.usefixtures("poisoned")
def test_a_quarantined_execution_is_read_from_its_start_again_until_someone_ends_it() -> None:
    mailbox = filled(started("e0"), finished("e0"), started("e1"), started("e2"), Signal("e1", 2.0, "poison", "1"))
    mailbox.deliver(finished("e2"), 6)
    assert mailbox.position(HEAD) == 3
    # Another owner, with the fix, ended it: nothing is left to resume.
    mailbox.deliver(finished("e1"), 7)
    assert not mailbox.quarantined
    assert mailbox.position(HEAD) == HEAD


@pytest.mark.usefixtures("poisoned")
def test_an_actor_that_raises_when_it_is_unparked_is_isolated_too() -> None:
    mailbox = filled(started("e1"), Signal("e1", 2.0, "poison", "1"), ok("e1", "a"), plans={})
    answers = mailbox.unpark("e1", PLAN)
    assert [type(fact).__name__ for fact, _ in answers] == ["Started", "Signal"]
    assert list(mailbox.quarantined) == ["e1"]
    assert mailbox.position(HEAD) == 1


# Position.


def test_the_position_is_the_start_of_the_oldest_open_execution() -> None:
    mailbox = filled(started("e1"), started("e2"), started("e3"))
    assert mailbox.position(HEAD) == 1
    mailbox.deliver(finished("e2"), 4)
    assert mailbox.position(HEAD) == 1
    mailbox.deliver(finished("e1"), 5)
    assert mailbox.position(HEAD) == 3
    mailbox.deliver(finished("e3"), 6)
    assert mailbox.position(HEAD) == HEAD


def test_what_is_parked_holds_the_position() -> None:
    mailbox = filled(cancel("e1"), started("e2", "unknown"), started("e3"))
    assert mailbox.position(HEAD) == 1
    mailbox.drop_orphans(1e9)
    assert mailbox.position(HEAD) == 2


def test_an_execution_that_was_opened_late_still_holds_the_position() -> None:
    # Opened after younger ones it once was overlooked, and its facts were passed over at the next takeover.
    plans: dict[str, Plan] = {}
    mailbox = filled(started("e1"), started("e2"), started("e3"), plans=plans)
    plans[PLAN.digest] = PLAN
    mailbox.deliver(started("e4"), 4)
    for execution in ("e2", "e1", "e3"):
        mailbox.unpark(execution, PLAN)
    assert mailbox.position(HEAD) == 1
    for sequence, (ended, position) in enumerate((("e1", 2), ("e4", 2), ("e2", 3), ("e3", HEAD)), 5):
        mailbox.deliver(finished(ended), sequence)
        assert mailbox.position(HEAD) == position


def test_executions_ended_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_module, "FINISHED_REMEMBERED_MAX", 2)
    mailbox = filled(*(finished(f"e{number}") for number in range(4)))
    mailbox.deliver(cancel("e3"), 5)
    assert (mailbox.dropped, list(mailbox.parked)) == (1, [])
    mailbox.deliver(cancel("e0"), 6)
    assert list(mailbox.parked) == ["e0"]


def test_facts_that_a_checkpoint_holds_are_not_folded_once_more() -> None:
    mailbox = filled(started("e1"))
    actor = mailbox.executions.pop("e1")
    actor.folded = 5
    mailbox.restored(actor)
    held, new = (Signal("e1", 2.0, "go", str(sequence), sequence) for sequence in (5, 6))
    mailbox.deliver(held, 5)
    assert not actor.signals
    mailbox.deliver(new, 6)
    assert [data for data, _ in actor.signals["go"]] == [6]


# Versions.


def of_another_version(execution: str) -> Started:
    return replace(started(execution), decide=DECIDE_VERSION + 1)


def test_an_execution_of_another_version_is_left_alone_and_holds_its_place_until_it_ends() -> None:
    mailbox = filled(cancel("e1"), of_another_version("e1"), started("e2"))
    assert mailbox.deliver(ok("e1", "a"), 4) == []
    assert mailbox.executions.keys() == {"e2"}
    assert mailbox.quarantined["e1"].reason == "decided by version 2, this is version 1"
    assert mailbox.position(HEAD) == 1
    mailbox.deliver(finished("e1"), 5)
    assert "e1" not in mailbox.quarantined
    assert mailbox.position(HEAD) == 3


def test_an_execution_of_another_version_that_is_taken_up_again_is_left_alone_too() -> None:
    mailbox = filled(of_another_version("e1"), finished("e1"))
    retry = Command("e1", 4.0, CommandKind.RETRY, "1")
    mailbox.deliver(retry, 3)
    facts: list[tuple[int, Fact]] = [(1, of_another_version("e1")), (2, finished("e1")), (3, retry)]
    mailbox.reopen("e1", facts, PLAN)
    assert not mailbox.executions
    assert mailbox.position(HEAD) == 3
    mailbox.deliver(replace(finished("e1"), n=2), 4)
    assert mailbox.position(HEAD) == HEAD
