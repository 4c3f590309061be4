"""Taking an execution up again: what completed is kept, what was undone and all after it runs again, once."""

import pytest
from infinity_matrix_actors.definition import (
    ApprovalDefinition,
    CompensateWhen,
    LoopDefinition,
    MapDefinition,
    SlotsDefinition,
)
from infinity_matrix_actors.effect import PublishFinished
from story import Story, child, each, loop, task, undo, wait, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}
UNDO_A = (undo("a", "undo-a"),)


def test_what_completed_is_kept_and_what_failed_runs_again_with_the_next_attempt() -> None:
    story = Story(workflow(task("a"), task("b", "a"), task("c", "b"))).check(
        """
        started  -> work a.1
        a ok     -> work b.1
        b fatal  -> finished failed
        finished ->
        retry    -> work b.2  | a completed, b queued, c waiting, =running
        b ok     -> work c.1
        c ok     -> finished completed
        """
    )
    ends = [effect for effect in story.effects if isinstance(effect, PublishFinished)]
    assert [end.n for end in ends] == [1, 2]
    assert story.actor.error is None


def test_retries_are_counted_anew_and_attempts_go_on() -> None:
    Story(workflow(task("a", retry=RETRY))).check(
        """
        started      -> work a.1
        a fails      ->
        +5 a due 2   -> work a.2
        a fails      -> finished failed
        finished     ->
        retry        -> work a.3
        a fails      ->                 | a retrying
        +5 a due 4   -> work a.4
        a fails      -> finished failed
        finished     ->
        retry        -> work a.5
        """
    )


@pytest.mark.parametrize("late", ["b.1 ok", "b.1 fatal", "b due 2", "a ok", "started", "b.1 taken"])
def test_facts_of_the_run_before_change_nothing(late: str) -> None:
    story = Story(workflow(task("a"), task("b", "a"))).tells("started", "a ok", "b fatal", "finished", "retry")
    before = story.actor.record()
    assert story.tell(late) == []
    assert story.actor.record() == before


@pytest.mark.parametrize("state", ["completed", "not yet finished", "running"])
def test_what_has_not_ended_badly_is_not_taken_up_again(state: str) -> None:
    story = Story(workflow(task("a"))).tells("started")
    if state == "completed":
        story.tells("a ok", "finished")
    elif state == "not yet finished":
        # Its end is decided, and is not a fact yet.
        story.tells("a fatal")
    before = story.actor.record()
    assert story.tell("retry") == []
    assert story.tell("compensate") == []
    assert story.actor.record() == before


def test_a_second_retry_changes_nothing() -> None:
    story = Story(workflow(task("a"))).tells("started", "a fatal", "finished", "retry")
    before = story.actor.record()
    assert story.tell("retry") == []
    assert story.actor.record() == before


def test_what_was_undone_and_what_comes_after_it_runs_again() -> None:
    definition = workflow(task("a"), task("b", "a"), task("c", "b"), task("x"), on_failure=UNDO_A)
    story = Story(definition).check(
        """
        started   -> work a.1, work x.1
        a ok      -> work b.1
        x ok      ->
        b ok      -> work c.1
        c fatal   -> work undo-a.1
        undo-a ok -> finished failed
        finished  ->
        retry     -> work a.2           | a queued, b waiting, c waiting, x completed
        a ok      -> work b.2
        b ok      -> work c.2
        c fatal   -> work undo-a.2      | =compensating
        undo-a ok -> finished failed
        """
    )
    assert story.actor.compensated == ("a",)


def test_what_could_not_be_undone_is_kept() -> None:
    Story(workflow(task("a"), task("b", "a"), on_failure=UNDO_A)).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b fatal      -> work undo-a.1
        undo-a fatal -> finished failed
        finished     ->
        retry        -> work b.2        | a completed
        b fatal      -> work undo-a.2
        undo-a ok    -> finished failed
        """
    )


def test_what_was_undone_and_did_not_run_again_is_not_undone_twice() -> None:
    definition = workflow(
        task("a"),
        task("b", "a"),
        task("z", condition="input.go"),
        on_failure=(undo("b", "undo-b", compensate_when=CompensateWhen.ATTEMPTED),),
    )
    story = Story(definition, {"go": True}).check(
        """
        started   -> work a.1, work z.1
        a ok      -> work b.1
        b fatal   -> tell all
        z fatal   -> work undo-b.1
        undo-b ok -> finished failed
        finished  ->
        retry     -> work b.2, work z.2
        z fatal   -> tell all
        b stops   -> work undo-b.2
        undo-b ok -> finished failed
        """
    )
    assert story.actor.compensated == ("b",)


def test_a_task_that_was_attempted_before_and_not_since_is_not_undone_again() -> None:
    definition = workflow(
        task("a"),
        task("b", "a"),
        on_failure=(*UNDO_A, undo("b", "undo-b", compensate_when=CompensateWhen.ATTEMPTED)),
    )
    Story(definition).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b fatal   -> work undo-b.1
        undo-b ok -> work undo-a.1
        undo-a ok -> finished failed
        finished  ->
        retry     -> work a.2
        a fatal   -> finished failed | b cancelled
        """
    )


