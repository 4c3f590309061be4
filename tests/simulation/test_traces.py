"""The holes once found in the protocol, each told as a trace to the production's processes: none is there any more.

The numbers are those of the list of findings DESIGN section 4 was made from.
"""

import json
from random import Random

import pytest
from infinity_matrix_actors.definition import RetryDefinition, TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.errors import ExecutionExists
from infinity_matrix_actors.fact import Due, Finished

from .trace import AGENT, PLAIN, Trace, traced

TWICE = RetryDefinition(2, initial_delay=2.0, jitter=0.0)


def task(name: str, *upstream: str, agent: str = AGENT, **more: object) -> TaskDefinition:
    return TaskDefinition(name, agent, depends_on=upstream, **more)  # type: ignore[arg-type]


def ready(trace: Trace, *tasks: TaskDefinition, **more: object) -> WorkflowDefinition:
    """A coordinator, and a workflow that is deployed."""
    trace.coordinator()
    return trace.deploy(*tasks, **more)


# Blocks.


@pytest.mark.parametrize("agent", (AGENT, PLAIN))
def test_1_work_of_an_attempt_that_was_closed_is_not_run_by_an_agent_that_comes_later(agent: str) -> None:
    with traced() as trace:
        trace.start(ready(trace, task("a", agent=agent, queue_timeout=1.0)))
        assert trace.ended().state == "failed"
        trace.agent()
        trace.plain_agent()
        trace.run(60.0)
        assert trace.began() == []
        assert trace.work() == []


def test_1_work_of_a_closed_attempt_that_an_owner_publishes_late_does_not_land() -> None:
    # The work stream was full when the first owner published, so that the server knows no Msg-Id of the attempt; the
    # second publishes, within the time a cause is fresh, what it has not heard was cancelled.
    with traced() as trace:
        trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        definition = trace.deploy(task("a", agent=PLAIN), grace=0.0)
        trace.hold(trace.readers()[1], 20.0)
        trace.stream("IM_WORK").is_full = True
        trace.start(definition)
        trace.call(lambda operations: operations.cancel("e1", "enough"))
        trace.run(0.1)
        trace.stream("IM_WORK").is_full = False
        assert trace.ended(within_s=15.0).state == "cancelled"
        trace.plain_agent()
        trace.run(60.0)
        assert trace.began() == []
        assert trace.work() == []


def test_1_work_that_could_not_be_queued_at_first_has_its_queue_timeout_all_the_same() -> None:
    with traced() as trace:
        definition = ready(trace, task("a", agent=PLAIN, queue_timeout=1.0))
        trace.stream("IM_WORK").is_full = True
        trace.start(definition)
        trace.run(0.3)
        trace.stream("IM_WORK").is_full = False
        assert trace.ended(within_s=15.0).state == "failed"


def test_2_a_retry_whose_time_comes_after_the_failure_of_another_is_dispatched_by_nobody() -> None:
    with traced({("b", 1): [("fails", 0.0)], ("a", 1): [("fatal", 1.0)]}) as trace:
        trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        definition = trace.deploy(task("a"), task("b", retry=TWICE))
        trace.agent()
        trace.start(definition)
        assert trace.ended().state == "failed"
        trace.run(60.0)
        assert ("b", 2) not in trace.began()


def test_2_the_end_of_a_backoff_is_a_fact_before_anything_follows_from_it() -> None:
    with traced({("a", 1): [("fails", 0.0)]}) as trace:
        definition = ready(trace, task("a", retry=TWICE))
        trace.agent()
        trace.start(definition)
        assert trace.ended().state == "completed"
        due = [fact for fact in trace.facts() if isinstance(fact, Due)]
        assert len(due) == 1
        assert trace.began_s("a", 2)[0] > due[0].at


def test_3_what_completes_within_the_grace_of_a_failure_is_undone_before_the_end() -> None:
    with traced({("a", 1): [("fatal", 0.1)], ("b", 1): [("slow", 3.0)]}) as trace:
        undo = task("u", compensates="b")
        # The agent ignores the order to stop: it speaks the bare protocol.
        definition = ready(trace, task("a"), task("b", agent=PLAIN), on_failure=(undo,))
        trace.agent()
        trace.plain_agent()
        trace.start(definition)
        end = trace.ended()
        assert end.state == "failed"
        assert end.compensated == ("b",)
        outcome = trace.outcome("b")
        assert outcome is not None and outcome.error is None
        assert trace.began_s("u")[0] > outcome.at


