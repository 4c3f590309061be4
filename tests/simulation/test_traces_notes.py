"""Traces of the notes at the end of the list of findings DESIGN section 4 was made from: what it had to say clearly."""

from typing import Any

import pytest
from infinity_matrix_actors.definition import (
    CompensateWhen,
    LoopDefinition,
    MapDefinition,
    RetryDefinition,
    TaskDefinition,
)
from infinity_matrix_actors.fact import CommandKind, Due, Taken
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.verification import ClientLine, verify

from . import jetstream
from .trace import AGENT, PLAIN, traced


def task(name: str, *upstream: str, agent: str = AGENT, **more: object) -> TaskDefinition:
    return TaskDefinition(name, agent, depends_on=upstream, **more)  # type: ignore[arg-type]


def test_25_a_sign_has_a_capability_of_its_own_and_a_forged_one_does_not_keep_an_attempt_open() -> None:
    with traced({("a", 1): [("slow", 4.0)]}) as trace:
        trace.coordinator()
        definition = trace.deploy(task("a"), task("b", agent="agent-absent", queue_timeout=2.0))
        trace.agent()
        trace.start(definition)
        forged = "im.fact.0.e1.taken.agent-absent.b.1.0000000000000000"
        trace.world.server.publish(forged, "", b"", b"{}")
        trace.world.server.flush()
        assert trace.ended(within_s=20.0).state == "failed"
        assert [(fact.task, fact.attempt) for fact in trace.facts() if isinstance(fact, Taken)] == [("a", 1)]
        outcome = trace.outcome("b")
        assert outcome is not None and outcome.closed


def test_26_more_facts_than_one_read_answers_are_read_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "MULTI_LAST_MAX", 8)
    with traced({("z", 1): [("fatal", 0.0)]}) as trace:
        trace.coordinator()
        many = task("m", map=MapDefinition(("[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]",)))
        definition = trace.deploy(many, task("z", "m"))
        trace.agent()
        trace.start(definition)
        assert trace.ended().state == "failed"
        assert trace.call(lambda operations: operations.fold("e1")).finishes == 1
        trace.call(lambda operations: operations.command("e1", CommandKind.RETRY))
        trace.until(lambda: len(trace.ends()) == 2, "its second end")
        assert trace.ends()[1].state == "completed"
        assert len(trace.began()) == 12


def test_27_instances_have_names_that_no_user_can_give_and_attempts_of_their_own() -> None:
    retry = RetryDefinition(2, initial_delay=0.5)
    with traced({("m~1", 1): [("fails", 0.0)], ("l~0", 1): [("fails", 0.0)]}) as trace:
        owner = trace.coordinator()
        mapped = task("m", map=MapDefinition(("[0, 1, 2]",), max_parallel=1), retry=retry)
        looped = task("l", "m", loop=LoopDefinition("iteration >= 1", 3), retry=retry)
        definition = trace.deploy(mapped, looped)
        trace.agent()
        trace.on("publish", ".outcome.agent-a.m~0.", lambda: trace.kill(owner))
        trace.start(definition)
        trace.until(lambda: not owner.is_alive, "the owner's death", within_s=20.0)
        trace.coordinator()
        assert trace.ended().state == "completed"
        assert trace.began() == [("m~0", 1), ("m~1", 1), ("m~1", 2), ("m~2", 1), ("l~0", 1), ("l~0", 2), ("l~1", 1)]


def test_27_an_instance_that_is_done_and_has_left_while_it_was_to_be_closed_is_left_alone() -> None:
    # Its owner's word takes a second each way: before its purge is confirmed, the next one has been at work.
    with traced({("l~0", 1): [("slow", 4.0)], ("l~1", 1): [("slow", 0.1)]}) as trace:
        owner = trace.coordinator()
        definition = trace.deploy(task("l", agent=PLAIN, timeout=2.0, loop=LoopDefinition("iteration >= 1", 3)))
        trace.plain_agent()
        for link in trace.world.network.links:
            if link.process is owner:
                link.slow(1.0, 60.0)
        trace.start(definition)
        assert trace.ended().state == "completed"
        trace.run(10.0)
        assert trace.began() == [("l~0", 1), ("l~1", 1)]


