"""What is done about failures: actions of the definition, and answers of who holds the workflow."""

import json
import sys
from typing import Any

import pytest
from infinity_matrix_actors.definition import WorkflowDefinition, host_agent
from infinity_matrix_actors.effect import TellAgents
from infinity_matrix_coordinator import callbacks
from infinity_matrix_coordinator.callbacks import actions_of
from story import Story, each, loop, task, undo, wait, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}
ASK = ({"action": "ask"},)
CALL = "im-call~1"


def chain(**fields: Any) -> WorkflowDefinition:
    return workflow(task("a"), task("b", "a"), on_failure=(undo("a", "undo-a"),), **fields)


# on_task_failure, as data.


def test_a_task_may_be_skipped_and_what_follows_is_skipped_too() -> None:
    Story(chain(on_task_failure=({"action": "skip"},))).check(
        """
        started -> work a.1
        a fatal -> finished completed | a skipped, b skipped
        """
    )


def test_a_task_may_be_tried_again_so_often() -> None:
    Story(chain(on_task_failure=({"action": "retry", "max_attempts": 3, "delay": 2},))).check(
        """
        started    -> work a.1
        a fatal    ->                  | a retrying
        +2 a due 2 -> work a.2
        a fails    ->                  | a retrying
        +2 a due 3 -> work a.3
        a fails    -> finished failed  | a failed
        """
    )


def test_its_own_retries_come_first() -> None:
    Story(workflow(task("a", retry=RETRY), on_task_failure=({"action": "skip"},))).check(
        """
        started    -> work a.1
        a fails    ->
        +5 a due 2 -> work a.2
        a fails    -> finished completed | a skipped
        """
    )


def test_what_follows_a_retry_that_is_spent_is_done_then() -> None:
    Story(chain(on_task_failure=({"action": "retry", "max_attempts": 2, "delay": 0}, {"action": "skip"}))).check(
        """
        started    -> work a.1
        a fails    ->
        a due 2    -> work a.2
        a fails    -> finished completed | a skipped
        """
    )


@pytest.mark.parametrize("action", ["fail", "compensate"])
def test_it_may_fail_as_it_would_anyway(action: str) -> None:
    Story(chain(on_task_failure=({"action": action},))).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b fatal   -> work undo-a.1 | =compensating
        undo-a ok -> finished failed
        """
    )


def test_compensate_undoes_all_though_another_task_handles_the_failure() -> None:
    definition = workflow(
        task("a"),
        task("b", "a"),
        task("c", "b", run_when="any_failed"),
        on_failure=(undo("a", "undo-a"),),
        on_task_failure=({"action": "compensate"},),
    )
    Story(definition).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b fatal   -> work undo-a.1 | b failed, c cancelled
        undo-a ok -> finished failed
        """
    )


def test_a_notification_holds_up_nothing_but_the_end() -> None:
    notify = {"action": "notify", "recipients": ["ops@example.com"]}
    story = Story(workflow(task("a"), task("b"), on_task_failure=(notify, {"action": "skip"}))).check(
        """
        started       -> work a.1, work b.1
        a fatal       -> work im-call~1.1   | a skipped
        b ok          ->                    | b completed, =running
        im-call~1 ok  -> finished completed
        """
    )
    config = story.effects and story.actor.tasks[CALL].node.definition
    assert config.agent == "im-notify"
    assert config.config["recipients"] == ["ops@example.com"]
    assert (config.config["event"], config.config["error"]["task"]) == ("on_task_failure:a", "a")


@pytest.mark.parametrize("failure", ["im-call~1 fatal", "im-call~1 closed timed_out", "im-call~1 fails"])
def test_a_notification_that_fails_costs_nothing(failure: str) -> None:
    story = Story(workflow(task("a"), on_task_failure=({"action": "notify"}, {"action": "skip"})))
    story.tells("started", "a fatal", failure)
    story.check_states("=completed")


@pytest.mark.parametrize("late", ["cancel", "deadline"])
def test_nothing_ends_an_execution_that_waits_for_a_notification_alone(late: str) -> None:
    definition = workflow(
        task("a"),
        on_failure=(undo(None, "tell"),),
        timeout=30.0,
        on_task_failure=({"action": "notify"}, {"action": "skip"}),
    )
    story = Story(definition).tells("started", "a fatal")
    assert story.timer(None, 60.0) == []
    story.check(
        f"""
        +60 {late}    ->
        im-call~1 ok  -> finished completed
        """
    )


