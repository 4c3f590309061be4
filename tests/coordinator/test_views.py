"""What people are shown: status, result, updates, metrics, folded from facts with the facts' own times."""

import pytest
from infinity_matrix_actors.errors import ExecutionFailed
from infinity_matrix_actors.fact import Outcome, Taken
from infinity_matrix_coordinator.views import metrics_of, result_of, status_of, updates_of
from story import AGENT, EXECUTION, START, Story, child, each, loop, task, workflow

RETRY = {"max_attempts": 3, "backoff": "fixed", "initial_delay": 10.0, "jitter": 0.0}
FORK = workflow(task("a"), task("b", "a", condition="false"), task("c", "a"), task("d", "b", "c"))


def _outcome(story: Story, name: str, at: float, *, started_at: float | None = None) -> None:
    """An agent's outcome with the time it says it began; both in seconds after START."""
    began_at = START + started_at if started_at is not None else None
    attempt = story.actor.tasks[name].attempt
    story.actor.receive(Outcome(EXECUTION, START + at, AGENT, name, attempt, {"x": 1}, None, began_at))


def test_progress_is_settled_tasks_over_all_tasks() -> None:
    story = Story(FORK)
    progress = []
    for line in ("started", "a ok", "c ok", "d ok"):
        story.tell(line)
        progress.append(status_of(story.actor).progress)
    assert progress == [0.0, 50.0, 75.0, 100.0]
    assert status_of(Story(workflow(task("a"), task("b"), task("c"))).tells("started", "a ok").actor).progress == 33.3


def test_the_current_task_is_the_first_that_runs_else_that_is_queued_else_that_waits_for_another_attempt() -> None:
    story = Story(workflow(task("a", retry=RETRY), task("b"), task("c")))
    current = []
    for line in ("started", "c taken", "b taken", "b ok", "c ok", "a fails", "a due 2", "a ok"):
        story.tell(line)
        current.append(status_of(story.actor).current_task)
    assert current == ["a", "c", "b", "c", "a", "a", "a", None]


def test_an_execution_that_is_over_has_no_current_task() -> None:
    story = Story(workflow(task("a", retry=RETRY), task("b"))).tells("started", "a fails", "b ok", "cancel")
    status = status_of(story.actor)
    assert (status.state, status.current_task, status.progress) == ("cancelled", None, 100.0)


def test_a_status_names_every_task_in_the_order_they_were_written() -> None:
    story = Story(FORK).tells("started", "+2 a ok")
    status = status_of(story.actor)
    assert [(name, one.state, one.attempt) for name, one in status.tasks.items()] == [
        ("a", "completed", 1),
        ("b", "skipped", 0),
        ("c", "queued", 1),
        ("d", "waiting", 0),
    ]
    assert (status.execution_id, status.workflow, status.definition) == (EXECUTION, "w", story.plan.digest)
    assert (status.started_at, status.completed_at, status.state) == (START, None, "running")
    a = status.tasks["a"]
    assert (a.agent, a.result, a.error) == (AGENT, {"from": "a"}, None)
    assert (a.queued_at, a.completed_at) == (START, START + 2)


def test_a_status_of_a_second_attempt_has_its_times_and_the_error_of_the_first() -> None:
    story = Story(workflow(task("a", retry=RETRY))).tells("started", "+1 a taken", "+1 a fails", "+10 a due 2")
    a = status_of(story.actor).tasks["a"]
    assert (a.state, a.attempt, a.queued_at, a.started_at, a.completed_at) == ("queued", 2, START + 12, None, None)
    assert a.error is not None
    assert a.error["type"] == "boom"
    story.tells("a ok")
    assert status_of(story.actor).tasks["a"].error is None


def test_a_result_has_the_outputs_of_what_completed() -> None:
    story = Story(FORK).tells("started", "+1 a ok", "+1 c ok", "+1 d ok", "+9 finished completed")
    result = result_of(story.actor)
    assert (result.status, result.duration, result.error) == ("completed", 3.0, None)
    assert result.outputs == {name: {"from": name} for name in ("a", "c", "d")}
    assert result.raise_for_failure() is result


def test_a_failed_result_raises_only_when_asked() -> None:
    story = Story(workflow(task("a"), task("b", "a"))).tells("started", "a ok", "b fatal")
    result = result_of(story.actor)
    assert (result.status, result.outputs) == ("failed", {"a": {"from": "a"}})
    with pytest.raises(ExecutionFailed, match="boom") as raised:
        result.raise_for_failure()
    assert raised.value.error == {"type": "boom", "message": "it broke", "retryable": False, "task": "b"}


