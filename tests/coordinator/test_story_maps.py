"""Maps: an instance for each item, so many at once, so many may fail; and what becomes of a map that is stopped."""

import pytest
from infinity_matrix_actors import group
from infinity_matrix_actors.definition import MapDefinition
from infinity_matrix_actors.effect import PublishStatus
from infinity_matrix_actors.group import Group
from infinity_matrix_actors.state import TaskState
from story import Story, each, render, task, undo, wait, workflow

RETRY = {"max_attempts": 2, "backoff": "fixed", "initial_delay": 5.0, "jitter": 0.0}


def mapped(*items: object, **fields: object) -> Story:
    """One map over `input.items`, and a task after it."""
    failing = fields.pop("on_failure", ())
    story = Story(
        workflow(each("m", "input.items", **fields), task("b", "m"), on_failure=failing), {"items": list(items)}
    )
    story.tell("started")
    return story


def test_results_stand_in_the_order_of_the_items() -> None:
    story = Story(workflow(each("m", "input", max_parallel=2), task("b", "m")), ["x", "y", "z"]).check(
        """
        started   -> work m~0.1, work m~1.1 | m running, m~0 queued
        m~1 ok    -> work m~2.1             | m~1 completed
        m~2 ok    ->
        m~0 ok    -> work b.1               | m completed
        b ok      -> finished completed
        """
    )
    assert story.actor.tasks["m"].result == [{"from": f"m~{index}"} for index in range(3)]


def test_an_instance_knows_its_item_and_its_place() -> None:
    items = [{"n": 1}, {"n": 2}]
    config = {"number": "${{ item.n }}", "text": "${{ index }} of ${{ size(input) }}"}
    story = Story(workflow(each("m", "input", config=config)), items).tells("started")
    assert story.actor.tasks["m~1"].config == {"number": 2, "text": "1 of 2"}
    assert story.actor.variables(story.actor.tasks["m~1"]) == {"input": items, "item": {"n": 2}, "index": 1}


def test_items_come_from_a_result() -> None:
    Story(workflow(task("a"), each("m", "a.result", "a"))).check(
        """
        started       -> work a.1
        a gives [1,2] -> work m~0.1, work m~1.1
        """
    )


def test_an_empty_list_completes_at_once_and_what_follows_runs() -> None:
    story = Story(workflow(each("m", "input"), task("b", "m")), []).check(
        """
        started -> work b.1 | m completed
        b ok    -> finished completed
        """
    )
    assert story.actor.tasks["m"].result == []


@pytest.mark.parametrize(
    ("items", "input", "says"),
    [
        ("input.nothing", {}, "nothing"),
        ("input", {"no": "list"}, "no list"),
        ("input", "text", "no list"),
        ("a.result.items", None, "items"),
    ],
)
def test_items_that_are_no_list_fail_the_task_saying_so(items: str, input: object, says: str) -> None:
    story = Story(workflow(task("a"), each("m", items, "a")), input).tells("started", "a ok")
    story.check_states("m failed, =failed")
    error = story.actor.tasks["m"].error
    assert error is not None
    assert error.type == "expression_error"
    assert says in error.message


def test_more_items_than_the_limit_fail_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from infinity_matrix_coordinator import beginning

    assert group.ITEMS_MAX == beginning.ITEMS_MAX
    monkeypatch.setattr(beginning, "ITEMS_MAX", 2)
    story = mapped(1, 2, 3)
    assert "3 items, the limit is 2" in str(story.actor.error)


def test_one_failure_fails_a_map_after_what_runs_and_begins_no_more() -> None:
    story = Story(workflow(each("m", "input", max_parallel=2), task("b", "m")), [0, 1, 2, 3]).check(
        """
        started    -> work m~0.1, work m~1.1
        m~0 fatal  ->                          | m~0 failed, m running
        m~1 ok     -> finished failed          | m failed, b cancelled
        """
    )
    error = story.actor.tasks["m"].error
    assert error is not None
    assert error.type == "too_many_failures"
    assert "1 of 4 instances failed; m~0 failed: boom: it broke" in error.message
    assert "m~2" not in story.actor.tasks


