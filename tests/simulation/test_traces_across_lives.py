"""Traces of what outlives an owner, a log or an end: checkpoints, lives after the first, versions, children, schedules.

The numbers are those of the list of findings DESIGN section 4 was made from, as in `test_traces`.
"""

import json

import pytest
from infinity_matrix_actors.definition import (
    CHILD_AGENT,
    ChildDefinition,
    ClosePolicy,
    SlotsDefinition,
    TaskDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.fact import CommandKind, Started
from infinity_matrix_actors.schedule import Overlap, Schedule
from infinity_matrix_bus.facts import started_payload
from infinity_matrix_coordinator import mailbox, members
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations

from .jetstream import EPOCH_S
from .trace import AGENT, FactsByProcess, Trace, traced

STATE = "$KV.IM_CHECKPOINTS.state."


def task(name: str, *upstream: str, agent: str = AGENT, **more: object) -> TaskDefinition:
    return TaskDefinition(name, agent, depends_on=upstream, **more)  # type: ignore[arg-type]


def nap(name: str, *upstream: str, for_s: float) -> TaskDefinition:
    return TaskDefinition(name, depends_on=upstream, sleep=for_s)


# Checkpoints.


@pytest.mark.parametrize("operation", ("publish", "get"))
def test_7_an_owner_killed_between_a_checkpoint_and_what_follows_from_it_loses_and_doubles_nothing(
    operation: str,
) -> None:
    # Killed when it stores the record, before it leaves memory; and when it brings the execution back from it.
    with traced() as trace:
        owner = trace.coordinator(checkpoint_after_s=1.0)
        definition = trace.deploy(task("a"), nap("b", "a", for_s=4.0), task("c", "b"))
        trace.agent()
        if operation == "publish":
            trace.on("publish", f"{STATE}0.e1", lambda: trace.kill(owner))
        trace.start(definition)
        if operation == "get":
            trace.until(trace.records, "its checkpoint", within_s=20.0)
            trace.on("get", f"{STATE}0.e1", lambda: trace.kill(owner))
        trace.until(lambda: not owner.is_alive, "the owner's death", within_s=20.0)
        trace.coordinator(checkpoint_after_s=1.0)
        assert trace.ended().state == "completed"
        assert trace.began() == [("a", 1), ("c", 1)]
        assert trace.world.faults.counts["taken over from a checkpoint"] > 0


def test_7_an_owner_that_lags_does_not_put_its_older_state_over_a_newer_one() -> None:
    with traced() as trace:
        one = trace.coordinator(owns_all=True, checkpoint_after_s=1.0)
        two = trace.coordinator(owns_all=True, checkpoint_after_s=1.0)
        lagging = trace.readers()[1]
        definition = trace.deploy(nap("n", for_s=1.5), task("a", "n"), nap("b", "a", for_s=20.0), task("c", "b"))
        trace.agent()
        trace.start(definition)
        trace.run(1.0)
        # It has the start, and not what follows.
        trace.hold(lagging, 6.0)
        trace.run(5.0)
        assert trace.world.faults.counts["checkpoint refused"] > 0
        trace.kill(one)
        trace.kill(two)
        trace.coordinator(checkpoint_after_s=1.0)
        assert trace.ended().state == "completed"
        assert trace.began() == [("a", 1), ("c", 1)]


def test_7_the_record_of_what_ended_does_not_outlive_its_end_though_something_holds_the_mark() -> None:
    # The slot of the one that sleeps holds the mark from before the start of the other.
    with traced() as trace:
        trace.world.streams.log_age_ns = 60 * 10**9
        owner = trace.coordinator(checkpoint_after_s=1.0)
        sleeper = trace.deploy(nap("n", for_s=150.0), name="sleeper", slots=SlotsDefinition(1))
        short = trace.deploy(task("a"), nap("b", "a", for_s=10.0), task("c", "b"), name="short")
        trace.agent()
        trace.start(sleeper, "e1")
        trace.run(1.0)
        trace.start(short, "e2")
        assert trace.ended("e2").state == "completed"
        assert "e2" in trace.records()
        # By now no fact of it is in the log any more.
        trace.run(70.0)
        trace.kill(owner)
        trace.coordinator(checkpoint_after_s=1.0)
        assert trace.ended("e1").state == "completed"
        assert len(trace.ends("e2")) == 1
        assert trace.began() == [("a", 1), ("c", 1)]
        trace.run(60.0)
        assert trace.records() == []


def test_8_an_execution_outlives_the_log_with_the_results_it_needs() -> None:
    with traced() as trace:
        trace.world.streams.log_age_ns = 40 * 10**9
        owner = trace.coordinator(checkpoint_after_s=2.0)
        wait = TaskDefinition("w", wait_for="go", depends_on=("a",), timeout=300.0)
        definition = trace.deploy(task("a"), wait, task("b", "a", "w"))
        trace.agent()
        trace.start(definition)
        trace.run(100.0)
        assert trace.log.by_subject == {}
        trace.kill(owner)
        trace.coordinator(checkpoint_after_s=2.0)
        works: list[bytes] = []
        trace.on(
            "publish",
            "im.work.agent-a.e1.b",
            lambda: works.append(trace.stream("IM_WORK").last(trace.work()[0]).data),  # type: ignore[union-attr]
        )
        trace.world.server.publish("im.fact.0.e1.signal.go.s1", "", b"", b'{"n":7}')
        trace.world.server.flush()
        assert trace.ended(within_s=20.0).state == "completed"
        assert json.loads(works[0])["upstream"] == {"a": {"n": 1}, "w": {"n": 7}}
        assert trace.began() == [("a", 1), ("b", 1)]


# Lives after the first.


@pytest.mark.parametrize("owners", (1, 2))
def test_14_attempts_and_ends_go_on_counting_when_it_is_taken_up_again(owners: int) -> None:
    with traced({("a", 1): [("fatal", 0.1)], ("a", 2): [("fatal", 0.1)]}) as trace:
        for _ in range(owners):
            trace.coordinator(owns_all=True)
        definition = trace.deploy(task("a"), task("b", "a"))
        trace.agent()
        trace.start(definition)
        for lives in (1, 2, 3):
            trace.until(lambda lives=lives: len(trace.ends()) == lives, f"end {lives}", within_s=30.0)
            trace.call(lambda operations: operations.command("e1", CommandKind.RETRY))
        assert [(end.n, end.state) for end in trace.ends()] == [(1, "failed"), (2, "failed"), (3, "completed")]
        trace.run(60.0)
        # What completed is not taken up again.
        assert trace.began() == [("a", 1), ("a", 2), ("a", 3), ("b", 1)]


def test_14_an_owner_killed_when_it_takes_up_what_ended_leaves_it_to_the_next() -> None:
    with traced({("a", 1): [("fatal", 0.1)]}) as trace:
        owner = trace.coordinator()
        definition = trace.deploy(task("a"))
        trace.agent()
        trace.start(definition)
        assert trace.ended().state == "failed"
        trace.on("multi", "im.fact.0.e1.>", lambda: trace.kill(owner))
        trace.call(lambda operations: operations.command("e1", CommandKind.RETRY))
        trace.until(lambda: not owner.is_alive, "the owner's death", within_s=20.0)
        trace.coordinator()
        trace.until(lambda: len(trace.ends()) == 2, "its second end")
        assert trace.ends()[1].state == "completed"


def test_14_what_is_taken_up_again_is_read_whole_though_a_replica_lags() -> None:
    # The signal and the end of the first life are not yet with whoever answers the read of its facts.
    with traced({("a", 1): [("fatal", 0.1)]}) as trace:
        trace.coordinator()
        definition = trace.deploy(task("a"), TaskDefinition("b", wait_for="go", timeout=60.0), grace=0.0)
        trace.agent()
        trace.start(definition)
        assert trace.ended().state == "failed"
        trace.call(lambda operations: operations.signal("e1", "go", {"n": 7}))
        trace.world.faults.read_lag_ns = 2_000_000_000
        trace.call(lambda operations: operations.command("e1", CommandKind.RETRY))
        trace.until(lambda: len(trace.ends()) == 2, "its second end", within_s=20.0)
        assert trace.ends()[1].state == "completed"
        assert trace.world.faults.counts["lagging read"] > 0


# Versions.


def test_19_two_versions_run_side_by_side_and_each_decides_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with traced() as trace:
        versions = FactsByProcess(trace.world)
        monkeypatch.setattr(mailbox, "facts_of_core", versions)
        monkeypatch.setattr(members, "fact", versions)
        trace.coordinator()
        definition = trace.deploy(task("a"), task("b", "a"))
        trace.agent()
        newer = Started("e2", 0.0, definition.name, definition.digest(), decide=2)
        trace.world.server.publish("im.fact.0.e2.started", "", b"", started_payload(newer))
        trace.world.server.flush()
        trace.started.add("e2")
        trace.start(definition, "e1")
        assert trace.ended("e1").state == "completed"
        trace.run(60.0)
        # Nobody has its rules, so nobody touches it.
        assert [one.execution for one in trace.world.journal if one.event != "acknowledged"] == ["e1"] * 4
        trace.coordinator(decide=2)
        assert trace.ended("e2", within_s=30.0).state == "completed"
        trace.start(definition, "e3")
        assert trace.ended("e3", within_s=10.0).state == "completed"
        assert len(trace.began()) == 6


# Children.


def family(trace: Trace, close: ClosePolicy = ClosePolicy.CANCEL) -> WorkflowDefinition:
    """A workflow with a child, that is deployed; its agent is there."""
    trace.deploy(task("k"), name="kid")
    parent = TaskDefinition("c", CHILD_AGENT, child=ChildDefinition("kid", {"n": 1}, close))
    definition = trace.deploy(parent, task("z", "c"), name="parent")
    trace.agent()
    return definition


def completed_with_one_child(trace: Trace) -> None:
    assert trace.ended().state == "completed"
    (child,) = trace.children()
    assert trace.ended(child).state == "completed"
    trace.run(40.0)
    assert [len(trace.ends(one)) for one in ("e1", child)] == [1, 1]
    assert trace.began() == [("k", 1), ("z", 1)]


def test_21_two_owners_start_one_child() -> None:
    with traced(shards=2) as trace:
        trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        definition = family(trace)
        trace.start(definition)
        completed_with_one_child(trace)
        assert trace.world.faults.counts["child started twice"] > 0


@pytest.mark.parametrize("fact", (".taken.im-workflow.", ".outcome.im-workflow.", ".finished.1."))
def test_21_a_parent_and_its_child_lose_their_owner_between_each_others_facts(fact: str) -> None:
    # After the child's start, between the parent's outcome and the child's own end, and after that.
    with traced({("k", 1): [("ok", 2.0)]}, shards=2) as trace:
        owner = trace.coordinator()
        definition = family(trace)
        trace.on("publish", fact, lambda: trace.kill(owner))
        trace.start(definition)
        trace.until(lambda: not owner.is_alive, "the owner's death", within_s=20.0)
        trace.run(3.0)
        trace.coordinator()
        completed_with_one_child(trace)


@pytest.mark.parametrize("close", (ClosePolicy.CANCEL, ClosePolicy.ABANDON))
def test_21_a_parent_that_is_cancelled_cancels_its_child_or_lets_it_go(close: ClosePolicy) -> None:
    with traced({("k", 1): [("ok", 20.0)]}, shards=2) as trace:
        owner = trace.coordinator()
        definition = family(trace, close)
        trace.start(definition)
        trace.run(1.0)
        # Whoever is there then sees to it.
        trace.on("publish", ".e1.command.cancel.", lambda: trace.kill(owner))
        trace.call(lambda operations: operations.cancel("e1", "enough"))
        trace.coordinator()
        assert trace.ended().state == "cancelled"
        (child,) = trace.children()
        assert trace.ended(child).state == ("cancelled" if close is ClosePolicy.CANCEL else "completed")


# Schedules.


def deploy_schedule(trace: Trace, overlap: Overlap = Overlap.ALLOW_ALL, in_s: float = 5.0) -> Schedule:
    """A schedule that comes due once."""
    definition = trace.deploy(task("a"))
    trace.agent()
    due_at = round(EPOCH_S + trace.world.loop.now + in_s, 3)
    schedule = Schedule("s", definition.name, run_at=due_at, overlap=overlap)
    trace.call(lambda operations: ScheduleOperations(operations).create(schedule))
    return schedule


def ticks(trace: Trace) -> list[Started]:
    """The `started` facts of a schedule."""
    history = trace.history()
    starts = [history.started(execution) for execution in history.facts]
    return [one for one in starts if one is not None and one.cause.get("schedule")]


def test_24_a_tick_that_two_coordinators_fire_starts_one_execution() -> None:
    with traced() as trace:
        trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        deploy_schedule(trace)
        trace.run(20.0)
        (tick,) = ticks(trace)
        assert not tick.skipped
        assert trace.ended(tick.execution).state == "completed"
        counts = trace.world.faults.counts
        assert counts.get("claim of a tick raced", 0) + counts.get("tick of a schedule raced", 0) > 0


def test_24_a_tick_that_was_claimed_by_who_died_is_started_by_another() -> None:
    with traced() as trace:
        owner = trace.coordinator(owns_all=True)
        deploy_schedule(trace)
        # The next thing stored of it is the claim.
        trace.on("publish", "$KV.IM_SCHEDULES.s", lambda: trace.kill(owner))
        trace.until(lambda: not owner.is_alive, "the owner's death", within_s=20.0)
        assert ticks(trace) == []
        trace.coordinator(owns_all=True)
        trace.run(20.0)
        (tick,) = ticks(trace)
        assert trace.ended(tick.execution).state == "completed"


def test_24_a_tick_that_was_skipped_is_started_by_nobody_who_comes_later() -> None:
    with traced({("a", 1): [("slow", 15.0)]}) as trace:
        owner = trace.coordinator(owns_all=True)
        deploy_schedule(trace, Overlap.SKIP)
        trace.call(lambda operations: ScheduleOperations(operations).trigger("s", request="first"))
        trace.until(lambda: ticks(trace), "the first tick", within_s=5.0)
        # Killed once the skipped tick has its place, before the schedule is told.
        trace.on("publish", ".started", lambda: trace.kill(owner))
        trace.until(lambda: not owner.is_alive, "the owner's death", within_s=20.0)
        trace.run(20.0)
        trace.coordinator(owns_all=True)
        trace.run(30.0)
        assert sorted(tick.skipped for tick in ticks(trace)) == [False, True]
        assert trace.began() == [("a", 1)]
