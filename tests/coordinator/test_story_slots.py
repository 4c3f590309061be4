"""Concurrency keys: who has a slot, who waits, oldest first; and what an execution does that waits for one."""

import pytest
from infinity_matrix_actors.definition import SlotsDefinition, WorkflowDefinition
from infinity_matrix_actors.fact import ENTER_SIGNAL, LEAVE_SIGNAL, Signal
from infinity_matrix_coordinator.slots import LEFT_KEPT_S, SlotActor
from story import Story, task, undo, wait, workflow


class Key:
    """A key, told who comes and who goes."""

    def __init__(self, limit: int) -> None:
        self.actor = SlotActor()
        self.limit = limit
        self.facts: list[tuple[Signal, int]] = []

    def enters(self, ticket: str, limit: int | None = None) -> list[str]:
        data = {"execution": f"e-{ticket}", "max": limit or self.limit, "n": 1}
        return self._tell(Signal("im-key-1", 1000.0, ENTER_SIGNAL, ticket, data))

    def leaves(self, ticket: str) -> list[str]:
        return self._tell(Signal("im-key-1", 1000.0, LEAVE_SIGNAL, ticket))

    def _tell(self, fact: Signal) -> list[str]:
        self.facts.append((fact, len(self.facts) + 1))
        return [ticket.id for ticket in self.actor.receive(*self.facts[-1])]


def test_as_many_have_a_slot_as_may_and_the_oldest_gets_the_next() -> None:
    key = Key(2)
    assert [key.enters(name) for name in "abcd"] == [["a"], ["b"], [], []]
    assert key.leaves("b") == ["c"]
    assert key.leaves("a") == ["d"]
    assert key.leaves("c") == key.leaves("d") == []
    assert key.actor.is_empty


def test_who_gives_up_waiting_gets_no_slot() -> None:
    key = Key(1)
    key.enters("a")
    key.enters("b")
    key.enters("c")
    assert key.leaves("b") == []
    assert key.leaves("a") == ["c"]


def test_who_left_before_it_came_gets_no_slot() -> None:
    key = Key(1)
    assert key.leaves("a") == []
    assert not key.actor.is_empty
    assert key.enters("a") == []
    assert key.enters("b") == ["b"]
    assert key.actor.is_empty is False


def test_whom_nobody_came_after_is_forgotten() -> None:
    key = Key(1)
    key.leaves("a")
    key.actor.forget_left(1000.0 + LEFT_KEPT_S - LEFT_KEPT_S)
    assert not key.actor.is_empty
    key.actor.forget_left(1001.0)
    assert key.actor.is_empty


def test_the_newest_definition_says_how_many() -> None:
    key = Key(1)
    key.enters("a")
    key.enters("b")
    assert key.enters("c", limit=3) == ["b", "c"]
    assert key.enters("d", limit=1) == []
    assert key.leaves("a") == key.leaves("b") == []
    assert key.leaves("c") == ["d"]


@pytest.mark.parametrize("again", ["a", "b"])
def test_who_asks_twice_has_one_place(again: str) -> None:
    key = Key(1)
    key.enters("a")
    key.enters("b")
    assert key.enters(again) == []
    assert key.leaves("a") == ["b"]
    assert key.leaves("b") == []
    assert key.actor.is_empty


def test_who_leaves_twice_frees_one_slot() -> None:
    key = Key(1)
    for name in "abc":
        key.enters(name)
    assert key.leaves("a") == ["b"]
    assert key.leaves("a") == []


@pytest.mark.parametrize("data", [None, 7, {}, {"execution": 7, "max": 1}, {"execution": "e", "max": "1"}])
def test_garbage_is_no_ticket(data: object) -> None:
    key = Key(1)
    assert key.actor.receive(Signal("im-key-1", 0.0, ENTER_SIGNAL, "x", data), 1) == []
    assert key.actor.is_empty


