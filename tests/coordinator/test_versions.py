"""What differs between two definitions, place by place."""

from dataclasses import replace

from infinity_matrix_actors.definition import RetryDefinition, TaskDefinition, WorkflowDefinition
from infinity_matrix_coordinator.versions import differences

EXTRACT = TaskDefinition("extract", "agent-a", config={"url": "x", "rows": {"max": 10}})
LOAD = TaskDefinition("load", "agent-b", ("extract",))
BEFORE = WorkflowDefinition("etl", (EXTRACT, LOAD))


def told(before: WorkflowDefinition, after: WorkflowDefinition) -> list[tuple[str, object, object]]:
    return [(each.path, each.before, each.after) for each in differences(before, after)]


def test_a_definition_does_not_differ_from_itself_nor_by_the_order_of_its_tasks() -> None:
    assert told(BEFORE, BEFORE) == []
    assert told(BEFORE, replace(BEFORE, tasks=(LOAD, EXTRACT))) == []


def test_what_differs_is_named_by_its_place() -> None:
    extract = replace(EXTRACT, config={"url": "y", "rows": {"max": 20}}, retry=RetryDefinition(max_attempts=3))
    after = replace(BEFORE, version="2", tasks=(extract, LOAD))
    assert told(BEFORE, after) == [
        ("tasks.extract.config.url", "x", "y"),
        ("tasks.extract.config.rows.max", 10, 20),
        ("tasks.extract.retry.max_attempts", 1, 3),
        ("version", "1", "2"),
    ]


def test_a_task_that_is_new_or_gone_is_told_whole_without_its_defaults() -> None:
    check = TaskDefinition("check", "agent-c", ("load",))
    found = told(BEFORE, replace(BEFORE, tasks=(EXTRACT, check)))
    assert [path for path, _, _ in found] == ["tasks.load", "tasks.check"]
    assert found[0][1:] == ({"agent": "agent-b", "depends_on": ("extract",)}, None)
    assert found[1][1:] == (None, {"agent": "agent-c", "depends_on": ("load",)})