def test_a_notification_does_not_hold_up_the_compensations() -> None:
    Story(chain(on_error=({"action": "notify"},))).check(
        """
        started      -> work a.1
        a ok         -> work b.1
        b fatal      -> work im-call~1.1, work undo-a.1
        undo-a ok    ->
        im-call~1 ok -> finished failed
        """
    )


def test_no_more_calls_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "CALLS_MAX", 1)
    Story(workflow(task("a"), task("b"), on_task_failure=({"action": "notify"}, {"action": "skip"}))).check(
        """
        started      -> work a.1, work b.1
        a fatal      -> work im-call~1.1
        b fatal      ->                     | b skipped
        im-call~1 ok -> finished completed
        """
    )


# on_error, as data.


def test_on_error_may_try_what_failed_again() -> None:
    Story(chain(on_error=({"action": "retry", "max_attempts": 2, "delay": 0.0},))).check(
        """
        started   -> work a.1
        a ok      -> work b.1
        b fatal   -> work b.2       | =running
        b fatal   -> work undo-a.1  | b failed, =compensating
        undo-a ok -> finished failed
        """
    )


def test_on_error_may_skip_what_failed() -> None:
    Story(workflow(task("a"), task("b", "a"), task("c"), on_error=({"action": "skip"},))).check(
        """
        started -> work a.1, work c.1
        a fatal -> tell all
        c ok    -> finished completed | a skipped, b skipped, c completed
        """
    )


def test_what_was_stopped_by_the_failure_begins_again_when_it_is_skipped() -> None:
    definition = workflow(
        task("a"),
        task("c", retry=RETRY),
        wait("s", sleep=10.0),
        each("m", "input", max_parallel=1),
        task("z", "m"),
        on_error=({"action": "skip"},),
    )
    story = Story(definition, [0, 1]).check(
        """
        started   -> work a.1, work c.1, work m~0.1
        c fails   ->                                  | c retrying
        a fatal   -> tell all
        c due 2   ->
        m~0 stops -> work c.2, work m~0.2             | a skipped, s running, m running, =running
        m~0 ok    -> work m~1.1
        m~1 ok    -> work z.1                         | m completed
        z ok      ->
        c ok      ->                                  | c completed
        """
    )
    attempt = story.actor.tasks["s"].attempt
    assert story.timer("s", story.now - 1000 + 60)[0] == f"due s.{attempt + 1}"
    story.check(f"+60 s due {attempt + 1} -> finished completed")


def test_an_instance_that_was_still_to_begin_again_is_not_forgotten_by_another_failure() -> None:
    definition = workflow(
        each("m", "input", max_parallel=1, tolerated=1), task("x"), task("y"), on_error=({"action": "skip"},)
    )
    Story(definition, [0, 1]).check(
        """
        started   -> work m~0.1, work x.1, work y.1
        pause     ->
        m~0 fatal ->                              | m~0 failed
        x fatal   -> tell all
        resume    ->
        y stops   -> work m~0.2, work y.2         | x skipped, m running
        y fatal   -> tell all
        m~0 stops -> work m~0.3                   | y skipped
        m~0 ok    -> work m~1.1
        m~1 ok    -> finished completed
        """
    )


def test_a_signal_that_came_while_it_was_stopped_is_there_when_it_goes_on() -> None:
    Story(workflow(task("a"), task("c"), wait("w", wait_for="go"), on_error=({"action": "skip"},))).check(
        """
        started   -> work a.1, work c.1
        a fatal   -> tell all
        signal go ->
        c ok      -> finished completed | w completed, a skipped
        """
    )


