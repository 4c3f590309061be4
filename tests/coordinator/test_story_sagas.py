"""Sagas: what completed or is unknown is undone, in reverse order, after the barrier, and what failed is said."""

import itertools

import pytest
from infinity_matrix_actors.definition import CompensateWhen, TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.effect import TellAgents
from infinity_matrix_actors.fact import Outcome, TaskError
from story import AGENT, EXECUTION, START, Story, each, render, task, undo, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}
LEASE_S = 30.0
BROKEN = TaskError("boom", "it broke", retryable=False)


def chain(*undoing: TaskDefinition, **fields: object) -> WorkflowDefinition:
    """a, then b, then c."""
    return workflow(task("a"), task("b", "a"), task("c", "b"), on_failure=undoing, **fields)


def test_what_completed_is_undone_in_reverse_order() -> None:
    story = Story(chain(undo("a", "undo-a"), undo("b", "undo-b"), undo("c", "undo-c"))).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b ok      -> work c.1
        c fatal   -> work undo-b.1     | c failed, =compensating
        undo-b ok -> work undo-a.1     | undo-b completed
        undo-a ok -> finished failed   | =failed
        """
    )
    assert story.actor.compensated == ("b", "a")
    assert story.actor.compensation == "complete"


def test_a_task_that_never_ran_is_not_undone() -> None:
    story = Story(chain(undo("b", "undo-b"), undo("c", "undo-c"))).check(
        """
        started -> work a.1
        a fatal -> finished failed | b cancelled, c cancelled
        """
    )
    assert story.actor.compensated == ()
    assert story.actor.compensation is None


def test_an_execution_that_completes_undoes_nothing() -> None:
    Story(workflow(task("a"), on_failure=(undo("a", "undo-a"), undo(None, "tell")))).check(
        """
        started -> work a.1
        a ok    -> finished completed
        """
    )


def test_branches_are_undone_in_parallel_and_their_root_after_both() -> None:
    definition = workflow(
        task("a"),
        task("b", "a"),
        task("c", "a"),
        task("d", "b", "c"),
        on_failure=(undo("a", "undo-a"), undo("b", "undo-b"), undo("c", "undo-c")),
    )
    Story(definition).check(
        """
        started   -> work a.1
        a ok      -> work b.1, work c.1
        b ok      ->
        c ok      -> work d.1
        d fatal   -> work undo-b.1, work undo-c.1
        undo-c ok ->
        undo-b ok -> work undo-a.1
        undo-a ok -> finished failed
        """
    )


def test_a_task_without_compensation_between_two_does_not_break_the_order() -> None:
    Story(chain(undo("a", "undo-a"), undo("c", "undo-c"), undo(None, "tell"))).tells(
        "started", "a ok", "b ok", "c closed timed_out"
    ).check_states("c failed, undo-a waiting, =compensating")


def test_plain_tasks_follow_in_their_own_order() -> None:
    Story(chain(undo(None, "first"), undo("a", "undo-a"), undo(None, "second"))).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b fatal   -> work undo-a.1
        undo-a ok -> work first.1
        first ok  -> work second.1
        second ok -> finished failed
        """
    )


def test_a_cancel_undoes_after_the_barrier_and_ends_as_cancelled() -> None:
    Story(chain(undo("a", "undo-a"), undo("b", "undo-b"))).check(
        """
        started           -> work a.1
        a ok              -> work b.1
        cancel            -> tell all
        b fatal cancelled -> work undo-a.1      | b cancelled, c cancelled, =compensating
        undo-a ok         -> finished cancelled | =cancelled
        """
    )


def test_a_success_within_the_grace_is_undone_too() -> None:
    story = Story(chain(undo("a", "undo-a"), undo("b", "undo-b")))
    story.tells("started", "a ok", "cancel")
    assert render(story.tell("b ok")) == ["work undo-b.1"]


