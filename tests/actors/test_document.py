"""The door: what is let through, what is refused and with which words, and that one workflow has one hash."""

import dataclasses
import datetime
import enum
import json
import math
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from document_strategies import documents
from hypothesis import given, settings
from infinity_matrix_actors.definition import Backoff, RunWhen, WorkflowDefinition
from infinity_matrix_actors.document import (
    WorkflowDocument,
    define,
    json_schema,
    parse_document,
    parse_task,
    parse_trigger,
)
from infinity_matrix_actors.document_definition import DEFINITION_BYTES_MAX
from infinity_matrix_actors.document_model import TASKS_MAX
from infinity_matrix_actors.errors import InvalidDefinition

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "reference" / "workflow.schema.json"
TASK = {"id": "load", "agent": "agent-loader"}


def workflow(*tasks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "etl", "tasks": list(tasks or [TASK]), **fields}


def defined(*tasks: dict[str, Any], **fields: Any) -> WorkflowDefinition:
    return define(parse_document(workflow(*tasks, **fields)))


def refusal(*tasks: dict[str, Any], **fields: Any) -> InvalidDefinition:
    with pytest.raises(InvalidDefinition) as caught:
        defined(*tasks, **fields)
    return caught.value


def test_everything_that_can_be_written_arrives_in_the_definition() -> None:
    definition = defined(
        {"id": "extract", "agent": "agent-etl", "config": {"query": "SELECT 1", "pages": (1, 2)}},
        {
            "id": "load-2",
            "agent": "agent-loader",
            "depends_on": ["extract"],
            "condition": "extract.result.rows > 0",
            "run_when": "all_settled",
            "retry_config": {
                "max_attempts": 3,
                "backoff": "linear",
                "initial_delay": "2s",
                "multiplier": 3,
                "max_delay": "5m",
                "jitter": 0,
                "non_retryable": ["ValueError"],
            },
            "timeout": "1m",
            "queue_timeout": datetime.timedelta(hours=1),
            "total_timeout": "1h30m",
        },
        version="2.10",
        description="moves rows",
        timeout=3600,
        grace=0,
        triggers=[{"event": "orders.*.created", "filter": "event.total > 100"}, {"event": "files.>"}],
    )
    extract, load = definition.tasks
    assert extract.config == {"query": "SELECT 1", "pages": [1, 2]}
    assert (load.depends_on, load.condition, load.run_when) == (
        ("extract",),
        "extract.result.rows > 0",
        RunWhen.ALL_SETTLED,
    )
    assert dataclasses.astuple(load.retry) == (3, Backoff.LINEAR, 2.0, 3.0, 300.0, 0.0, ("ValueError",))
    assert (load.timeout, load.queue_timeout, load.total_timeout) == (60.0, 3600.0, 5400.0)
    assert (definition.version, definition.timeout, definition.grace) == ("2.10", 3600.0, 0.0)
    assert [(trigger.event, trigger.filter) for trigger in definition.triggers] == [
        ("orders.*.created", "event.total > 100"),
        ("files.>", None),
    ]
    assert WorkflowDefinition.from_canonical(definition.canonical()) == definition


def test_the_defaults_of_the_document_are_those_of_the_definition() -> None:
    written = defined()
    task = type(written.tasks[0])(id="load", agent="agent-loader")
    assert written == WorkflowDefinition(name="etl", tasks=(task,))