def test_a_cancelled_execution_can_be_taken_up_again() -> None:
    Story(workflow(task("a"), task("b"), task("c", "a", "b"))).check(
        """
        started  -> work a.1, work b.1
        a ok     ->
        cancel   -> tell all
        b stops  -> finished cancelled
        finished ->
        retry    -> work b.2            | a completed, c waiting
        b ok     -> work c.1
        c ok     -> finished completed
        """
    )


def test_a_task_that_waits_waits_again_and_its_time_counts_from_then() -> None:
    story = Story(workflow(task("a"), wait("s", sleep=100.0))).tells("started", "a fatal", "finished", "+500 retry")
    story.check_states("s running, a queued")
    attempt = story.actor.tasks["s"].attempt
    at = story.now - 1000.0
    assert story.timer("s", at + 50) == [f"arm s {at + 100:g}"]
    # The `due` of the run before may be in the log already: this one has a number of its own.
    assert story.timer("s", at + 100)[0] == f"due s.{attempt + 1}"
    assert attempt + 1 > 1
    assert story.tell("s due 1") == []
    story.check(
        f"""
        +100 s due {attempt + 1} ->
        a ok                     -> finished completed
        """
    )


@pytest.mark.parametrize("when", ["before the end", "after the end"])
def test_a_signal_sent_meanwhile_is_there_for_the_next_run(when: str) -> None:
    story = Story(workflow(task("a"), wait("w", wait_for="go"))).tells("started", "a fatal")
    story.tells(*(["signal go x", "finished"] if when == "before the end" else ["finished", "signal go x"]))
    story.check("retry -> work a.2 | w completed")
    assert story.actor.tasks["w"].result == "x"


def test_an_approval_is_asked_for_again() -> None:
    asked = wait("ok", approval=ApprovalDefinition(deadline=60.0))
    story = Story(workflow(asked)).tells("started", "ok reject", "finished", "retry")
    story.check_states("ok running")
    story.check("ok approve -> finished completed")


def test_a_branch_that_was_skipped_stays_so_unless_what_it_asks_runs_again() -> None:
    definition = workflow(
        task("a"), task("no", "a", condition="a.result.n > 5"), task("b", "a"), on_failure=(undo("b", "undo-b"),)
    )
    Story(definition).check(
        """
        started  -> work a.1
        a ok 1   -> work b.1       | no skipped
        b fatal  -> finished failed
        finished ->
        retry    -> work b.2       | no skipped
        """
    )
    again = workflow(*definition.tasks, on_failure=UNDO_A)
    Story(again).check(
        """
        started   -> work a.1
        a ok 1    -> work b.1
        b fatal   -> work undo-a.1
        undo-a ok -> finished failed
        finished  ->
        retry     -> work a.2              | no waiting
        a ok 7    -> work no.1, work b.2
        """
    )


def test_a_failure_that_was_handled_is_not_taken_up_again() -> None:
    definition = workflow(task("a"), task("mend", "a", run_when="any_failed"), task("b"))
    Story(definition).check(
        """
        started  -> work a.1, work b.1
        a fatal  -> work mend.1
        mend ok  ->
        b fatal  -> finished failed
        finished ->
        retry    -> work b.2           | a failed, mend completed
        b ok     -> finished completed
        """
    )


def test_the_timeout_of_the_whole_counts_from_the_retry_and_a_late_one_of_before_does_nothing() -> None:
    story = Story(workflow(task("a"), timeout=60.0)).tells("started", "a fatal", "finished", "+500 retry")
    at = story.now - 1000.0
    assert story.armed()[None] == at + 60.0
    early = story._fact("deadline")
    assert early.id == "timeout-2"  # type: ignore[union-attr]
    from dataclasses import replace

    assert story.actor.receive(replace(early, id="timeout")) == []
    story.check_states("a queued, =running")
    story.check(
        """
        +60 deadline -> tell all
        a stops      -> finished failed
        """
    )