def test_tolerated_failures_are_in_the_results() -> None:
    story = mapped(0, 1, 2, tolerated=1).check(
        """
        m~0 fatal ->
        m~1 ok    ->
        m~2 ok    -> work b.1 | m completed
        """
    )
    result = story.actor.tasks["m"].result
    assert result[0]["error"]["type"] == "boom"
    assert result[2] == {"from": "m~2"}


@pytest.mark.parametrize(
    ("tolerated", "percent", "size", "most"),
    [
        (0, 0.0, 10, 0),
        (2, 0.0, 10, 2),
        (0, 10.0, 10, 1),
        (0, 10.0, 9, 0),
        (0, 100.0, 3, 3),
        (0, 32.3, 1000, 323),  # 32.3 * 1000 / 100 is 322.99999999999994
        (0, 99.9, 10, 9),
        (5, 10.0, 10, 5),
        (0, 50.0, 0, 0),
    ],
)
def test_how_many_failures_are_tolerated(tolerated: int, percent: float, size: int, most: int) -> None:
    definition = MapDefinition(("input",), 10, tolerated, percent)
    counted = Group(list(range(size)))
    counted.failures = most
    assert counted.tolerates(definition)
    counted.failures += 1
    assert not counted.tolerates(definition)


def test_a_map_of_which_all_may_fail_completes() -> None:
    mapped(0, 1, tolerated_percent=100.0).check(
        """
        m~0 fatal ->
        m~1 fatal -> work b.1 | m completed
        """
    )


def test_each_instance_has_its_own_retries() -> None:
    mapped(0, 1, retry=RETRY).check(
        """
        m~0 fails      ->               | m~0 retrying
        m~1 ok         ->
        +5 m~0 due 2   -> work m~0.2
        m~0 ok         -> work b.1      | m completed
        """
    )


def test_each_instance_has_its_own_timeout() -> None:
    story = mapped(0, 1, timeout=10.0, retry=RETRY)
    story.tell("m~0 taken")
    assert story.timer("m~0", 12.0)[0] == "close m~0.1 timed_out"
    story.check(
        """
        m~0 closed timed_out -> purge m~0.1, tell m~0 | m~0 retrying
        +5 m~0 due 2         -> work m~0.2
        """
    )


def test_a_closed_instance_that_completes_with_its_next_attempt_leaves_nothing_behind() -> None:
    story = mapped(0, 1, retry=RETRY).tells("m~0 closed timed_out", "+5 m~0 due 2", "m~0 ok", "m~1 taken")
    assert "m~0" not in story.actor.tasks


def test_completed_instances_are_not_kept() -> None:
    story = mapped(*range(50), max_parallel=5)
    for index in range(40):
        story.tell(f"m~{index} ok")
    story.tell("m~41 taken")
    assert sum(name.startswith("m~") for name in story.actor.tasks) == 5
    counts = story.actor.tasks["m"].group
    assert counts is not None
    assert counts.counts() == {"total": 50, "running": 5, "completed": 40}


@pytest.mark.parametrize("late", ["m~0 ok", "m~0.1 fatal", "m~0 taken", "m~0 due 2", "m~0.2 ok", "m~7 ok", "started"])
def test_facts_of_an_instance_that_is_settled_change_nothing(late: str) -> None:
    story = mapped(0, 1).tells("m~0 ok", "m~1 taken")
    before = story.actor.record()
    assert story.tell(late) == []
    assert story.actor.record() == before


def test_instances_whose_config_cannot_be_filled_fail_alone() -> None:
    story = Story(
        workflow(each("m", "input", config={"n": "${{ item.n }}"}, tolerated=1)), [{"n": 1}, {"other": 2}]
    ).check(
        """
        started -> work m~0.1 | m~1 failed, m running
        m~0 ok  -> finished completed
        """
    )
    assert story.actor.tasks["m"].result[1]["error"]["type"] == "expression_error"


def test_a_map_none_of_whose_instances_can_begin_fails_at_once() -> None:
    Story(workflow(each("m", "input", config={"n": "${{ item.n }}"})), [{}] * 500).check(
        "started -> finished failed | m failed"
    )


def test_waits_can_be_mapped() -> None:
    definition = workflow(each("m", "input"), task("b", "m"))
    waiting = wait("m", sleep=10.0, map=definition.tasks[0].map)
    story = Story(workflow(waiting, task("b", "m")), [1, 2]).check(
        """
        started       ->          | m~0 running, m~1 running
        +10 m~0 due 1 ->          | m~0 completed
        m~1 due 1     -> work b.1 | m completed
        """
    )
    assert story.actor.tasks["m"].result == [None, None]