@pytest.mark.parametrize(
    ("task", "where", "problem", "hint"),
    [
        ({"agnt": "x"}, "tasks[0].agnt", "unknown field 'agnt'", "did you mean 'agent'?"),
        ({"retry": {}}, "tasks[0].retry", "unknown field 'retry'", "did you mean 'retry_config'?"),
        ({"zzz": 1}, "tasks[0].zzz", "unknown field 'zzz'", "known fields: id, agent"),
        ({"retry_config": {"max_atempts": 1}}, "tasks[0].retry_config.max_atempts", "unknown field", "'max_attempts'"),
        ({"retry_config": {"max_attempts": 0}}, "tasks[0].retry_config.max_attempts", "greater than or equal to 1", ""),
        ({"retry_config": {"max_attempts": 10_001}}, "tasks[0].retry_config.max_attempts", "less than or equal", ""),
        ({"retry_config": {"max_attempts": True}}, "tasks[0].retry_config.max_attempts", "not an integer", ""),
        ({"retry_config": {"max_attempts": 10**5000}}, "tasks[0].retry_config.max_attempts", "very large", ""),
        ({"retry_config": {"jitter": 1.5}}, "tasks[0].retry_config.jitter", "less than or equal to 1", ""),
        ({"retry_config": {"jitter": math.nan}}, "tasks[0].retry_config.jitter", "finite", ""),
        ({"retry_config": {"multiplier": 0.5}}, "tasks[0].retry_config.multiplier", "greater than or equal to 1", ""),
        ({"retry_config": {"backoff": "expo"}}, "tasks[0].retry_config.backoff", "not one of", "'exponential'"),
        ({"retry_config": {"initial_delay": "10m"}}, "task 'load'", "above max_delay", "raise max_delay"),
        ({"retry_config": None}, "tasks[0].retry_config", "a mapping", ""),
        ({"config": None}, "tasks[0].config", "not a mapping", "leave the field out"),
        ({"config": {"a": [{"b": object()}]}}, "tasks[0].config.a[0].b", "no JSON form", ""),
        ({"config": {"a": {1: 2}}}, "tasks[0].config.a", "the key 1", "quotes"),
        ({"config": {"a": math.inf}}, "tasks[0].config.a", "no JSON form", ""),
        ({"config": {"a": 1 << 64}}, "tasks[0].config.a", "above 64 bits", "quotes"),
        ({"config": {"a": "\ud800"}}, "tasks[0].config.a", "no Unicode", ""),
        ({"config": {"a": b"x"}}, "tasks[0].config.a", "no JSON form", ""),
        ({"timeout": -1}, "tasks[0].timeout", "more than zero", "90s"),
        ({"timeout": "5 minutes"}, "tasks[0].timeout", "no duration", "90s"),
        ({"timeout": "2d", "total_timeout": "1d"}, "task 'load'", "above total_timeout", "raise total_timeout"),
        ({"compensate_when": "attempted"}, "task 'load'", "nothing undoes it", "give it a compensation"),
        (
            {"compensation": {"id": "undo", "agent": "x", "compensates": "other"}},
            "on_failure task 'undo'",
            "compensates 'other'",
            "it belongs to 'load'",
        ),
        (
            {"compensate_when": "completed", "compensation": {"id": "u", "agent": "x", "compensate_when": "attempted"}},
            "on_failure task 'u'",
            "'completed' on the task 'load'",
            "say it once",
        ),
        ({"run_when": "all_complete"}, "tasks[0].run_when", "not one of", "did you mean 'all_completed'?"),
        ({"depends_on": "extract"}, "tasks[0].depends_on", "not a list", "[extract]"),
        ({"depends_on": ["a b"]}, "tasks[0].depends_on[0]", "not a valid name", ""),
        ({"depends_on": ["lod"]}, "task 'load'", "unknown task 'lod'", ""),
        ({"depends_on": ["load"]}, "task 'load'", "depends on itself", ""),
        ({"id": "a.b"}, "tasks[0].id", "not a valid name", "1 to 64"),
        ({"id": "im-x"}, "tasks[0].id", "not a valid name", "'im-'"),
        ({"id": "x" * 65}, "tasks[0].id", "not a valid name", ""),
        ({"id": 5}, "tasks[0].id", "5 is not text", "quotes"),
        ({"agent": "im-bridge"}, "tasks[0].agent", "not a valid name", ""),
        ({"condition": True}, "tasks[0].condition", "not text", "quotes"),
        ({"condition": "laod.result > 0"}, "task 'load', condition", "unknown name 'laod'", "'load'"),
        ({"condition": "load.result > 0"}, "task 'load', condition", "not upstream", ""),
        ({"condition": "1 >"}, "task 'load', condition", "is not CEL", ""),
    ],
)
def test_a_task_that_cannot_run_is_refused_with_place_and_hint(
    task: dict[str, Any], where: str, problem: str, hint: str
) -> None:
    refused = refusal({**TASK, **task})
    assert refused.where == where
    assert problem in refused.problem
    assert hint in refused.hint