def test_updates_are_every_transition_once_and_in_order() -> None:
    story = Story(workflow(task("a", retry=RETRY), task("b", "a")))
    updates = []
    for line in ("started", "a taken", "a fails", "a due 2", "a ok", "a ok", "b ok", "finished completed"):
        updates += updates_of(story.actor, story.tell(line))
    assert [(one.task_id, one.status, one.attempt) for one in updates] == [
        (None, "running", 0),
        ("a", "queued", 1),
        ("a", "running", 1),
        ("a", "retrying", 1),
        ("a", "queued", 2),
        ("a", "completed", 2),
        ("b", "queued", 1),
        ("b", "completed", 1),
        (None, "completed", 0),
    ]
    assert [one.at - START for one in updates] == [0, 0, 1, 2, 3, 4, 4, 6, 6]
    assert [one.error["type"] for one in updates if one.error] == ["boom"]


def test_metrics_tell_the_time_in_the_queue_from_the_time_at_work() -> None:
    story = Story(workflow(task("a"), task("b"), task("c", "a"))).tells("started")
    story.tell("+2 a taken")
    _outcome(story, "a", 7.0)
    _outcome(story, "b", 9.0, started_at=4.0)
    metrics = metrics_of(story.actor)
    assert (metrics.tasks["a"].queue_time, metrics.tasks["a"].run_time) == (2.0, 5.0)
    assert (metrics.tasks["b"].queue_time, metrics.tasks["b"].run_time) == (4.0, 5.0)
    c = metrics.tasks["c"]
    assert (c.attempts, c.queue_time, c.run_time, c.state) == (1, None, None, "queued")
    assert metrics.duration is None
    assert (metrics.total_attempts, metrics.total_queue_time, metrics.total_run_time) == (3, 6.0, 10.0)


def test_an_attempt_that_never_said_when_it_began_ran_from_when_it_was_queued() -> None:
    story = Story(workflow(task("a"))).tells("started")
    _outcome(story, "a", 3.0)
    a = metrics_of(story.actor).tasks["a"]
    assert (a.queue_time, a.run_time) == (None, 3.0)


def test_an_agent_whose_clock_is_off_makes_no_time_negative_or_longer_than_the_attempt() -> None:
    story = Story(workflow(task("a"), task("b"))).tells("started")
    _outcome(story, "a", 3.0, started_at=-50.0)
    _outcome(story, "b", 3.0, started_at=99.0)
    metrics = metrics_of(story.actor)
    assert (metrics.tasks["a"].queue_time, metrics.tasks["a"].run_time) == (0.0, 3.0)
    assert (metrics.tasks["b"].queue_time, metrics.tasks["b"].run_time) == (3.0, 0.0)


def test_metrics_of_a_running_second_attempt_are_not_those_of_the_first() -> None:
    story = Story(workflow(task("a", retry=RETRY))).tells("started", "+1 a taken", "+5 a fails", "+10 a due 2")
    a = metrics_of(story.actor).tasks["a"]
    assert (a.attempts, a.queue_time, a.run_time) == (2, None, None)
    story.tell("+3 a taken")
    a = metrics_of(story.actor).tasks["a"]
    assert (a.queue_time, a.run_time) == (3.0, None)


def test_metrics_count_how_tasks_ended() -> None:
    story = Story(
        workflow(task("a"), task("b", "a", condition="false"), task("c", "a"), task("d", "c", run_when="any_failed"))
    ).tells("started", "a ok", "c fatal", "d ok")
    metrics = metrics_of(story.actor)
    assert (metrics.completed, metrics.failed, metrics.skipped, metrics.duration) == (2, 1, 1, 3.0)
    assert metrics.tasks["b"].attempts == 0


def test_the_instances_of_a_map_and_of_a_loop_are_counted() -> None:
    story = Story(workflow(each("m", "input", max_parallel=2, tolerated=1), loop("l", "result.n > 1")), [1, 2, 3, 4])
    assert status_of(story.actor).tasks["m"].instances is None
    story.tells("started", "m~0 ok", "m~1 fatal", "l~0 ok 1")
    tasks = status_of(story.actor).tasks
    assert tasks["m"].instances == {"total": 4, "running": 2, "completed": 1, "failed": 1}
    assert tasks["l"].instances == {"total": 2, "running": 1, "completed": 1}
    assert metrics_of(story.actor).tasks["m"].attempts == 2


def test_a_task_that_is_another_workflow_says_which_execution_it_is() -> None:
    story = Story(workflow(child("c"), task("a"))).tells("started")
    assert status_of(story.actor).tasks["c"].child is None
    story.actor.receive(Taken(EXECUTION, START, "im-workflow", "c", 1, "child-1"))
    story.actor.receive(Taken(EXECUTION, START, AGENT, "a", 1, "process-1"))
    assert status_of(story.actor).tasks["c"].child == "child-1"
    assert status_of(story.actor).tasks["a"].child is None
