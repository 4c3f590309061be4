"""What runs when: sequence, parallel, join, conditions, `run_when`, skips, failures that are handled and those not."""

import itertools

import pytest
from infinity_matrix_actors.definition import RunWhen
from story import Story, task, workflow

CHAIN = workflow(task("a"), task("b", "a"), task("c", "b"))
FORK = workflow(task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"))


def test_a_sequence_runs_one_task_after_the_other() -> None:
    Story(CHAIN).check(
        """
        started            -> work a.1              | =running, a queued, b waiting, c waiting
        a ok               -> work b.1              | a completed, b queued, c waiting
        b ok               -> work c.1              | b completed, c queued
        c ok               -> finished completed    | =completed, c completed
        finished completed ->                       | =completed
        """
    )


def test_tasks_without_upstreams_all_start_at_once() -> None:
    Story(workflow(task("a"), task("b"), task("c"))).check(
        """
        started -> work a.1, work b.1, work c.1 | a queued, b queued, c queued
        c ok    ->                              | c completed
        a ok    ->                              | a completed, =running
        b ok    -> finished completed           | =completed
        """
    )


def test_a_fan_in_waits_for_the_last_of_its_upstreams() -> None:
    Story(FORK).check(
        """
        started -> work a.1
        a ok    -> work b.1, work c.1     | b queued, c queued, d waiting
        c ok    ->                        | d waiting
        b ok    -> work d.1               | d queued
        d ok    -> finished completed
        """
    )


def test_an_edge_that_skips_a_level_waits_for_both_ends() -> None:
    Story(workflow(task("a"), task("b", "a"), task("c", "a", "b"))).check(
        """
        started -> work a.1
        a ok    -> work b.1               | c waiting
        b ok    -> work c.1
        c ok    -> finished completed
        """
    )


@pytest.mark.parametrize("order", list(itertools.permutations("bcd")))
def test_the_order_of_completions_does_not_matter_to_a_join(order: tuple[str, ...]) -> None:
    story = Story(workflow(task("a"), task("b", "a"), task("c", "a"), task("d", "a"), task("e", "b", "c", "d")))
    story.tells("started", "a ok")
    for name in order[:-1]:
        story.check(f"{name} ok -> | e waiting")
    story.check(f"{order[-1]} ok -> work e.1 | e queued")


# Conditions.


def test_a_condition_that_holds_lets_the_task_run() -> None:
    Story(workflow(task("a"), task("b", "a", condition="a.result.n > 1"))).check(
        """
        started -> work a.1
        a ok 2  -> work b.1               | b queued
        """
    )


def test_a_condition_that_does_not_hold_skips_the_task() -> None:
    Story(workflow(task("a"), task("b", "a", condition="a.result.n > 1"), task("c", "b"))).check(
        """
        started -> work a.1
        a ok 1  -> finished completed     | b skipped, c skipped, =completed
        """
    )


def test_a_condition_without_an_answer_fails_the_task_and_never_skips_it() -> None:
    story = Story(workflow(task("a"), task("b", "a", condition="a.result.missing > 1"))).check(
        """
        started -> work a.1
        a ok    -> finished failed        | a completed, b failed, =failed
        """
    )
    assert story.actor.error is not None
    assert story.actor.error["type"] == "condition_error"
    assert story.actor.error["task"] == "b"
    assert story.actor.tasks["b"].attempt == 0


def test_a_condition_that_fails_is_a_failure_that_can_be_handled() -> None:
    Story(
        workflow(task("a"), task("b", "a", condition="a.result.missing > 1"), task("c", "b", run_when="any_failed"))
    ).check(
        """
        started -> work a.1
        a ok    -> work c.1               | b failed, c queued, =running
        c ok    -> finished completed     | =completed
        """
    )


def test_a_condition_that_fails_keeps_back_what_would_start_by_the_same_fact() -> None:
    Story(workflow(task("a"), task("b", "a", condition="a.result.missing > 1"), task("c", "a"))).check(
        """
        started -> work a.1
        a ok    -> finished failed        | b failed, c cancelled, =failed
        """
    )


def test_a_condition_is_not_asked_when_run_when_does_not_hold() -> None:
    # Asked, it would have no answer and fail the task.
    Story(workflow(task("a", condition="false"), task("b", "a", condition="a.result.missing > 1"))).check(
        "started -> finished completed | a skipped, b skipped"
    )


def test_a_condition_sees_the_error_of_a_failed_upstream() -> None:
    fixes = task("fix", "a", run_when="any_failed", condition="a.error.type == 'boom' && a.result == null")
    Story(workflow(task("a"), fixes)).check(
        """
        started  -> work a.1
        a fails  -> work fix.1            | a failed, fix queued
        """
    )
    Story(workflow(task("a"), fixes)).check(
        """
        started        -> work a.1
        a fails other  -> finished completed | a failed, fix skipped
        """
    )


def test_a_first_task_whose_condition_does_not_hold_is_skipped_and_its_followers_hear_of_it() -> None:
    # It once was skipped unheard, and the execution stayed open for ever.
    definition = workflow(task("a", condition="input.go"), task("b", "a"), task("c", "b", run_when="all_settled"))
    story = Story(definition, {"go": False}).check(
        """
        started -> work c.1               | a skipped, b skipped, c queued
        c ok    -> finished completed
        """
    )
    assert story.actor.settled == 3
    Story(definition, {"go": True}).check("started -> work a.1 | a queued, b waiting")


def test_a_first_task_whose_condition_fails_lets_no_later_one_start() -> None:
    Story(workflow(task("a", condition="input.missing > 1"), task("b"), task("c"))).check(
        "started -> finished failed | a failed, b cancelled, c cancelled, =failed"
    )
    # What was dispatched before it is told to stop, and the barrier waits for it.
    Story(workflow(task("a"), task("b", condition="input.missing > 1"), task("c"))).check(
        """
        started -> work a.1, tell all     | a queued, b failed, c waiting, =running
        a ok    -> finished failed        | a completed, c cancelled, =failed
        """
    )


def test_a_first_task_that_waits_for_a_failure_is_skipped() -> None:
    Story(workflow(task("a", run_when="any_failed"), task("b", "a"))).check(
        "started -> finished completed | a skipped, b skipped, =completed"
    )


# `run_when`: every value against every mix of two upstream tasks.

HOLDS = {
    # upstream states      default  all_completed  any_completed  all_settled  any_failed
    ("completed", "completed"): (True, True, True, True, False),
    ("completed", "skipped"): (True, False, True, True, False),
    ("completed", "failed"): (False, False, True, True, True),
    ("skipped", "skipped"): (False, False, False, True, False),
    ("skipped", "failed"): (False, False, False, True, True),
    ("failed", "failed"): (False, False, False, True, True),
}
RUN_WHEN = (
    RunWhen.DEFAULT,
    RunWhen.ALL_COMPLETED,
    RunWhen.ANY_COMPLETED,
    RunWhen.ALL_SETTLED,
    RunWhen.ANY_FAILED,
)
CASES = [(run_when, mix, holds) for mix, row in HOLDS.items() for run_when, holds in zip(RUN_WHEN, row, strict=True)]


def _drive(story: Story, mix: tuple[str, ...]) -> None:
    """Settles u0, u1, ... as `mix` says, last first: those to be skipped have a condition that does not hold."""
    story.tell("started")
    for number, state in reversed(list(enumerate(mix))):
        if state == "completed":
            story.tell(f"u{number} ok")
        elif state == "failed":
            story.tell(f"u{number} fatal")


@pytest.mark.parametrize(("run_when", "mix", "holds"), CASES)
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_run_when_over_two_upstreams(run_when: RunWhen, mix: tuple[str, str], holds: bool, turned: bool) -> None:
    states = mix[::-1] if turned else mix
    upstream = [
        task(f"u{number}", condition="false" if state == "skipped" else None) for number, state in enumerate(states)
    ]
    # `guard` handles the failures, so that they do not end the execution before `it` is decided.
    it = task("it", "u0", "u1", run_when=run_when)
    guard = task("guard", "u0", "u1", run_when="all_settled")
    story = Story(workflow(*upstream, it, guard))
    _drive(story, states)
    assert [story.state_of("u0"), story.state_of("u1")] == list(states)
    assert story.state_of("it") == ("queued" if holds else "skipped")
    assert story.state_of("guard") == "queued"


@pytest.mark.parametrize("run_when", RUN_WHEN)
@pytest.mark.parametrize("state", ["completed", "failed", "skipped"])
def test_run_when_over_one_upstream(run_when: RunWhen, state: str) -> None:
    holds = {
        "completed": run_when is not RunWhen.ANY_FAILED,
        "failed": run_when in (RunWhen.ALL_SETTLED, RunWhen.ANY_FAILED),
        "skipped": run_when is RunWhen.ALL_SETTLED,
    }[state]
    upstream = task("u0", condition="false" if state == "skipped" else None)
    story = Story(workflow(upstream, task("it", "u0", run_when=run_when), task("guard", "u0", run_when="all_settled")))
    _drive(story, (state,))
    assert story.state_of("it") == ("queued" if holds else "skipped")


@pytest.mark.parametrize("run_when", RUN_WHEN)
def test_run_when_over_no_upstream(run_when: RunWhen) -> None:
    story = Story(workflow(task("it", run_when=run_when)))
    story.tell("started")
    assert story.state_of("it") == ("skipped" if run_when is RunWhen.ANY_FAILED else "queued")


# Skips.


def test_a_skip_goes_down_the_whole_graph_in_one_step() -> None:
    length = 3000  # deeper than Python's recursion limit
    tasks = [task("t0", condition="false"), *(task(f"t{n}", f"t{n - 1}") for n in range(1, length))]
    story = Story(workflow(*tasks))
    story.check("started -> finished completed | t1 skipped, t2999 skipped, =completed")
    assert story.actor.settled == length


def test_a_join_after_two_conditional_branches_runs() -> None:
    definition = workflow(
        task("check"),
        task("small", "check", condition="check.result.n < 10"),
        task("large", "check", condition="check.result.n >= 10"),
        task("join", "small", "large"),
    )
    Story(definition).check(
        """
        started    -> work check.1
        check ok 3 -> work small.1        | small queued, large skipped, join waiting
        small ok   -> work join.1         | join queued
        join ok    -> finished completed
        """
    )
    Story(definition).check(
        """
        started     -> work check.1
        check ok 30 -> work large.1       | small skipped, large queued
        large ok    -> work join.1        | join queued
        """
    )


def test_a_join_of_skipped_branches_is_skipped() -> None:
    Story(
        workflow(task("a"), task("b", "a", condition="false"), task("c", "a", condition="false"), task("d", "b", "c"))
    ).check(
        """
        started -> work a.1
        a ok    -> finished completed     | b skipped, c skipped, d skipped, =completed
        """
    )


# Failures.


def test_an_unhandled_failure_starts_nothing_and_waits_for_what_runs() -> None:
    story = Story(workflow(task("a"), task("b"), task("c", "a"), task("d", "b"))).check(
        """
        started      -> work a.1, work b.1
        a fails boom -> tell all          | a failed, b queued, c waiting, =running
        b ok         -> finished failed   | b completed, c cancelled, d cancelled, =failed
        """
    )
    assert story.actor.error == {"type": "boom", "message": "it broke", "retryable": True, "task": "a"}


def test_the_first_failure_is_the_one_that_is_reported() -> None:
    story = Story(workflow(task("a"), task("b")))
    story.check(
        """
        started       -> work a.1, work b.1
        a fails first -> tell all
        b fails later -> finished failed  | a failed, b failed
        """
    )
    assert story.actor.error is not None
    assert story.actor.error["type"] == "first"


@pytest.mark.parametrize("run_when", ["any_failed", "all_settled", "any_completed"])
def test_a_failure_with_a_direct_handler_does_not_fail_the_execution(run_when: str) -> None:
    story = Story(workflow(task("a"), task("b", "a", run_when=run_when))).tells("started", "a fails")
    assert story.actor.stopped_at is None
    if run_when == "any_completed":  # it handles, and has nothing to run for
        story.check_states("b skipped, =completed")
    else:
        story.check("b ok -> finished completed | a failed, b completed")


@pytest.mark.parametrize("run_when", ["default", "all_completed"])
def test_a_failure_without_a_handler_fails_the_execution(run_when: str) -> None:
    Story(workflow(task("a"), task("b", "a", run_when=run_when))).check(
        """
        started -> work a.1
        a fails -> finished failed        | a failed, b cancelled, =failed
        """
    )


def test_a_handler_further_down_does_not_handle() -> None:
    Story(workflow(task("a"), task("b", "a"), task("c", "b", run_when="any_failed"))).check(
        """
        started -> work a.1
        a fails -> finished failed        | b cancelled, c cancelled
        """
    )


def test_a_handled_failure_skips_its_ordinary_followers() -> None:
    Story(
        workflow(task("a"), task("next", "a"), task("fix", "a", run_when="any_failed"), task("end", "next", "fix"))
    ).check(
        """
        started -> work a.1
        a fails -> work fix.1             | a failed, next skipped, fix queued
        fix ok  -> work end.1             | end queued
        end ok  -> finished completed     | =completed
        """
    )


def test_a_handler_that_fails_fails_the_execution() -> None:
    Story(workflow(task("a"), task("fix", "a", run_when="any_failed"))).check(
        """
        started -> work a.1
        a fails -> work fix.1
        fix fails -> finished failed      | a failed, fix failed, =failed
        """
    )