@pytest.mark.parametrize("agent", (AGENT, PLAIN))
def test_4_work_that_has_just_been_done_is_not_published_again_and_run(agent: str) -> None:
    # The outcome lands while its owner reads the log late, and sees the work gone.
    with traced({("a", 1): [("slow", 10.0)]}) as trace:
        trace.coordinator(sweep_interval_s=1.0)
        definition = trace.deploy(task("a", agent=agent))
        trace.agent()
        trace.plain_agent()
        trace.start(definition)
        trace.run(8.0)
        trace.hold("IM_FACTS_0", 8.0)
        trace.run(30.0)
        assert trace.ended().state == "completed"
        assert trace.began() == [("a", 1)]


@pytest.mark.parametrize("took_s", range(10, 22))
def test_4_a_repair_on_its_way_while_the_outcome_lands_is_asked_about(took_s: int) -> None:
    # Somewhere among these times the outcome lands after the head was read and before the repair is stored.
    with traced({("a", 1): [("slow", float(took_s))]}) as trace:
        owner = trace.coordinator(sweep_interval_s=1.0)
        definition = trace.deploy(task("a"))
        trace.agent()
        trace.start(definition)
        trace.run(1.0)
        trace.agent()
        trace.world.streams.lose("IM_WORK", entirely=False)
        for link in trace.world.network.links:
            if link.process is owner:
                link.slow(1.2, 60.0)
        assert trace.ended().state == "completed"
        trace.run(60.0)
        outcome = trace.outcome("a")
        assert outcome is not None
        assert all(began_s < outcome.at for began_s in trace.began_s("a"))


@pytest.mark.parametrize("for_s", (10.0, 50.0, 150.0))
def test_4_an_owner_far_behind_publishes_nothing_that_others_have_done(for_s: float) -> None:
    with traced() as trace:
        trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        definition = trace.deploy(task("a", agent=PLAIN), task("b", "a", agent=PLAIN))
        trace.plain_agent()
        trace.hold(trace.readers()[1], for_s)
        trace.start(definition)
        assert trace.ended(within_s=5.0).state == "completed"
        trace.run(for_s + 60.0)
        assert trace.began() == [("a", 1), ("b", 1)]
        assert trace.work() == []


def test_4_work_done_before_the_server_was_killed_is_not_run_again_after_it_forgot_the_ack() -> None:
    with traced() as trace:
        definition = ready(trace, task("a"), task("b", "a"))
        trace.agent()
        trace.agent()
        trace.on("ack", "IM_WORK.agent-a.1", lambda: trace.world.crash_server(0.3, Random(1)))
        trace.start(definition)
        assert trace.ended().state == "completed"
        assert trace.world.faults.counts["forgotten ack"] > 0
        trace.run(60.0)
        assert sorted(trace.began()) == [("a", 1), ("b", 1)]
        assert trace.work() == []


def test_5_a_repair_is_not_swallowed_by_the_window_of_msg_ids() -> None:
    with traced({("a", 1): [("acks early", 0.0), ("ok", 0.0)]}) as trace:
        definition = ready(trace, task("a", agent=PLAIN))
        trace.plain_agent()
        trace.start(definition)
        assert trace.ended(within_s=70.0).state == "completed"
        assert trace.world.faults.counts["acked too early"] == 1


def test_5_work_that_a_killed_server_brings_back_as_acked_is_published_again() -> None:
    with traced({("a", 1): [("acks early", 0.0), ("ok", 0.0)]}) as trace:
        definition = ready(trace, task("a", agent=PLAIN))
        trace.world.faults.kept_acks = 1.0
        trace.on("ack", f"IM_WORK.{PLAIN}", lambda: trace.world.crash_server(0.3, Random(1)))
        trace.plain_agent()
        trace.start(definition)
        assert trace.ended(within_s=70.0).state == "completed"
        assert trace.world.faults.counts["removal forgotten, ack kept"] == 1
        trace.run(60.0)
        assert trace.work() == []


def test_5_a_work_stream_that_is_lost_when_nothing_but_a_purge_is_left_holds_up_no_end() -> None:
    with traced({("a", 1): [("hangs", 0.0)]}) as trace:
        definition = ready(trace, task("a", timeout=2.0))
        trace.agent()
        trace.on("publish", ".outcome.", lambda: trace.world.streams.lose("IM_WORK", entirely=True))
        trace.start(definition)
        assert trace.ended(within_s=60.0).state == "failed"