def test_what_was_paused_when_it_ended_goes_on_when_it_is_taken_up() -> None:
    Story(workflow(task("a"), task("b"), on_failure=(undo("b", "undo-b"),))).check(
        """
        started      -> work a.1, work b.1
        a fatal      -> tell all
        b ok         -> work undo-b.1
        pause        ->                  | =paused
        undo-b fatal -> finished failed
        finished     ->
        compensate   -> work undo-b.2    | =compensating
        pause        ->
        undo-b ok    -> finished failed
        finished     ->
        retry        -> work a.2, work b.2 | =running
        """
    )


def test_a_child_that_failed_is_started_as_another() -> None:
    Story(workflow(child("c"))).check(
        """
        started              -> child c.1
        c fatal child_failed -> finished failed
        finished             ->
        retry                -> child c.2
        c.1 ok               ->
        c ok                 -> finished completed
        """
    )


# Maps and loops.


def test_a_map_goes_on_with_its_failed_instances_alone() -> None:
    story = Story(workflow(each("m", "input", max_parallel=2), task("b", "m")), [0, 1, 2, 3]).check(
        """
        started   -> work m~0.1, work m~1.1
        m~0 ok    -> work m~2.1
        m~1 fatal ->
        m~2 ok    -> finished failed
        finished  ->
        retry     -> work m~1.2, work m~3.1 | m running
        m~3 ok    ->
        m~1 ok    -> work b.1               | m completed
        """
    )
    assert story.actor.tasks["m"].result == [{"from": f"m~{index}"} for index in range(4)]


def test_instances_that_were_cancelled_run_again() -> None:
    Story(workflow(each("m", "input")), [0, 1]).check(
        """
        started   -> work m~0.1, work m~1.1
        cancel    -> tell all
        m~0 stops ->
        m~1 stops -> finished cancelled
        finished  ->
        retry     -> work m~0.2, work m~1.2
        m~0 ok    ->
        m~1 ok    -> finished completed
        """
    )


def test_instances_that_were_undone_run_again_and_those_that_were_not_are_kept() -> None:
    definition = workflow(each("m", "input"), task("b", "m"), on_failure=(undo("m", "undo-m"),))
    story = Story(definition, ["x", "y"]).check(
        """
        started        -> work m~0.1, work m~1.1
        m~0 ok         ->
        m~1 ok         -> work b.1
        b fatal        -> work undo-m~0.1, work undo-m~1.1
        undo-m~0 ok    ->
        undo-m~1 fatal -> finished failed
        finished       ->
        retry          -> work m~0.2         | m running, b waiting
        m~0 ok         -> work b.2           | m completed
        b fatal        -> work undo-m~0.2, work undo-m~1.2
        """
    )
    assert story.actor.variables(story.actor.tasks["m~1"])["item"] == "y"


def test_a_map_begins_anew_when_its_items_do() -> None:
    definition = workflow(task("a"), each("m", "a.result", "a", max_parallel=5), on_failure=UNDO_A)
    story = Story(definition).check(
        """
        started           -> work a.1
        a gives [1,2,3]   -> work m~0.1, work m~1.1, work m~2.1
        m~0 ok            ->
        m~1 fatal         ->
        m~2 ok            -> work undo-a.1
        undo-a ok         -> finished failed
        finished          ->
        retry             -> work a.2                    | m waiting
        a gives [7,8]     -> work m~0.2, work m~1.2
        m~0 ok            ->
        m~1 ok            -> finished completed
        """
    )
    assert story.actor.tasks["m"].result == [{"from": "m~0"}, {"from": "m~1"}]


def test_instances_that_were_undone_and_not_begun_since_are_not_undone_twice() -> None:
    definition = workflow(task("a"), each("m", "a.result", "a"), on_failure=(*UNDO_A, undo("m", "undo-m")))
    story = Story(definition).check(
        """
        started         -> work a.1
        a gives [1,2,3] -> work m~0.1, work m~1.1, work m~2.1
        m~0 ok          ->
        m~1 ok          ->
        m~2 fatal       -> work undo-m~0.1, work undo-m~1.1
        undo-m~0 ok     ->
        undo-m~1 ok     -> work undo-a.1
        undo-a ok       -> finished failed
        finished        ->
        retry           -> work a.2
        a gives [5]     -> work m~0.2
        m~0 fatal       -> work undo-a.2 | m failed
        undo-a ok       -> finished failed
        """
    )
    assert story.actor.compensated == ("a",)


