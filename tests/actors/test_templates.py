"""Templates: `${{ }}` in plain data becomes what CEL finds, of any kind, or the task fails saying what is missing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_actors.errors import ConditionError, InvalidDefinition
from infinity_matrix_actors.formula import Formula, Template, text_of_key

IDS = {"a", "load-b", "in"}
VARIABLES = frozenset({"input", "item"})
A = {"result": {"n": 7, "list": [1, 2], "text": "hi", "none": None, "deep": {"x": [{"y": 3}]}}, "state": "completed"}


def template(data: Any, *, allowed: set[str] = IDS, variables: frozenset[str] = VARIABLES) -> Template | None:
    return Template.compile(data, IDS, allowed, variables, "task 't', config")


def filled(data: Any, **variables: Any) -> Any:
    made = template(data)
    assert made is not None
    tasks = {name: {"error": None, **A} for name in IDS}
    return made.fill(tasks, {"input": {"who": "ada"}, "item": None, **variables})


@pytest.mark.parametrize("data", [None, 7, "text", "$ { {a}}", "{{ a }}", "$", {"a": ["b", {"c": 1.5}]}, [], {}])
def test_what_has_nothing_to_fill_is_no_template(data: Any) -> None:
    assert template(data) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${{ a.result.n }}", 7),
        ("${{a.result.list}}", [1, 2]),
        ("  ${{ a.result.deep }}  ", {"x": [{"y": 3}]}),
        ("${{ a.result.deep.x[0].y }}", 3),
        ("${{ a.result.none }}", None),
        ("${{ a.state }}", "completed"),
        ("${{ load-b.result.text }}", "hi"),
        ("${{ in.result.n + 1 }}", 8),
        ("${{ input.who }}", "ada"),
        ("${{ a.result.n > 5 }}", True),
        ("${{ 'so' }}", "so"),
        ("${{ [a.result.n, 1] }}", [7, 1]),
        ("${{ size(a.result.list) }}", 2),
        ("${{ has(a.result.missing) ? a.result.missing : 'none' }}", "none"),
    ],
)
def test_a_text_that_is_one_formula_becomes_its_value_whatever_its_kind(text: str, value: Any) -> None:
    assert filled(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n is ${{ a.result.n }}.", "n is 7."),
        ("${{ input.who }}-${{ a.result.n }}", "ada-7"),
        ("x${{ a.result.none }}y", "xnully"),
        ("x${{ true }}", "xtrue"),
        ("x${{ a.result.list }}", "x[1, 2]"),
        ("x${{ 2.0 }}", "x2"),
        ("x${{ 1234567.0 }}", "x1234567"),
        ("x${{ 0.1 }}", "x0.1"),
        ("x${{ 1e300 }}", "x1e+300"),
        ("${{ 'a' }}${{ 'a' }}", "aa"),
    ],
)
def test_in_a_longer_text_a_value_is_written_out(text: str, value: str) -> None:
    assert filled(text) == value


def test_templates_are_filled_at_every_depth_and_keys_are_left_alone() -> None:
    data = {"${{ no }}": [{"x": "${{ a.result.n }}"}, 7, None], "plain": "text"}
    assert filled(data) == {"${{ no }}": [{"x": 7}, 7, None], "plain": "text"}
    # What was given is not changed: it is shared by all executions.
    assert data["${{ no }}"][0] == {"x": "${{ a.result.n }}"}  # type: ignore[index]


def test_what_a_value_holds_is_not_filled_again() -> None:
    assert filled("${{ item }}", item="${{ a.result.n }}") == "${{ a.result.n }}"
    assert filled("x ${{ item }}", item="${{ a.result.n }}") == "x ${{ a.result.n }}"


def test_the_same_formula_is_evaluated_once_wherever_it_stands() -> None:
    made = template(["${{ a.result.n }}", "x${{ a.result.n }}"])
    assert made is not None
    assert len(made.formulas) == 1
    assert made.references == {"a"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("${{ a.result.missing }}", "missing"),
        ("${{ a.result.deep.y.z }}", "y"),
        ("${{ a.result.list[9] }}", "9"),
        ("${{ input.nobody }}", "nobody"),
        ("${{ a.result.text + 1 }}", "a.result.text"),
    ],
)
def test_a_path_that_is_missing_is_named(text: str, says: str) -> None:
    with pytest.raises(ConditionError) as caught:
        filled({"deep": [text]})
    assert says in caught.value.reason
    assert text.strip("${ }") in caught.value.reason


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("${{ a.result.text.more }}", "a.result.text is a text, it has no 'more'"),
        ("${{ a.result.n.more }}", "a.result.n is a number, it has no 'more'"),
        ("${{ input.none.more }}", "input.none is null, it has no 'more'"),
        ("${{ load-b.result.x }}", "load-b.result is null, it has no 'x'"),
    ],
)
def test_a_path_that_leads_through_no_map_says_where_it_ends(text: str, says: str) -> None:
    formula = Formula.compile(text.strip("${ }"), {"a", "load-b"}, {"a", "load-b"}, frozenset({"input"}), "config")
    tasks = {"a": {"result": {"text": "x", "n": 1}}, "load-b": {"result": None}}
    with pytest.raises(ConditionError) as caught:
        formula.evaluate(tasks, {"input": {"none": None}})
    assert caught.value.reason.endswith(says)


@pytest.mark.parametrize("text", ["${{ input.x }", "x ${{ input.x", "${{ input.x }} and ${{", ["${{"]])
def test_a_formula_without_an_end_is_refused(text: Any) -> None:
    with pytest.raises(InvalidDefinition, match="has no end"):
        template({"x": text})


def test_maps_come_out_in_the_order_of_their_keys() -> None:
    keys = [f"k{number}" for number in range(9)]
    for source in ("input", "{'z': input, 'b': [input], 'a': 1}"):
        formula = Formula.compile(source, set(), set(), frozenset({"input"}), "key")
        found = formula.evaluate({}, {"input": dict.fromkeys(reversed(keys), 1)})
        assert json.dumps(found) == json.dumps(found, sort_keys=True)


def test_values_that_differ_have_keys_that_differ() -> None:
    values: list[Any] = [1, "1", True, "true", None, "null", "", [], {}, {"a": 1, "b": 2}, ["a"], "a", 1.5]
    assert len({text_of_key(value) for value in values}) == len(values)
    assert text_of_key({"a": 1, "b": 2}) == text_of_key({"b": 2, "a": 1})
    assert text_of_key("acme") == "acme"


@pytest.mark.parametrize(
    "text",
    ["${{ nobody.result }}", "${{ }}", "${{ a.result. }}", "${{ a.rows }}", "${{ 1 + }}", "${{ os.system('x') }}"],
)
def test_a_formula_that_cannot_be_is_refused_when_it_is_defined(text: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        template({"x": text})
    assert caught.value.where == "task 't', config"


def test_a_task_that_is_no_ancestor_is_refused() -> None:
    with pytest.raises(InvalidDefinition):
        template("${{ a.result.n }}", allowed={"load-b"})


def test_only_instances_have_an_item() -> None:
    with pytest.raises(InvalidDefinition):
        template("${{ item.n }}", variables=frozenset({"input"}))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=PLAIN)
def test_any_plain_value_goes_through_a_template_as_it_is(value: Any) -> None:
    got = filled({"x": "${{ item }}"}, item=value)
    assert got == {"x": value}
    assert _kinds(got["x"]) == _kinds(value)


@given(value=PLAIN)
def test_any_plain_value_can_stand_in_a_text(value: Any) -> None:
    assert filled("<${{ item }}>", item=value).startswith("<")


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kinds(inner) for key, inner in value.items()}
    return [_kinds(inner) for inner in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize(("source", "says"), [("item.x", "x"), ("item", None)])
def test_a_formula_answers_plain_values_only(source: str, says: str | None) -> None:
    formula = Formula.compile(source, IDS, IDS, VARIABLES, "here")
    if says is None:
        assert formula.evaluate({}, {"item": [1]}) == [1]
        return
    with pytest.raises(ConditionError) as caught:
        formula.evaluate({}, {"item": {}})
    assert says in caught.value.reason


def test_what_is_not_plain_is_no_answer() -> None:
    formula = Formula.compile("timestamp('2026-01-01T00:00:00Z')", IDS, IDS, VARIABLES, "here")
    with pytest.raises(ConditionError):
        formula.evaluate({}, {})