def test_6_a_first_delivery_by_its_count_is_not_believed_of_a_consumer_that_was_made_again() -> None:
    with traced() as trace:
        definition = ready(trace, task("a"))
        trace.agent()
        trace.world.faults.lost_acks = 1.0
        trace.start(definition)
        assert trace.ended().state == "completed"
        # The ack is sent once the outcome is confirmed, which may be after the end.
        trace.run(1.0)
        trace.world.faults.lost_acks = 0.0
        # Another process, which has seen nothing of it; the ack was lost, and the consumer counts anew.
        trace.agent()
        streams = trace.world.streams
        streams.drop_consumer(streams.consumers["IM_WORK", AGENT])
        trace.world.server.flush()
        trace.run(60.0)
        assert trace.world.faults.counts["redelivered, count forgotten"] > 0
        assert trace.began() == [("a", 1)]
        assert trace.work() == []


def test_9_an_outcome_that_a_full_log_refuses_is_neither_lost_nor_acked() -> None:
    with traced({("a", 1): [("ok", 1.0)]}) as trace:
        definition = ready(trace, task("a"))
        trace.agent()
        trace.start(definition)
        trace.log.is_full = True
        # Less than until the sweep, which would bring back what was acked too early.
        trace.run(20.0)
        assert len(trace.work()) == 1
        trace.log.is_full = False
        assert trace.ended().state == "completed"
        assert trace.began() == [("a", 1)]


def test_10_a_full_work_stream_holds_up_no_reader_and_loses_no_work() -> None:
    with traced() as trace:
        definition = ready(trace, task("a"), task("b", "a"))
        trace.agent()
        trace.stream("IM_WORK").is_full = True
        for number in range(5):
            trace.start(definition, f"e{number}")
        trace.run(20.0)
        assert trace.began() == []
        trace.stream("IM_WORK").is_full = False
        for number in range(5):
            assert trace.ended(f"e{number}", within_s=40.0).state == "completed"


# Must fix.


@pytest.mark.parametrize("point", range(1, 60, 2))
def test_11_a_coordinator_killed_at_any_of_its_awaits_loses_no_effect(point: int) -> None:
    with traced({("b", 1): [("fails", 0.0)]}, seed=point) as trace:
        owner = trace.coordinator()
        definition = trace.deploy(task("a"), task("b", "a", retry=TWICE), task("c", "b"))
        trace.agent()
        loop = trace.world.loop

        def kill() -> None:
            loop.post(trace.world.server_process, loop.now, lambda: trace.kill(owner))

        def light() -> None:
            owner.fuse, owner.on_fuse = point, kill

        trace.on("publish", ".e1.started", light)
        trace.start(definition)
        trace.until(lambda: not owner.is_alive, "the owner's death")
        trace.coordinator()
        assert trace.ended().state == "completed"


def test_12_what_undoes_a_closed_attempt_waits_until_its_agent_has_let_go() -> None:
    with traced({("a", 1): [("slow", 10.0)]}) as trace:
        definition = ready(trace, task("a", agent=PLAIN, timeout=2.0), on_failure=(task("u", compensates="a"),))
        trace.agent()
        trace.plain_agent()
        trace.start(definition)
        assert trace.ended().compensated == ("a",)
        outcome = trace.outcome("a")
        assert outcome is not None and outcome.closed
        done_s = next(line.at for line in trace.world.journal if line.event == "done" and line.task == "a")
        began_s = trace.began_s("u")[0]
        assert began_s > outcome.at + 29.0
        assert began_s > done_s


def test_13_an_id_belongs_to_one_workflow() -> None:
    with traced() as trace:
        trace.coordinator()
        one = trace.deploy(task("a"), name="w1")
        two = trace.deploy(task("a"), task("b"), name="w2")
        trace.agent()
        trace.start(one, "order-17")
        with pytest.raises(ExecutionExists):
            trace.start(two, "order-17")
        assert trace.ended("order-17").state == "completed"
        assert trace.began() == [("a", 1)]


def test_15_an_agent_that_never_says_taken_is_not_taken_for_one_that_never_came() -> None:
    with traced({("a", 1): [("slow", 6.0)]}) as trace:
        definition = ready(trace, task("a", agent=PLAIN, queue_timeout=2.0, timeout=10.0))
        trace.plain_agent()
        trace.start(definition)
        assert trace.ended().state == "completed"
        assert trace.began() == [("a", 1)]