def test_a_compensation_has_its_own_retries() -> None:
    Story(chain(undo("a", "undo-a", retry=RETRY))).check(
        """
        started         -> work a.1
        a ok            -> work b.1
        b fatal         -> work undo-a.1
        undo-a fails    ->                   | undo-a retrying, =compensating
        +5 undo-a due 2 -> work undo-a.2
        undo-a ok       -> finished failed
        """
    )


def test_a_compensation_that_spent_its_retries_is_reported_and_the_others_go_on() -> None:
    story = Story(chain(undo("a", "undo-a"), undo("b", "undo-b"))).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b ok         -> work c.1
        c fatal      -> work undo-b.1
        undo-b fatal -> work undo-a.1
        undo-a ok    -> finished failed | undo-b failed, =failed
        """
    )
    assert story.actor.compensation == "incomplete"
    assert story.actor.compensated == ("a",)


def test_a_cancelled_execution_whose_compensation_failed_is_failed() -> None:
    Story(chain(undo("a", "undo-a"))).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        cancel       -> tell all
        b ok         -> work undo-a.1
        undo-a fatal -> finished failed | =failed
        """
    )


def test_a_closed_attempt_is_unknown_and_undone_once_its_lease_is_over() -> None:
    story = Story(workflow(task("a"), on_failure=(undo("a", "undo-a"),))).check(
        """
        started            -> work a.1
        a closed timed_out -> purge a.1, tell a   | a failed, =compensating
        +30 undo-a due 1   -> work undo-a.1
        undo-a ok          -> finished failed
        """
    )
    assert story.actor.compensated == ("a",)


@pytest.mark.parametrize("error", ["cancelled", "ResultNotEncodable", "PayloadTooLarge"])
def test_what_had_begun_and_was_interrupted_or_gave_nothing_readable_is_unknown(error: str) -> None:
    begun = Story(chain(undo("a", "undo-a"))).tells("started", "a taken", f"a fatal {error}")
    assert begun.actor.state == "compensating"
    never = Story(chain(undo("a", "undo-a"))).tells("started", f"a fatal {error}")
    assert never.actor.state == "failed"


def test_the_lease_is_a_timer_that_asks_for_a_fact() -> None:
    story = Story(workflow(task("a"), on_failure=(undo("a", "undo-a"),)))
    story.tells("started", "a closed timed_out")
    assert story.armed()["undo-a"] == 1.0 + LEASE_S
    assert story.timer("undo-a", 10.0) == ["arm undo-a 31"]
    assert story.timer("undo-a", 31.0)[0] == "due undo-a.1"


def test_an_agent_that_let_go_ends_the_lease() -> None:
    Story(workflow(task("a"), on_failure=(undo("a", "undo-a"),))).check(
        """
        started            -> work a.1
        a closed timed_out -> purge a.1, tell a
        a released         -> work undo-a.1
        +30 undo-a due 1   ->
        undo-a ok          -> finished failed
        """
    )


def test_a_success_after_the_closing_is_reported_as_late() -> None:
    story = Story(workflow(task("a"), on_failure=(undo("a", "undo-a"),)))
    story.tells("started", "a closed timed_out", "a released late")
    assert story.actor.tasks["a"].is_late
    assert story.state_of("undo-a") == "queued"


def test_a_success_after_the_end_is_seen_and_nothing_follows_from_it() -> None:
    undone = Story(workflow(task("a"), on_failure=(undo("a", "undo-a"),)))
    undone.tells("started", "a closed timed_out", "+30 undo-a due 1", "undo-a ok")
    unfinished = Story(workflow(task("a"))).tells("started", "a closed timed_out")
    for story in (undone, unfinished):
        assert story.actor.is_decided
        assert story.tell("a released late") == []
        assert story.actor.tasks["a"].is_late
        assert (story.state_of("a"), story.actor.state) == ("failed", "failed")


def test_a_new_owner_of_a_saga_under_way_tells_nobody_to_stop() -> None:
    story = Story(chain(undo("a", "undo-a"), undo("b", "undo-b"))).tells("started", "a ok", "b ok", "c fatal")
    assert not [effect for effect in story.actor.outstanding() if isinstance(effect, TellAgents)]


