"""Narrowing: a program is given what it looks at, and answers the same as if it had been given everything."""

from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_actors.engine import _in_order, answer
from infinity_matrix_actors.errors import ConditionError
from infinity_matrix_actors.expression import IN_ORDER
from infinity_matrix_actors.narrowing import looked_at, narrowed


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("input.a > 0", {"a": None}),
        ("input.a.b + input.a.c", {"a": {"b": None, "c": None}}),
        ("input.a.b + size(input.a)", {"a": None}),
        ("size(input.a) + input.a.b", {"a": None}),
        ("input['a-b'].c", {"a-b": {"c": None}}),
        ('input["a"]', {"a": None}),
        ("input.list[0].x", {"list": None}),
        ("input.list[input.at]", {"list": None, "at": None}),
        ("input.text.startsWith('x')", {"text": None}),
        ("input.text.startsWith ('x')", {"text": None}),
        ("input.startsWith('x')", None),
        ("input .a", None),
        ("input", None),
        ("input == null", None),
        ("'a' in input", None),
        ("input[r'a']", None),
        ("has(input.a.b)", {"a": {"b": None}}),
        ("my_input.a", {}),
        ("inputs.a", {}),
        ("input.items.map(input, input)", None),
        ("'input.a'", {"a": None}),
        ("tasks['load-a'].result.n", {}),
    ],
)
def test_what_a_program_looks_at_is_read_off_its_text(source: str, parts: Any) -> None:
    assert looked_at(source, "input") == parts


def test_only_that_is_given_to_the_engine() -> None:
    tasks = {"a": {"result": {"n": 1, "rows": [1] * 1000}, "state": "completed", "error": None}, "b": {"result": 7}}
    assert narrowed("tasks['a'].result.n", {"tasks": tasks}) == {"tasks": {"a": {"result": {"n": 1}}}}
    assert tasks["a"]["result"] == {"n": 1, "rows": [1] * 1000}


SOURCES = (
    "x.a",
    "x.a.b",
    "x['a']",
    "x.a.b == 1 || x.b == 1",
    "has(x.a)",
    "has(x.a.b) ? x.a.b : x.b",
    "size(x)",
    "size(x.a)",
    "x.a[0]",
    "x.a[0].b",
    f"{IN_ORDER}(x.a).map(i, i)",
    "x.a.exists(x, x == 1)",
    "'a' in x",
    "'b' in x.a",
    "x.a.contains('b')",
    "x == {}",
    "x.a == x.b",
    "type(x.a) == type(x.b)",
    "[x.a, {'k': x.b}]",
    "x.a.a.a",
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(("", "b", "ab")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("a", "b", "c")), inner, max_size=3),
    max_leaves=10,
)


@given(source=st.sampled_from(SOURCES), value=VALUES)
def test_the_answer_is_the_same_as_with_everything(source: str, value: Any) -> None:
    try:
        expected = cel.compile(source).execute(cel.Context({"x": value}, {IN_ORDER: _in_order}))
    except (ValueError, TypeError, KeyError, RuntimeError):
        with pytest.raises(ConditionError):
            answer(source, {"x": value})
    else:
        assert answer(source, {"x": value}) == expected