def test_an_inner_map_goes_on_where_it_failed() -> None:
    story = Story(workflow(each("m", ("input", "item")), task("b", "m")), [[1, 2], [3, 4]]).check(
        """
        started     -> work m~0~0.1, work m~0~1.1, work m~1~0.1, work m~1~1.1
        m~0~0 ok    ->
        m~0~1 ok    ->                  | m~0 completed
        m~1~0 ok    ->
        m~1~1 fatal -> finished failed  | m~1 failed, m failed
        finished    ->
        retry       -> work m~1~1.2     | m running, m~0 completed
        m~1~1 ok    -> work b.1         | m completed
        """
    )
    assert story.actor.tasks["m"].result[0] == [{"from": "m~0~0"}, {"from": "m~0~1"}]
    assert story.actor.tasks["m"].result[1] == [{"from": "m~1~0"}, {"from": "m~1~1"}]


def test_an_inner_instance_undone_runs_again_in_its_place() -> None:
    definition = workflow(each("m", ("input", "item")), task("b", "m"), on_failure=(undo("m", "undo-m"),))
    Story(definition, [[1], [2]]).check(
        """
        started          -> work m~0~0.1, work m~1~0.1
        m~0~0 ok         ->
        m~1~0 ok         -> work b.1
        b fatal          -> work undo-m~0~0.1, work undo-m~1~0.1
        undo-m~0~0 ok    ->
        undo-m~1~0 fatal -> finished failed
        finished         ->
        retry            -> work m~0~0.2
        m~0~0 ok         -> work b.2
        """
    )


def test_a_loop_goes_on_with_the_iteration_that_failed() -> None:
    story = Story(workflow(loop("l", "result.n > 2", config={"before": "${{ previous }}"}))).check(
        """
        started   -> work l~0.1
        l~0 ok 1  -> work l~1.1
        l~1 fatal -> finished failed
        finished  ->
        retry     -> work l~1.2
        """
    )
    assert story.actor.tasks["l~1"].config == {"before": {"n": 1}}
    story.check("l~1 ok 3 -> finished completed")


def test_a_loop_that_was_undone_begins_anew() -> None:
    definition = workflow(loop("l", "result.n > 1"), task("b", "l"), on_failure=(undo("l", "undo-l"),))
    Story(definition).check(
        """
        started     -> work l~0.1
        l~0 ok 1    -> work l~1.1
        l~1 ok 2    -> work b.1
        b fatal     -> work undo-l~1.1
        undo-l~1 ok -> work undo-l~0.1
        undo-l~0 ok -> finished failed
        finished    ->
        retry       -> work l~0.2
        l~0 ok 5    -> work b.2
        b fatal     -> work undo-l~0.2
        """
    )


def test_mapped_waits_that_begin_anew_have_due_facts_of_their_own() -> None:
    slept = wait("m", "a", sleep=10.0, map=MapDefinition(("a.result",)))
    story = Story(workflow(task("a"), slept, task("b", "m"), on_failure=UNDO_A))
    story.tells("started", "a gives [1]", "+10 m~0 due 1", "b fatal", "undo-a ok", "finished", "retry", "a gives [1]")
    story.check_states("m~0 running")
    (due, *_) = story.timer("m~0", story.now - 1000 + 10)
    assert due == "due m~0.2"
    story.check("+10 m~0 due 2 -> work b.2")


def test_a_loop_of_waits_begins_anew_too() -> None:
    looped = wait("l", "a", wait_for="go", loop=LoopDefinition("result == 'stop'"), timeout=60.0)
    story = Story(workflow(task("a"), looped, on_failure=UNDO_A))
    story.tells("started", "a ok", "signal go on", "+60 l~1 due 1", "undo-a ok", "finished", "retry", "a ok")
    assert story.timer("l~0", story.now - 1000 + 60)[0] == "due l~0.2"
    story.check("signal go stop -> finished completed")


# Compensations.


def test_what_kept_it_from_beginning_keeps_it_from_beginning_again() -> None:
    no_input = workflow(task("a"), input_schema={"type": "object"}, on_failure=(undo(None, "tell"),))
    no_key = workflow(task("a"), slots=SlotsDefinition(1, "input.customer"), on_failure=(undo(None, "tell"),))
    for definition in (no_input, no_key):
        story = Story(definition, 7).check(
            """
            started  -> work tell.1     | a cancelled, =compensating
            tell ok  -> finished failed
            finished ->
            retry    -> work tell.2     | a cancelled, =compensating
            tell ok  -> finished failed
            """
        )
        assert story.actor.error is not None
        assert story.actor.error["type"] in ("invalid_input", "expression_error")