@pytest.mark.parametrize(
    ("when", "story", "is_undone"),
    [
        (CompensateWhen.DEFAULT, ["a fatal"], False),
        (CompensateWhen.DEFAULT, ["a closed poison"], True),
        (CompensateWhen.COMPLETED, ["a closed poison"], False),
        (CompensateWhen.COMPLETED, ["a ok", "b fatal"], True),
        (CompensateWhen.ATTEMPTED, ["a fatal"], True),
        (CompensateWhen.ATTEMPTED, ["a ok", "b fatal"], True),
    ],
)
def test_compensate_when_chooses_what_is_undone(when: CompensateWhen, story: list[str], is_undone: bool) -> None:
    undoing = undo("a", "undo-a", compensate_when=when)
    told = Story(workflow(task("a"), task("b", "a"), on_failure=(undoing,))).tells("started", *story)
    assert (told.actor.state == "compensating") is is_undone


@pytest.mark.parametrize("extra", ["cancel", "a ok", "b ok", "undo-b due 2", "deadline", "undo-a ok"])
def test_nothing_else_changes_a_saga_under_way(extra: str) -> None:
    story = Story(chain(undo("a", "undo-a"), undo("b", "undo-b"), timeout=60.0))
    story.tells("started", "a ok", "b ok", "c fatal")
    before = story.actor.record()
    assert story.tell(extra) == []
    assert story.actor.record() == before


def test_every_failure_of_a_saga_of_four_leaves_nothing_behind() -> None:
    """A fault at every task, in each of its kinds: what is undone is what completed or is unknown, and nothing else."""
    ids = ["a", "b", "c", "d"]
    definition = workflow(
        task("a"),
        task("b", "a"),
        task("c", "a"),
        task("d", "b", "c"),
        on_failure=tuple(undo(name, f"undo-{name}") for name in ids),
    )
    for faulty, fault in itertools.product(ids, ("fatal", "closed timed_out", "closed poison")):
        story = Story(definition).tells("started")
        while not story.actor.is_decided:
            open_tasks = sorted(story.actor.open)
            if open_tasks:
                name = open_tasks[0]
                kind = fault if name == faulty and "timed_out" not in fault else "ok"
                story.tell(f"{name} {fault if name == faulty else kind}")
            else:
                waiting = next(name for name, actor in story.actor.tasks.items() if actor.is_delayed)
                story.tell(f"+{LEASE_S} {waiting} due {story.actor.tasks[waiting].attempt + 1}")
        undone = set(story.actor.compensated)
        done = {name for name in ids if story.state_of(name) == "completed"}
        unknown = {faulty} if fault != "fatal" else set()
        assert undone == done | unknown, (faulty, fault)
        order = list(story.actor.compensated)
        for earlier, later in (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")):
            if earlier in order and later in order:
                assert order.index(later) < order.index(earlier)


def test_two_wide_maps_are_undone_one_after_the_other_in_bounded_memory() -> None:
    wide = 3000
    definition = workflow(
        each("m", "input", max_parallel=wide),
        each("n", "input", "m", max_parallel=wide),
        task("z", "n"),
        on_failure=(undo("m", "undo-m"), undo("n", "undo-n")),
    )
    story = Story(definition, list(range(wide))).tells("started")
    # Not told: a story looks at the whole state after every fact.
    receive = story.actor.receive
    for done in (*(f"{name}~{index}" for name in "mn" for index in range(wide)), "z"):
        effects = receive(Outcome(EXECUTION, START, AGENT, done, 1, error=BROKEN if done == "z" else None))
    assert render(effects) == [f"work undo-n~{index}.1" for index in range(wide)]
    saga = story.actor.saga
    assert saga is not None
    assert sum(map(len, saga.after.values())) == wide
    for index in range(wide):
        effects = receive(Outcome(EXECUTION, START, AGENT, f"undo-n~{index}", 1))
        assert bool(render(effects)) is (index == wide - 1)
    assert render(effects) == [f"work undo-m~{index}.1" for index in range(wide)]