def test_15_work_that_kills_its_agents_comes_to_an_end() -> None:
    with traced({("a", 1): [("dies", 0.05)]}) as trace:
        definition = ready(trace, task("a"))
        trace.behaviour.is_calm = False
        trace.start(definition)
        for _ in range(12):
            agent = trace.agent()
            trace.world.run(trace.world.loop.now + 40.0, lambda agent=agent: not agent.is_alive)
            if trace.end() is not None:
                break
        end = trace.ended()
        assert end.state == "failed"
        assert end.error is not None and end.error["type"] == "poison"
        assert 1 < len(trace.began()) <= 6


def test_16_timers_that_fell_due_in_an_outage_wait_for_agents_to_come_back() -> None:
    with traced({("a", 1): [("ok", 3.0)]}) as trace:
        definition = ready(trace, task("a", timeout=5.0))
        trace.agent()
        trace.start(definition)
        trace.run(1.0)
        trace.world.crash_server(30.0)
        assert trace.ended().state == "completed"
        assert trace.began() == [("a", 1)]


@pytest.mark.parametrize("skew_s", (-3600.0, 3600.0))
def test_16_a_clock_that_is_an_hour_off_fires_no_timer_early_or_late(skew_s: float) -> None:
    with traced({("a", 1): [("ok", 3.0)], ("b", 1): [("hangs", 0.0)]}) as trace:
        trace.coordinator(skew_s=skew_s)
        definition = trace.deploy(task("a", timeout=5.0), task("b", "a", timeout=5.0))
        trace.agent(skew_s=-skew_s)
        trace.start(definition)
        assert trace.ended(within_s=60.0).state == "failed"
        outcome = trace.outcome("b")
        assert outcome is not None and outcome.closed
        assert 5.0 <= outcome.at - trace.began_s("b")[0] < 7.0


@pytest.mark.parametrize("step_s", (-86_400.0, 86_400.0))
def test_16_a_clock_that_is_set_meanwhile_fires_no_timer_early_or_late(step_s: float) -> None:
    with traced({("a", 1): [("hangs", 0.0)], ("b", 1): [("ok", 0.1)]}) as trace:
        processes = trace.coordinator(), trace.agent()
        # The timer of the sleep fires soon after, and then all are looked at.
        definition = trace.deploy(task("a", timeout=60.0), TaskDefinition("s", "", sleep=12.0), task("b", "s"))
        trace.start(definition)
        trace.run(10.0)
        for process in processes:
            process.skew_s += step_s
        trace.run(5.0)
        assert trace.outcome("b") is not None
        trace.run(40.0)
        assert trace.outcome("a") is None
        assert trace.ended(within_s=20.0).state == "failed"
        outcome = trace.outcome("a")
        assert outcome is not None and outcome.closed
        assert 60.0 <= outcome.at - trace.began_s("a")[0] < 62.0


@pytest.mark.parametrize("for_s", (5.0, 50.0, 200.0))
def test_17_an_owner_that_was_stopped_between_fold_and_publish_starts_nothing_again(for_s: float) -> None:
    with traced() as trace:
        one = trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        definition = trace.deploy(task("a"), task("b", "a"))
        trace.agent()
        trace.on("publish", ".e1.started", lambda: trace.stop(one, for_s))
        trace.start(definition)
        assert trace.ended().state == "completed"
        trace.run(for_s + 60.0)
        assert trace.began() == [("a", 1), ("b", 1)]
        assert trace.work() == []


def test_18_a_log_that_lost_its_end_with_the_power_is_gone_on_with_as_it_is() -> None:
    with traced() as trace:
        definition = ready(trace, task("a"), task("b", "a"))
        trace.agent()
        trace.start(definition)
        trace.ended()
        trace.run(1.0)
        # The end, and the outcome of b, were not on the disk yet.
        trace.world.crash_server(1.0)
        trace.log.truncate(trace.log.last_sequence - 2)
        trace.run(0.5)
        assert trace.end() is None
        assert trace.ended().state == "completed"


def test_20_an_execution_waits_for_its_definition_and_the_others_do_not_wait_for_it() -> None:
    with traced() as trace:
        definition = ready(trace, task("a"))
        trace.agent()
        late = WorkflowDefinition("late", (task("a"), task("b", "a")))
        trace.definitions[late.digest()] = late
        # As a client of another kind could: the fact first, and the definition after it.
        trace.call(lambda operations: operations.start("late", late.digest(), None, "e1"))
        trace.start(definition, "e2")
        assert trace.ended("e2").state == "completed"
        trace.run(20.0)
        assert trace.end("e1") is None
        trace.call(lambda operations: operations.deploy(late))
        assert trace.ended("e1").state == "completed"