def test_28_what_a_client_follows_never_goes_back_though_two_owners_tell_it() -> None:
    with traced({("b", 1): [("fails", 0.5)]}) as trace:
        one = trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        trace.hold(trace.readers()[1], 2.0)
        definition = trace.deploy(task("a"), task("b", "a", retry=RetryDefinition(2)), task("c", "b"))
        trace.agent()
        trace.start(definition)
        trace.on("publish", ".due.b.", lambda: trace.kill(one))
        shown: list[Any] = []

        async def follow(operations: Operations) -> None:
            async for update in operations.follow("e1"):
                shown.append(update)

        trace.call(follow)
        assert [update.status for update in shown if update.task_id is None][-1] == "completed"
        history = trace.history()
        history.clients = [
            ClientLine("update", "e1", task=update.task_id, state=update.status, attempt=update.attempt)
            for update in shown
        ]
        assert len(history.clients) > 10
        assert verify(history) == []


@pytest.mark.parametrize("when", CompensateWhen)
def test_29_an_attempt_that_was_done_and_lost_and_then_failed_is_undone_where_attempts_are(
    when: CompensateWhen,
) -> None:
    # It does its work, dies before it says so, and fails when the work comes again.
    with traced({("a", 1): [("dies", 0.2), ("fatal", 0.0)]}) as trace:
        trace.coordinator()
        undo = task("u", compensates="a", compensate_when=when)
        definition = trace.deploy(task("a", agent=PLAIN), on_failure=(undo,))
        trace.agent()
        trace.plain_agent()
        trace.start(definition)
        trace.run(5.0)
        trace.plain_agent()
        end = trace.ended()
        assert end.state == "failed"
        assert end.compensated == (("a",) if when is CompensateWhen.ATTEMPTED else ())


def test_31_a_new_owner_waits_a_whole_period_for_a_sign_of_life() -> None:
    with traced({("a", 1): [("slow", 60.0)]}) as trace:
        owner = trace.coordinator(owns_all=True)
        definition = trace.deploy(task("a", heartbeat_timeout=6.0))
        trace.agent()
        trace.start(definition)
        trace.run(4.0)
        trace.kill(owner)
        trace.coordinator(owns_all=True)
        taken_over_at = jetstream.EPOCH_S + trace.world.loop.now
        assert trace.ended().state == "failed"
        outcome = trace.outcome("a")
        assert outcome is not None and outcome.closed
        # By the first owner's time it was over long before: what came meanwhile the new one cannot have heard.
        assert taken_over_at + 3.0 < outcome.at < taken_over_at + 10.0


def test_32_while_it_is_paused_what_is_due_is_said_nothing_is_sent_out_and_time_goes_on() -> None:
    retry = RetryDefinition(2, initial_delay=1.0, jitter=0.0)
    with traced({("a", 1): [("fails", 0.5)], ("b", 1): [("hangs", 0.0)]}) as trace:
        trace.coordinator()
        definition = trace.deploy(task("a", retry=retry), task("b", timeout=3.0), task("c", "a"))
        trace.agent()
        trace.start(definition)
        trace.run(0.2)
        trace.call(lambda operations: operations.command("e1", CommandKind.PAUSE))
        trace.run(2.5)
        assert any(isinstance(fact, Due) and fact.attempt == 2 for fact in trace.facts())
        assert ("a", 2) not in trace.began()
        trace.run(3.0)
        outcome = trace.outcome("b")
        assert outcome is not None and outcome.closed
        trace.call(lambda operations: operations.command("e1", CommandKind.RESUME))
        assert trace.ended().state == "failed"


def test_33_an_ack_after_a_purge_and_a_purge_after_an_ack_change_nothing() -> None:
    with traced({("a", 1): [("slow", 5.0)], ("b", 1): [("ok", 1.0)]}) as trace:
        trace.coordinator()
        definition = trace.deploy(task("a", agent=PLAIN, timeout=2.0), task("b"), grace=3.0)
        trace.plain_agent()
        trace.agent()
        trace.start(definition)
        assert trace.ended().state == "failed"
        # The agent of a acks what was purged; and b is purged once more, though nothing is left of it.
        trace.run(20.0)
        trace.call(lambda operations: _purge(operations, "im.work.*.e1.>"))
        assert trace.work() == []
        trace.start(definition, "e2")
        assert trace.ended("e2").state == "failed"
        assert sorted(set(trace.began())) == [("a", 1), ("b", 1)]


async def _purge(operations: Operations, subject: str) -> None:
    await JetStreamApi(await operations.session()).purge("IM_WORK", subject)