def test_a_new_owner_that_reads_from_the_position_comes_to_the_same() -> None:
    key = Key(2)
    for name in "abcdef":
        key.enters(name)
        if name in "bd":
            key.leaves("a" if name == "b" else "c")
    position = key.actor.position()
    assert position is not None
    assert position > 1
    other = SlotActor()
    for fact, sequence in key.facts:
        if sequence >= position:
            other.receive(fact, sequence)
    assert (list(other.running), list(other.waiting)) == (list(key.actor.running), list(key.actor.waiting))


def limited(**fields: object) -> WorkflowDefinition:
    slots = SlotsDefinition(2, "input.customer")
    return workflow(task("a"), task("b", "a"), slots=slots, **fields)


def test_nothing_begins_before_there_is_a_slot() -> None:
    Story(limited(), {"customer": "acme"}).check(
        """
        started -> slot acme 2 1
        slot    -> work a.1
        a ok    -> work b.1
        b ok    -> finished completed
        """
    )


def test_without_a_key_all_executions_share_the_slots() -> None:
    Story(workflow(task("a"), slots=SlotsDefinition(1))).check(
        """
        started -> slot - 1 1
        slot    -> work a.1
        """
    )


@pytest.mark.parametrize("again", ["slot", "started", "slot 2", "slot 7"])
def test_a_slot_is_got_once(again: str) -> None:
    story = Story(limited(), {"customer": "acme"}).tells("started", "slot")
    before = story.actor.record()
    assert story.tell(again) == []
    assert story.actor.record() == before


def test_a_key_that_has_no_answer_fails_the_execution() -> None:
    story = Story(limited(), {}).check("started -> finished failed")
    assert "customer" in str(story.actor.error)


def test_a_cancel_ends_who_waits_for_a_slot() -> None:
    Story(limited(), {"customer": "acme"}).check(
        """
        started -> slot acme 2 1
        cancel  -> finished cancelled | a cancelled
        slot    ->
        """
    )


def test_who_was_cancelled_while_it_waited_asks_again_when_it_is_taken_up() -> None:
    Story(limited(), {"customer": "acme"}).check(
        """
        started  -> slot acme 2 1
        cancel   -> finished cancelled
        finished ->
        retry    -> slot acme 2 2
        slot 1   ->
        slot 2   -> work a.1
        a ok     -> work b.1
        b ok     -> finished completed
        """
    )


def test_who_failed_gave_its_slot_back_and_asks_for_another() -> None:
    Story(limited(), {"customer": "acme"}).check(
        """
        started  -> slot acme 2 1
        slot     -> work a.1
        a ok     -> work b.1
        b fatal  -> finished failed
        finished ->
        retry    -> slot acme 2 2
        slot     -> work b.2
        b ok     -> finished completed
        """
    )


def test_a_timeout_while_it_waits_for_a_slot_ends_it_with_all_that_follows() -> None:
    story = Story(limited(timeout=60.0, on_failure=(undo(None, "tell"),)), {"customer": "acme"}).tells("started")
    assert story.timer(None, 60.0)[0] == "deadline"
    # What winds it up needs no slot, and gets none.
    story.check(
        """
        +60 deadline -> work tell.1
        slot         ->
        tell ok      -> finished failed
        """
    )


def test_a_run_that_fails_while_it_waits_for_its_slot_again_ends() -> None:
    definition = workflow(
        task("a"),
        wait("w", wait_for="go", timeout=10.0),
        slots=SlotsDefinition(1),
        on_failure=(undo("a", "undo-a"), undo(None, "tell")),
    )
    story = Story(definition).tells("started", "slot", "a fatal", "tell ok", "finished", "retry")
    attempt = story.actor.tasks["w"].attempt
    story.check(
        f"""
        +10 w due {attempt + 1} -> work tell.2
        slot                    ->
        tell ok                 -> finished failed
        """
    )


def test_a_pause_while_it_waits_for_a_slot_holds_it_still_when_it_has_one() -> None:
    Story(limited(), {"customer": "acme"}).check(
        """
        started -> slot acme 2 1
        pause   ->               | =paused
        slot    ->               | a waiting
        resume  -> work a.1      | =running
        """
    )
    Story(limited(), {"customer": "acme"}).check(
        """
        started -> slot acme 2 1
        pause   ->
        resume  ->               | =running
        slot    -> work a.1
        """
    )