@pytest.mark.parametrize(
    ("fields", "where", "problem"),
    [
        ({"version": 1.10}, "version", "1.1 is not text"),
        ({"version": ""}, "version", "at least 1 character"),
        ({"description": "\ud800"}, "description", "no Unicode"),
        ({"\ud800": 1}, "a workflow", "unicode"),
        ({"name": "a b"}, "name", "not a valid name"),
        ({"timeout": 0}, "timeout", "more than zero"),
        ({"grace": -1}, "grace", "at least zero"),
        ({"tasks": {}}, "tasks", "not a list"),
        ({"tasks": [1]}, "tasks[0]", "a mapping of fields must stand here"),
        ({"tasks": []}, "workflow 'etl'", "no task"),
        ({"triggers": [{"event": "orders"}] * 2}, "triggers[1]", "twice"),
        ({"triggers": [{"event": "a..b"}]}, "triggers[0].event", "the token ''"),
        ({"triggers": [{"event": "a.>.b"}]}, "triggers[0].event", "something follows '>'"),
        ({"triggers": [{"event": "a.b*"}]}, "triggers[0].event", "the token 'b*'"),
        ({"triggers": [{"event": "a" + ".b" * 128}]}, "triggers[0].event", "at most 256"),
        ({"triggers": [{"event": "a", "filter": "evnt.x"}]}, "triggers[0].filter", "unknown name 'evnt'"),
        ({"triggers": [{"evnt": "a"}]}, "triggers[0].evnt", "unknown field 'evnt'"),
    ],
)
def test_a_workflow_that_cannot_run_is_refused_with_its_place(fields: dict[str, Any], where: str, problem: str) -> None:
    refused = refusal(**fields)
    assert refused.where == where
    assert problem in refused.problem


def test_what_is_no_mapping_or_lacks_its_name_is_refused() -> None:
    for value in ([], None, "etl", {}, {1: 2}):
        with pytest.raises(InvalidDefinition):
            parse_document(value)  # type: ignore[arg-type]


def test_problems_of_the_graph_name_the_tasks() -> None:
    a, b, c = ({"id": id_, "agent": "x"} for id_ in "abc")
    assert "two tasks 'a'" in refusal(a, b, a).problem
    assert refusal(a, b, a).where == "tasks[2].id"
    assert "'a' twice" in refusal(a, {**b, "depends_on": ["a", "a"]}).problem
    near = refusal({**a, "id": "extract"}, {**b, "depends_on": ["extrct"]})
    assert (near.where, near.hint) == ("task 'b'", "did you mean 'extract'?")
    cycle = refusal({**a, "depends_on": ["c"]}, {**b, "depends_on": ["a"]}, {**c, "depends_on": ["b"]})
    assert "a -> b -> c -> a" in cycle.problem


def test_a_condition_may_name_distant_ancestors_but_not_siblings() -> None:
    a, b = {"id": "a", "agent": "x"}, {"id": "b", "agent": "x", "depends_on": ["a"]}
    c = {"id": "c", "agent": "x", "depends_on": ["b"], "condition": "a.result == 1 && input.x == 1"}
    assert defined(a, b, c).tasks[2].condition == c["condition"]
    assert "'b' is not upstream" in refusal(a, b, {**c, "depends_on": ["a"], "condition": "b.result == 1"}).problem


