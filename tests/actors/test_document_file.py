"""Files: the same workflow in YAML, JSON and Python is the same definition, and what is wrong is told by line."""

import datetime
import json
from typing import Any

import pytest
import yaml
from document_strategies import documents
from hypothesis import given, settings
from hypothesis import strategies as st
from infinity_matrix_actors.document import define, parse_document
from infinity_matrix_actors.document_file import FILE_BYTES_MAX, load_document
from infinity_matrix_actors.errors import InvalidDefinition

YAML = """\
# moves rows
name: data-processing
version: "1.10"
timeout: 1h
tasks:
  - id: extract
    agent: agent-etl
    config: {source: database, query: "SELECT * FROM users", limit: 1000, ratio: 0.5, country: no}
  - id: transform
    agent: agent-transformer
    depends_on: [extract]
    condition: extract.result.rows > 0
    retry_config: {max_attempts: 3, backoff: exponential, max_delay: 5m}
    timeout: 60
triggers:
  - event: orders.created
    filter: event.total > 100
"""
PYTHON: dict[str, Any] = {
    "name": "data-processing",
    "version": "1.10",
    "timeout": datetime.timedelta(hours=1),
    "tasks": [
        {
            "id": "extract",
            "agent": "agent-etl",
            "config": {
                "query": "SELECT * FROM users",
                "source": "database",
                "limit": 1000,
                "ratio": 0.5,
                "country": "no",
            },
        },
        {
            "id": "transform",
            "agent": "agent-transformer",
            "depends_on": ("extract",),
            "condition": "extract.result.rows > 0",
            "retry_config": {"max_attempts": 3, "max_delay": 300},
            "timeout": "1m",
        },
    ],
    "triggers": [{"event": "orders.created", "filter": "event.total > 100"}],
}


def refusal(text: str | bytes, name: str = "flow.yaml") -> InvalidDefinition:
    with pytest.raises(InvalidDefinition) as caught:
        load_document(text, name)
    assert caught.value.where.startswith(name)
    return caught.value


def test_the_yaml_the_json_and_the_python_form_have_one_hash() -> None:
    expected = define(parse_document(PYTHON)).digest()
    assert define(load_document(YAML, "flow.yaml")).digest() == expected
    assert define(load_document(YAML.encode(), "FLOW.YML")).digest() == expected
    as_json = json.dumps({**PYTHON, "timeout": 3600, "grace": "10s"}, indent=1)
    assert define(load_document(as_json, "flow.json")).digest() == expected
    assert define(load_document(b"\xef\xbb\xbf" + as_json.encode(), "flow.json")).digest() == expected
    assert define(load_document(as_json, "flow.yaml")).digest() == expected