def test_a_graph_that_fails_again_at_once_is_asked_about_again() -> None:
    definition = workflow(
        task("a"),
        task("b", "a", run_when="all_settled", config={"n": "${{ a.result.n }}"}),
        task("c", "b", run_when="any_failed", config={"n": "${{ b.result.n }}"}),
        task("d", "c", run_when="all_settled"),
        on_error=({"action": "skip"},),
    )
    Story(workflow(*definition.tasks[:3], on_error=definition.on_error)).check(
        """
        started -> work a.1
        a ok    -> finished completed | b failed, c skipped
        """
    )
    many = (task(f"t{number}", config={"n": "${{ input.missing }}"}) for number in range(sys.getrecursionlimit() // 3))
    Story(workflow(*many, on_error=definition.on_error), {}).check("started -> finished completed | t300 skipped")


def test_a_timeout_of_the_whole_is_not_tried_again() -> None:
    Story(chain(on_error=({"action": "retry", "max_attempts": 9}, {"action": "skip"}), timeout=60.0)).check(
        """
        started      -> work a.1
        +60 deadline -> tell all
        a stops      -> finished failed
        """
    )


def test_a_map_may_be_tried_again_by_its_failed_instances() -> None:
    policy = ({"action": "retry", "max_attempts": 2, "delay": 0.0},)
    Story(workflow(each("m", "input"), on_error=policy), [0, 1]).check(
        """
        started   -> work m~0.1, work m~1.1
        m~0 ok    ->
        m~1 fatal -> work m~1.2       | m running
        m~1 fatal -> finished failed  | m failed
        """
    )


def test_a_cancel_is_no_error() -> None:
    Story(chain(on_error=ASK)).check(
        """
        started -> work a.1
        cancel  -> tell all
        a stops -> finished cancelled
        """
    )


# Asking who holds the workflow.


def test_who_holds_the_workflow_is_asked_when_the_retries_are_spent() -> None:
    definition = workflow(task("a", retry=RETRY), on_task_failure=ASK)
    story = Story(definition).check(
        """
        started    -> work a.1
        a fails    ->
        +5 a due 2 -> work a.2
        a fails    -> work im-call~1.1 | a retrying
        """
    )
    asked = story.actor.tasks[CALL].node.definition
    assert asked.agent == host_agent(definition.digest())
    assert asked.config["callback"] == "on_task_failure"
    assert (asked.config["task"], asked.config["attempt"], asked.config["error"]["type"]) == ("a", 2, "boom")


@pytest.mark.parametrize(
    ("answer", "follows", "states"),
    [
        ('{"action":"skip"}', ["finished completed"], "a skipped"),
        ('[{"action":"skip"}]', ["finished completed"], "a skipped"),
        ('{"action":"fail"}', ["finished failed"], "a failed"),
        ('{"action":"compensate"}', ["finished failed"], "a failed"),
        ("null", ["finished failed"], "a failed"),
        ("[]", ["finished failed"], "a failed"),
        ('"nonsense"', ["finished failed"], "a failed"),
        ('[7,{"action":"skip"}]', ["finished failed"], "a failed"),
        ('[{"action":"dance"},{"action":"skip"}]', ["finished failed"], "a failed"),
        ('{"action":"retry"}', [], "a retrying"),
        ('{"action":"retry","max_attempts":1}', ["finished failed"], "a failed"),
        ('{"action":"retry","max_attempts":"many"}', ["finished failed"], "a failed"),
        ('{"action":"retry","delay":"5s"}', [], "a retrying"),
        ('{"action":"retry","delay":"soon"}', ["finished failed"], "a failed"),
        ('[{"action":"notify","recipients":["a@example.com"]},{"action":"skip"}]', ["work im-call~2.1"], "a skipped"),
    ],
)
def test_every_answer_has_its_consequence(answer: str, follows: list[str], states: str) -> None:
    expected = ", ".join(follows)
    Story(workflow(task("a"), on_task_failure=ASK)).check(
        f"""
        started                  -> work a.1
        a fatal                  -> work im-call~1.1
        im-call~1 gives {answer} -> {expected} | {states}
        """
    )


@pytest.mark.parametrize("failure", ["im-call~1 fatal", "im-call~1 closed timed_out"])
def test_no_answer_means_that_it_fails(failure: str) -> None:
    story = Story(workflow(task("a"), on_task_failure=ASK)).tells("started", "a fatal", failure)
    story.check_states("a failed, =failed")


def test_a_question_that_nobody_takes_is_closed_after_its_time() -> None:
    story = Story(workflow(task("a"), on_task_failure=ASK, callback_timeout=5.0)).tells("started", "a fatal")
    assert story.quiet(CALL, 3.0, is_queued=True) == ["arm im-call~1 4"]
    assert story.quiet(CALL, 6.5, is_queued=True)[0] == "close im-call~1.1 timed_out"


@pytest.mark.parametrize("late", ["im-call~1.1 ok", "im-call~1@agent-x ok", "im-call~1 taken", "im-call~2 ok", "a ok"])
def test_a_question_is_answered_once(late: str) -> None:
    story = Story(workflow(task("a"), task("b"), on_task_failure=ASK))
    story.tells("started", "a fatal", 'im-call~1 gives {"action":"skip"}')
    before = story.actor.record()
    assert story.tell(late) == []
    assert story.actor.record() == before


def test_others_go_on_while_it_is_asked() -> None:
    Story(workflow(task("a"), task("b"), task("c", "b"), on_task_failure=ASK)).check(
        """
        started                           -> work a.1, work b.1
        a fatal                           -> work im-call~1.1
        b ok                              -> work c.1
        c ok                              ->
        im-call~1 gives {"action":"skip"} -> finished completed
        """
    )


def test_an_answer_after_a_cancel_changes_nothing_more() -> None:
    Story(workflow(task("a"), on_task_failure=ASK)).check(
        """
        started                            -> work a.1
        a fatal                            -> work im-call~1.1
        cancel                             -> tell all
        im-call~1 gives {"action":"retry"} -> finished cancelled | a failed
        """
    )


def test_an_iteration_that_is_passed_over_leaves_its_loop_without_a_result() -> None:
    Story(workflow(loop("l", "result.n > 9"), task("b", "l"), on_task_failure=({"action": "skip"},))).check(
        """
        started   -> work l~0.1
        l~0 ok 1  -> work l~1.1
        l~1 fatal -> finished completed | l~1 skipped, l skipped, b skipped
        """
    )


def test_an_instance_that_is_passed_over_has_no_result() -> None:
    story = Story(workflow(each("m", "input"), on_task_failure=({"action": "skip"},)), [0, 1]).check(
        """
        started   -> work m~0.1, work m~1.1
        m~0 fatal ->                    | m~0 skipped
        m~1 ok    -> finished completed | m completed
        """
    )
    assert story.actor.tasks["m"].result == [None, {"from": "m~1"}]


def test_on_error_is_asked_once_all_has_ended_and_before_anything_is_undone() -> None:
    story = Story(chain(on_error=ASK)).check(
        """
        started                           -> work a.1
        a ok                              -> work b.1
        b fatal                           -> work im-call~1.1 | =running
        im-call~1 gives {"action":"fail"} -> work undo-a.1    | =compensating
        undo-a ok                         -> finished failed
        """
    )
    assert story.actor.tasks[CALL].node.definition.config["error"]["task"] == "b"


def test_the_question_of_on_error_has_its_own_time_not_the_grace() -> None:
    story = Story(chain(on_error=ASK, grace=5.0, callback_timeout=30.0)).tells("started", "a ok", "b fatal")
    assert story.timer(None, 20.0) == []
    assert story.quiet(CALL, 3.0, is_queued=True) == ["arm im-call~1 4.5"]
    assert story.quiet(CALL, 32.5, is_queued=True)[0] == "close im-call~1.1 timed_out"
    # Nor is whoever answers it told to stop by a new owner.
    assert not [effect for effect in story.actor.outstanding() if isinstance(effect, TellAgents)]


def test_on_error_may_let_it_go_on() -> None:
    Story(chain(on_error=ASK)).check(
        """
        started                                              -> work a.1
        a ok                                                 -> work b.1
        b fatal                                              -> work im-call~1.1
        im-call~1 gives {"action":"retry","max_attempts":2}  ->
        +5 again                                             -> work b.2
        b fatal                                              -> work im-call~2.1
        im-call~2 gives {"action":"skip"}                    -> finished completed | b skipped
        """
    )


def test_without_an_answer_it_fails_as_it_would() -> None:
    Story(chain(on_error=ASK)).check(
        """
        started                    -> work a.1
        a ok                       -> work b.1
        b fatal                    -> work im-call~1.1
        im-call~1 closed timed_out -> purge im-call~1.1, tell im-call~1, work undo-a.1
        undo-a ok                  -> finished failed
        """
    )


def test_questions_go_out_while_it_is_paused() -> None:
    Story(workflow(task("a"), task("b", "a"), on_task_failure=ASK)).check(
        """
        started                           -> work a.1
        pause                             ->
        a fatal                           -> work im-call~1.1
        im-call~1 gives {"action":"skip"} -> finished completed
        """
    )


@pytest.mark.parametrize(
    ("result", "actions"),
    [
        (None, []),
        ([], []),
        ({"action": "skip"}, [{"action": "skip"}]),
        ({"action": "retry", "delay": "1m"}, [{"action": "retry", "delay": 60.0}]),
    ],
)
def test_an_answer_is_an_action_or_several_in_the_words_of_definitions(result: object, actions: list[object]) -> None:
    assert actions_of(result) == actions


@pytest.mark.parametrize("result", ["x", 7, [1, {"action": "skip"}], {"a": 1}, {"action": "ask"}])
def test_an_answer_that_is_no_action_is_refused_and_says_why(result: object) -> None:
    with pytest.raises(ValueError, match=r"no action|neither an action"):
        actions_of(result)
    story = Story(workflow(task("a"), on_task_failure=ASK))
    story.tells("started", "a fatal", f"im-call~1 gives {json.dumps(result, separators=(',', ':'))}".replace(": ", ":"))
    answer = story.actor.tasks["im-call~1"]
    assert answer.error is not None
    assert answer.error.type == "InvalidAnswer"