def test_a_definition_above_its_limits_is_refused() -> None:
    large = refusal({**TASK, "config": {"text": "x" * DEFINITION_BYTES_MAX}})
    assert "canonical form" in large.problem
    assert defined({**TASK, "config": {"text": "x" * (DEFINITION_BYTES_MAX - 1000)}})
    many = [{"id": f"t{number}", "agent": "x"} for number in range(TASKS_MAX + 1)]
    assert refusal(*many).where == "tasks"


def test_configuration_that_contains_itself_is_refused_at_once() -> None:
    endless: dict[str, Any] = {}
    endless["me"] = endless
    wide: list[Any] = []
    for _ in range(30):
        wide = [wide] * 10
    assert "deeper" in refusal({**TASK, "config": endless}).problem
    assert "more than" in refusal({**TASK, "config": {"wide": wide}}).problem


def test_a_definition_does_not_change_with_what_it_was_made_of() -> None:
    config = {"rows": [1]}
    task = parse_task(**TASK, config=config)
    config["rows"].append(2)
    assert define(parse_document({"name": "etl", "tasks": [task]})).tasks[0].config == {"rows": [1]}


def test_single_tasks_and_triggers_are_checked_as_they_are_made() -> None:
    task = parse_task(id="load", agent="a", timeout="5m", depends_on=("x",), retry_config={"max_attempts": 3})
    assert (task.timeout, task.depends_on, task.retry_config.max_attempts) == (300.0, ["x"], 3)
    assert parse_trigger(event="orders.created", filter="event.total > 100").filter == "event.total > 100"
    for attempt in (lambda: parse_task(id="load"), lambda: parse_task(id="load", agnt="x"), lambda: parse_trigger()):
        with pytest.raises(InvalidDefinition):
            attempt()
    with pytest.raises(InvalidDefinition) as caught:
        parse_task(id="load", agent="a", timeout="soon")
    assert caught.value.where == "timeout"
    made = parse_document({"name": "etl", "tasks": (task,), "triggers": [parse_trigger(event=">")]})
    assert made.tasks == [task]


class Colour(enum.StrEnum):
    RED = "red"


def test_python_spellings_of_plain_data_give_the_hash_of_the_plain_data() -> None:
    python = defined({**TASK, "config": {"pair": (1, 2.0), "colour": Colour.RED, Colour.RED: True}})
    plain = defined({**TASK, "config": {"red": True, "colour": "red", "pair": [1, 2.0]}})
    assert python.digest() == plain.digest()
    assert defined({**TASK, "config": {"n": 1}}).digest() != defined({**TASK, "config": {"n": 1.0}}).digest()
    assert defined(grace=-0.0).digest() == defined(grace=0).digest()
    assert (
        defined({**TASK, "retry_config": {"jitter": -0.0}}).digest()
        == defined({**TASK, "retry_config": {"jitter": 0}}).digest()
    )


# ---- the published schema


def test_the_published_schema_is_the_one_the_code_generates() -> None:
    expected = json.dumps(json_schema(), indent=2) + "\n"
    assert SCHEMA_FILE.read_text() == expected, "write json.dumps(json_schema(), indent=2) and a newline to the file"
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 1.10},
        {"nme": "x"},
        {"name": "im-x"},
        {"timeout": 0},
        {"timeout": "5 minutes"},
        {"timeout": "90"},
        {"timeout": True},
        {"grace": -1},
        {"tasks": []},
        {"tasks": [{"id": "a"}]},
        {"tasks": [{**TASK, "agnt": "x"}]},
        {"tasks": [{**TASK, "run_when": "never"}]},
        {"tasks": [{**TASK, "retry_config": {"max_attempts": 0}}]},
        {"triggers": [{"event": "a..b"}]},
        {"triggers": [{"event": "a.>.b"}]},
    ],
)
def test_the_schema_refuses_what_the_door_refuses(fields: dict[str, Any]) -> None:
    assert refusal(**fields)
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(workflow(**fields))