class Quoted(yaml.SafeDumper):
    """Writes every text in quotes: this library's own rules for leaving them out are those of YAML 1.1."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Quoted.add_representer(str, lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"'))


@settings(max_examples=60)
@given(documents())
def test_any_workflow_has_one_hash_in_every_form(document: dict[str, Any]) -> None:
    expected = define(parse_document(document)).digest()
    assert define(load_document(json.dumps(document), "flow.json")).digest() == expected
    assert define(load_document(json.dumps(document, ensure_ascii=False, indent=2), "flow.json")).digest() == expected
    assert (
        define(load_document(yaml.dump(document, Dumper=Quoted, allow_unicode=True), "flow.yaml")).digest() == expected
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("+5", 5),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("~", None),
        ("", None),
        ("null", None),
        ("'5'", "5"),
        ('"true"', "true"),
        ("=", "="),
        ("<<", "<<"),
        ("|\n        a\n        b", "a\nb\n"),
    ],
)
def test_yaml_means_its_core_schema(written: str, value: Any) -> None:
    document = load_document(f"name: w\ntasks:\n- id: a\n  agent: x\n  config:\n    value: {written}\n", "flow.yaml")
    assert document.tasks[0].config == {"value": value}
    assert type(document.tasks[0].config["value"]) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("name: w\nversion: 1.10\n", 2, "1.1 is not text"),
        ("name: w\ntasks:\n- id: a\n  agent: x\n  agent: y\n", 5, "'agent' of tasks[0] is there twice"),
        ("name: w\nname: v\n", 2, "'name' is there twice"),
        (
            "name: w\ntasks:\n- id: a\n  agent: x\n  config:\n    b: {c: 1,\n        c: 2}\n",
            7,
            "'c' of tasks[0].config.b",
        ),
        ("name: w\ntasks:\n- id: a\n  agnt: x\n", 4, "unknown field 'agnt'"),
        ("name: w\ntasks:\n- id: a\n\n- id: b\n  agent: x\n", 3, "the field 'agent' is missing"),
        ("name: w\ntasks:\n- id: a\n  agent: x\n  timeout: 1:30\n", 5, "no duration"),
        ("name: w\ntasks:\n- id: a\n  agent: x\n  config: {a: [1,\n    .nan]}\n", 6, "no JSON form"),
        ("name: w\n5: v\n", 2, "the key 5 is not text"),
        ("? [a]\n: v\n", 1, "a key that is a list"),
        ("name: &anchor w\n", 1, "anchors"),
        ("name: w\ndescription: *anchor\n", 2, "anchors"),
        ("name: w\ntasks:\n- <<: *base\n", 3, "anchors"),
        ("name: !!python/object/apply:os.system [ls]\n", 1, "tag"),
        ("name: !custom w\n", 1, "tag"),
        ("name: w\n---\nname: v\n", 2, "second document"),
        ("name: w\ntasks: [\n", 3, "not YAML"),
        ("name: w\n\tversion: '1'\n", 2, "not YAML"),
        ("name: 'w\n", 2, "not YAML"),
        ("name: \x00", 1, "not YAML"),
        ("", 1, "empty"),
        ("# nothing\n", 1, "empty"),
        ("- name\n", 1, "a mapping"),
        ("[" * 10_000, 1, "nested deeper"),
        ("name: " + "9" * 5_000, 1, "above 64 bits"),
    ],
)
def test_what_is_wrong_in_yaml_is_told_with_its_line(text: str, line: int, problem: str) -> None:
    refused = refusal(text)
    assert problem in refused.problem
    assert refused.where.split(":")[1].strip() == str(line)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('{"name": "w",\n "name": "v"}', 2, "'name' is there twice"),
        (
            '{"name": "w", "tasks": [\n{"id": "a", "agent": "x", "config": {"b,]": "\\"}",\n"b,]": 1}}]}',
            3,
            "'b,]' of tasks[0]",
        ),
        ('{"name": "w",\n\n "version": 1.10}', 3, "1.1 is not text"),
        ('{"name": "w",\n "tasks": [{"id": "a",\n "agent": "x",\n "timeout": "soon"}]}', 4, "no duration"),
        ('{"name": "w",\n}', 2, "not JSON"),
        ('{"name": "w",\n "timeout": NaN}', 1, "NaN"),
        ('{"name": "w"} {}', 1, "not JSON"),
        ("[" * 100_000, 1, "nested deeper"),
        ("[" * 100 + "]" * 100, 1, "nested deeper"),
        ("", 1, "not JSON"),
        ("[]", 1, "a mapping"),
        ("5", 1, "a mapping"),
        ('{"name": "w", "timeout": ' + "9" * 5_000 + "}", 1, "not JSON"),
        ('{"name": "w", "timeout": 1e999}', 1, "too long"),
        ('{"name": "w", "description": "\\ud800"}', 1, "no Unicode"),
    ],
)
def test_what_is_wrong_in_json_is_told_with_its_line(text: str, line: int, problem: str) -> None:
    refused = refusal(text, "flow.json")
    assert problem in refused.problem
    assert refused.where.split(":")[1].strip() == str(line)


def test_a_file_of_another_kind_or_size_or_encoding_is_refused() -> None:
    assert ".yaml" in refusal("name: w", "flow.toml").hint
    assert "the limit is" in refusal("#" * (FILE_BYTES_MAX + 1)).problem
    assert "the limit is" in refusal("é" * (FILE_BYTES_MAX // 2 + 1)).problem
    assert "UTF-8" in refusal(b"name: \xff").problem
    assert "UTF-8" in refusal("name: \ud800").problem
    assert load_document("name: w\n" + "#" * (FILE_BYTES_MAX - 8), "flow.yaml").name == "w"


def test_a_hint_of_the_door_is_kept() -> None:
    refused = refusal("name: w\ntasks:\n- id: a\n  agent: x\n  retry_config: {max_atempts: 1}\n")
    assert refused.hint == "did you mean 'max_attempts'?"
    assert refused.where == "flow.yaml:5: tasks[0].retry_config.max_atempts"


pieces = st.sampled_from(
    ["name", "tasks", "id", ": ", ":", "- ", "\n", "  ", "{", "}", "[", "]", ",", '"', "'", "&a", "*a", "!!", "|", "?",
     "#", "1", "true", "é", "\t", "---", "...", "%", "\\", "\x85", "~"]
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(pieces, max_size=20).map("".join), st.sampled_from(["flow.yaml", "flow.json"]))
def test_any_text_is_a_document_or_an_invalid_definition(text: str, name: str) -> None:
    try:
        load_document(text, name)
    except InvalidDefinition as problem:
        assert problem.where.startswith(name)