# Maps in maps.


def nested(input: object, **fields: object) -> Story:
    return Story(workflow(each("m", ("input", "item.parts"), **fields), task("b", "m")), input)


def test_a_map_in_a_map_has_an_instance_for_each_part_of_each_item() -> None:
    story = nested([{"parts": [1, 2]}, {"parts": [3]}]).check(
        """
        started  -> work m~0~0.1, work m~0~1.1, work m~1~0.1
        m~0~1 ok ->
        m~1~0 ok ->          | m~1 completed, m running
        m~0~0 ok -> work b.1 | m completed
        """
    )
    assert story.actor.tasks["m"].result == [[{"from": "m~0~0"}, {"from": "m~0~1"}], [{"from": "m~1~0"}]]


def test_an_inner_list_may_be_empty() -> None:
    story = nested([{"parts": []}, {"parts": [3]}, {"parts": []}]).check(
        """
        started  -> work m~1~0.1 | m~0 completed, m~2 completed
        m~1~0 ok -> work b.1     | m completed
        """
    )
    assert story.actor.tasks["m"].result == [[], [{"from": "m~1~0"}], []]
    nested([{"parts": []}, {"parts": []}]).check("started -> work b.1 | m completed")


def test_an_inner_list_that_is_none_fails_its_instance_of_the_outer() -> None:
    story = nested([{"parts": [1]}, {"other": 1}], tolerated=1).check(
        """
        started  -> work m~0~0.1 | m~1 failed
        m~0~0 ok -> work b.1     | m completed
        """
    )
    assert story.actor.tasks["m"].result[1]["error"]["type"] == "expression_error"


def test_the_item_of_an_inner_instance_is_the_part() -> None:
    story = nested([{"parts": ["p", "q"]}], config={"part": "${{ item }}", "at": "${{ index }}"}).tells("started")
    assert story.actor.tasks["m~0~1"].config == {"part": "q", "at": 1}


def test_an_inner_failure_fails_the_whole() -> None:
    nested([{"parts": [1, 2]}, {"parts": [3]}]).check(
        """
        started     -> work m~0~0.1, work m~0~1.1, work m~1~0.1
        m~0~0 fatal ->
        m~0~1 ok    ->                 | m~0 failed, m running
        m~1~0 ok    -> finished failed | m failed
        """
    )


# Stopping.


def test_a_cancel_waits_for_what_runs_and_ends_the_map_as_cancelled() -> None:
    story = Story(workflow(each("m", "input", max_parallel=2), task("b", "m")), [0, 1, 2, 3]).check(
        """
        started   -> work m~0.1, work m~1.1
        m~0 ok    -> work m~2.1
        cancel    -> tell all
        m~1 stops ->                    | m~1 cancelled
        m~2 ok    -> finished cancelled | m cancelled, b cancelled
        """
    )
    assert "m~3" not in story.actor.tasks


def test_a_map_all_of_whose_instances_were_cancelled_is_not_complete() -> None:
    mapped(0, 1).check(
        """
        cancel    -> tell all
        m~0 stops ->
        m~1 stops -> finished cancelled | m cancelled
        """
    )


def test_a_map_whose_last_instances_complete_within_the_grace_is_complete() -> None:
    story = mapped(0, 1).check(
        """
        cancel -> tell all
        m~0 ok ->
        m~1 ok -> finished cancelled | m completed, b cancelled
        """
    )
    assert story.actor.tasks["m"].result == [{"from": "m~0"}, {"from": "m~1"}]


def test_an_inner_map_that_was_cancelled_is_told_of_as_cancelled() -> None:
    nested([{"parts": [1]}, {"parts": [2]}]).check(
        """
        started     -> work m~0~0.1, work m~1~0.1
        cancel      -> tell all
        m~0~0 stops ->                    | m~0 cancelled, m running
        m~1~0 ok    -> finished cancelled | m~1 completed, m cancelled
        """
    )


def test_a_failure_elsewhere_stops_a_map_after_what_runs() -> None:
    Story(workflow(task("a"), each("m", "input", max_parallel=1)), [0, 1, 2]).check(
        """
        started -> work a.1, work m~0.1
        a fatal -> tell all
        m~0 ok  -> finished failed | m cancelled
        """
    )