@settings(max_examples=60)
@given(documents())
def test_what_the_door_lets_through_the_schema_lets_through_too(document: dict[str, Any]) -> None:
    definition = define(parse_document(document))
    jsonschema.Draft202012Validator(json_schema()).validate(document)
    assert WorkflowDefinition.from_canonical(definition.canonical()) == definition


def test_two_thousand_tasks_are_defined_in_less_than_a_third_of_a_second() -> None:
    tasks = [
        {"id": f"t{number}", "agent": "x", "config": {"n": number}, "timeout": "5m",
         "depends_on": [f"t{one}" for one in range(max(0, number - 5), number)]}
        for number in range(2_000)
    ]  # fmt: skip

    def spent_s() -> float:
        began = time.process_time()  # of this process alone: other work on the machine does not count
        defined(*tasks)
        return time.process_time() - began

    assert min(spent_s() for _ in range(3)) < 0.3


def test_a_document_cannot_be_changed() -> None:
    document = parse_document(workflow())
    assert isinstance(document, WorkflowDocument)
    with pytest.raises(ValueError, match="frozen"):
        document.name = "other"  # type: ignore[misc]


def test_an_attempt_that_may_take_longer_than_a_day_makes_all_of_them_take_longer() -> None:
    fields = {"wait_for": "go", "timeout": "3d"}
    assert define(parse_document({"name": "w", "tasks": [{"id": "a", **fields}]})).tasks[0].total_timeout == 3 * 86_400
    fields = {"agent": "x", "timeout": "1d", "queue_timeout": "12h"}
    assert define(parse_document({"name": "w", "tasks": [{"id": "a", **fields}]})).tasks[0].total_timeout == 129_600


def test_when_to_undo_may_be_said_on_the_task_that_another_of_on_failure_compensates() -> None:
    tasks = [{"id": "a", "agent": "x", "compensate_when": "attempted"}]
    undoing = [{"id": "undo-a", "agent": "x", "compensates": "a"}]
    definition = define(parse_document({"name": "w", "tasks": tasks, "on_failure": undoing}))
    assert definition.on_failure[0].compensate_when == "attempted"


@pytest.mark.parametrize(
    ("forward", "undoing", "problem"),
    [
        ({"wait_for": "go"}, {"agent": "x"}, "nothing to undo of 'a', which only waits"),
        ({"approval": {"assignees": ["ada"]}}, {"agent": "x"}, "nothing to undo of 'a', which only waits"),
        ({"agent": "x", "for_each": "input"}, {"workflow": "w"}, "not told which instance of 'a'"),
        ({"agent": "x", "loop": {"until": "true", "max_iterations": 2}}, {"workflow": "w"}, "not told which instance"),
    ],
)
def test_what_cannot_be_undone_is_refused(forward: dict[str, Any], undoing: dict[str, Any], problem: str) -> None:
    error = refusal({"id": "a", **forward}, on_failure=[{"id": "undo-a", "compensates": "a", **undoing}])
    assert (error.where, problem in error.problem) == ("on_failure task 'undo-a'", True), error
    assert error.hint


@pytest.mark.parametrize(
    ("action", "field"),
    [
        ({"action": "fail", "delay": "1h"}, "delay"),
        ({"action": "notify", "recipients": ["ops@example.com"], "max_attempts": 3}, "max_attempts"),
        ({"action": "retry", "recipients": ["ops@example.com"]}, "recipients"),
    ],
)
def test_an_action_has_no_fields_of_another(action: dict[str, Any], field: str) -> None:
    error = refusal(on_error=action)
    assert (error.where, error.problem) == (f"on_error[0].{field}", f"{field} has no meaning here")
    assert defined(on_error={key: value for key, value in action.items() if key != field}).on_error