def test_22_a_signal_and_a_cancel_that_come_before_the_start_are_kept() -> None:
    with traced() as trace:
        definition = ready(trace, TaskDefinition("a", wait_for="go", timeout=30.0))
        trace.agent()
        publish = trace.world.server.publish
        publish("im.fact.0.e1.signal.go.s1", "", b"", b'{"n":7}')
        publish("im.fact.0.e2.command.cancel.c1", "", b"", b'{"v":1,"kind":"cancel"}')
        trace.world.server.flush()
        trace.run(5.0)
        trace.start(definition, "e1")
        trace.start(definition, "e2")
        assert trace.ended("e1", within_s=5.0).state == "completed"
        assert trace.ended("e2", within_s=5.0).state == "cancelled"


def test_23_an_agent_that_sends_its_idempotency_key_as_msg_id_loses_no_outcome() -> None:
    with traced() as trace:
        definition = ready(trace, task("a", agent="agent-careless", retry=TWICE))
        trace.start(definition)
        for outcome in (b'{"error":{"type":"x","message":"it broke"}}', b'{"result":1}'):
            trace.until(trace.work, "work for the careless agent")
            (subject,) = trace.work()
            work = json.loads(trace.stream("IM_WORK").last(subject).data)  # type: ignore[union-attr]
            headers = f"NATS/1.0\r\nNats-Msg-Id: {work['idempotency_key']}\r\n\r\n".encode()
            trace.world.server.publish(work["reply_to"], "", headers, outcome)
            trace.stream("IM_WORK").purge(subject, trace.world.streams.now_ns())
            trace.world.server.flush()
            trace.run(0.5)
        trace.world.journal.clear()
        end = trace.end() or trace.ended()
        assert end.state == "completed"
        # Nobody kept a journal of what it did.
        trace.knowledge.is_kept = False


@pytest.mark.parametrize("tail", ("outcome.agent-a.a.1.0000000000000000", "finished.1.0000000000000000"))
def test_23_a_forged_fact_changes_nothing(tail: str) -> None:
    with traced({("a", 1): [("ok", 2.0)]}) as trace:
        definition = ready(trace, task("a"))
        trace.agent()
        trace.start(definition)
        trace.world.server.publish(
            f"im.fact.0.e1.{tail}", "", b"", b'{"v":1,"kind":"finished","state":"failed","result":1}'
        )
        trace.world.server.flush()
        trace.run(1.0)
        assert trace.end() is None
        end = trace.ended()
        assert isinstance(end, Finished) and end.state == "completed"
        assert len(trace.began()) == 1


# Notes.


def test_30_two_copies_under_a_live_agent_that_extends_no_lease_give_one_outcome() -> None:
    with traced({("a", 1): [("slow", 20.0)]}) as trace:
        definition = ready(trace, task("a", agent=PLAIN))
        trace.plain_agent()
        trace.plain_agent()
        trace.start(definition)
        trace.run(5.0)
        consumer = trace.world.streams.consumers["IM_WORK", PLAIN]
        for sequence in list(consumer.pending):
            consumer.redeliver(sequence)
        trace.world.server.flush()
        assert trace.ended().state == "completed"
        assert trace.began() == [("a", 1), ("a", 1)]
        trace.run(30.0)
        assert trace.work() == []


@pytest.mark.parametrize("after_s", (0.0, 0.001, 0.5, 0.999, 1.0, 1.002, 2.0))
def test_34_a_cancel_at_any_time_beside_a_completion_gives_one_end(after_s: float) -> None:
    with traced({("a", 1): [("ok", 1.0)]}) as trace:
        trace.coordinator(owns_all=True)
        trace.coordinator(owns_all=True)
        definition = trace.deploy(task("a"), on_failure=(task("u", compensates="a"),))
        trace.agent()
        trace.start(definition)
        trace.run(after_s)
        trace.call(lambda operations: operations.cancel("e1", "enough"))
        end = trace.ended()
        assert end.state in ("completed", "cancelled")
        trace.run(60.0)
        assert sum(isinstance(fact, Finished) for fact in trace.facts()) == 1