def test_a_retry_that_is_due_after_the_stop_begins_nothing() -> None:
    story = mapped(0, 1, retry=RETRY).tells("m~0 fails", "cancel")
    assert story.timer("m~0", 60.0) == []
    story.check(
        """
        m~0 due 2 ->
        m~1 ok    -> finished cancelled | m~0 cancelled, m cancelled
        """
    )


# Undoing.


def test_each_instance_that_completed_is_undone() -> None:
    story = Story(
        workflow(each("m", "input"), task("b", "m"), on_failure=(undo("m", "undo-m"),)), ["x", "y", "z"]
    ).check(
        """
        started     -> work m~0.1, work m~1.1, work m~2.1
        m~0 ok      ->
        m~2 fatal   ->
        m~1 ok      -> work undo-m~0.1, work undo-m~1.1 | m failed, =compensating
        undo-m~1 ok ->
        undo-m~0 ok -> finished failed
        """
    )
    assert story.actor.compensated == ("m~1", "m~0")


def test_a_map_is_undone_before_what_came_before_it_and_after_what_came_after() -> None:
    definition = workflow(
        task("a"),
        each("m", "input", "a"),
        task("b", "m"),
        task("c", "b"),
        on_failure=(undo("a", "undo-a"), undo("m", "undo-m"), undo("b", "undo-b")),
    )
    Story(definition, [1, 2]).check(
        """
        started     -> work a.1
        a ok        -> work m~0.1, work m~1.1
        m~0 ok      ->
        m~1 ok      -> work b.1
        b ok        -> work c.1
        c fatal     -> work undo-b.1
        undo-b ok   -> work undo-m~0.1, work undo-m~1.1
        undo-m~0 ok ->
        undo-m~1 ok -> work undo-a.1
        undo-a ok   -> finished failed
        """
    )


def test_a_tolerated_failure_is_not_undone_unless_nobody_knows() -> None:
    definition = workflow(
        each("m", "input", tolerated=2, timeout=10.0), task("b", "m"), on_failure=(undo("m", "undo-m"),)
    )
    story = Story(definition, [0, 1, 2]).tells("started", "m~0 fatal", "m~1 closed timed_out", "m~2 ok")
    assert render(story.tell("b fatal")) == ["work undo-m~2.1"]
    assert story.armed()["undo-m~1"] == 2.0 + 30.0
    assert render(story.tell("+30 undo-m~1 due 1")) == ["work undo-m~1.1"]


def test_every_instance_says_what_it_comes_to() -> None:
    story = mapped(0).tells("m~0 ok")
    said = [(e.task, e.state) for e in story.effects if isinstance(e, PublishStatus) and e.task in ("m", "m~0")]
    assert said == [
        ("m", TaskState.RUNNING),
        ("m~0", TaskState.QUEUED),
        ("m~0", TaskState.COMPLETED),
        ("m", TaskState.COMPLETED),
    ]


# Schemas at every entrance.


def test_an_input_that_is_not_as_its_schema_says_begins_nothing() -> None:
    definition = workflow(task("a"), input_schema={"type": "object", "required": ["id"]})
    story = Story(definition, {}).check("started -> finished failed | a cancelled")
    assert story.actor.error is not None
    assert story.actor.error["type"] == "invalid_input"
    Story(definition, {"id": 1}).check("started -> work a.1")


def test_a_config_that_is_not_as_its_schema_says_reaches_no_agent() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    definition = workflow(each("m", "input", config={"n": "${{ item }}"}, config_schema=schema, tolerated=1))
    story = Story(definition, [1, "x"]).check(
        """
        started -> work m~0.1         | m~1 failed
        m~0 ok  -> finished completed
        """
    )
    assert story.actor.tasks["m"].result[1]["error"]["type"] == "invalid_config"


def test_a_result_that_is_not_as_its_schema_says_fails_the_task_and_is_not_tried_again() -> None:
    definition = workflow(task("a", result_schema={"type": "integer"}, retry=RETRY))
    story = Story(definition).check(
        """
        started     -> work a.1
        a gives "x" -> finished failed | a failed
        """
    )
    assert story.actor.tasks["a"].result is None
    assert story.actor.error is not None
    assert story.actor.error["type"] == "invalid_result"
