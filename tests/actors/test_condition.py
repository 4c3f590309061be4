"""Conditions: what users may write, what it means, and that no answer is never taken for an answer."""

import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infinity_matrix_actors.condition import Condition, Filter, compile_filter
from infinity_matrix_actors.errors import ConditionError, InvalidDefinition
from infinity_matrix_actors.expression import DEPTH_MAX, FUNCTIONS, MACROS, SOURCE_BYTES_MAX

CEL_WORDS = ["in", "loop", "for", "and", "or", "not", "int", "size", "map", "true", "null", "None", "has", "as", "var"]
AWKWARD_IDS = ["1", "2nd", "1-2", "1e5", "a-", "0x1F", "r", "b"]
IDS = {"a", "a-b", "a-b-c", "extract", "process-a", *CEL_WORDS, *AWKWARD_IDS}
DONE: dict[str, Any] = {
    "result": {"rows": 3, "text": "abc", "list": [1, 2, 3], "map": {"z": 1, "b": 2}, "ratio": 2.5, "none": None},
    "state": "completed",
    "error": None,
}
SKIPPED: dict[str, Any] = {"result": None, "state": "skipped", "error": None}
FAILED: dict[str, Any] = {"result": None, "state": "failed", "error": {"type": "Boom", "message": "no"}}


def condition(source: str, ids: set[str] = IDS, allowed: set[str] | None = None) -> Condition:
    return Condition.compile(source, ids, ids if allowed is None else allowed, "task 't'")


def holds(source: str, tasks: dict[str, Any] | None = None, input: Any = None) -> bool:
    return condition(source).evaluate({**dict.fromkeys(IDS, DONE), **(tasks or {})}, input)


def refusal(source: str, ids: set[str] = IDS, allowed: set[str] | None = None) -> InvalidDefinition:
    with pytest.raises(InvalidDefinition) as caught:
        condition(source, ids, allowed)
    assert caught.value.where == "task 't'"
    return caught.value


@pytest.mark.parametrize(
    "source",
    [
        "extract.result.rows > 0",
        "process-a.result.text == 'abc' and a.result.rows-1 == 2",
        "a-b.result.rows == 3 or false",
        "a.result.rows-a-b.result.rows == 0",
        "in.result.rows in [3] and not.result.rows==3 && or.result.rows == 3 or and.state == ''",
        "a.result.rows == 3 ? True : False",
        "None == null && !(a.result.none != None)",
        "tasks.a-b.result.rows == 3 && tasks['a-b-c'].state == \"completed\" && tasks . extract . error == null",
        "a['result']['rows'] == 3",
        "has(a.result.rows) && !has(a.result.nope)",
        "size(a.result.list) == 3 && a.result.list.all(i, i > 0)",
        "a.result.text.startsWith('ab') && a.result.text.matches('^a.c$')",
        "type(a.result.rows) == int && int('3') == 3 && size.result.rows == 3 && int.result.rows == 3",
        "1.result.rows == 1 + 2 && 2nd.result.rows == 3 && 1-2.result.rows == 3 && 1e5.state != '' && 1-2 == -1",
        "true.result.rows == 3 && true",
        "{'a': 1, 'k': a.result.rows}.k == 3",
        "'a-b.result and not or' != \"extract\" && r'\\' != '''a\n'a-b' ''' && r.state == b.state && b'a' == b'a'",
        "input.threshold < a.result.rows",
        "a.result.rows\n  > 0",
        "a.result.ratio > 2",
    ],
)
def test_what_users_write_holds(source: str) -> None:
    assert holds(source, input={"threshold": 2}) is True


def test_the_references_are_the_tasks_named() -> None:
    assert condition("a-b.result.rows > 0 && tasks.extract.result == 'a' && input.a == 1").references == {
        "a-b",
        "extract",
    }
    assert condition("input.a == 'process-a'").references == frozenset()


@pytest.mark.parametrize("task", sorted(IDS))
def test_every_id_can_be_asked_for_its_result_whatever_it_means_in_cel(task: str) -> None:
    compiled = condition(f"{task}.result.rows == 3 && {task}['state'] == 'completed'")
    assert compiled.references == {task}
    assert compiled.evaluate({task: DONE}, None) is True


@pytest.mark.parametrize(
    ("source", "problem", "hint"),
    [
        ("extrct.result.rows > 0", "unknown name 'extrct'", "did you mean 'extract'?"),
        ("proces-a.result.rows > 0", "unknown name 'proces-a'", "did you mean 'process-a'?"),
        ("inptu.x == 1", "unknown name 'inptu'", "did you mean 'input'?"),
        ("tasks['extrct'].result == 1", "unknown task 'extrct'", "did you mean 'extract'?"),
        ("tasks[a.result.text].result == 1", "one id written out", "tasks['id']"),
        ("size(tasks) > 1", "one id written out", "tasks['id']"),
        ("a.rows > 0", "a task has no 'rows'", "a.result.rows"),
        ("tasks.a.rows > 0", "a task has no 'rows'", "a.result.rows"),
        ("not a.result.rows == 1", "'not' is not supported", "!(..)"),
        ("1 not in a.result.list", "'not' is not supported", "!(a in b)"),
        ("a.result.rows = 3", "unexpected '='", "=="),
        ("a.result.rows // 2 == 1", "comment", "'/'"),
        ("`a`.result == 1", "unexpected '`'", "no quotes"),
        ("a.result.row-count > 0", "unknown name 'count'", "['row-count']"),
        ("a.result.in > 0", "cannot follow a dot", "['in']"),
        ("a.result.text.startWith('a')", "unknown function 'startWith'", "startsWith"),
        ("now() > 1", "unknown function 'now'", ""),
        ("{a: 1}.a == 1", "the map key a", "{'a': ..}"),
        ("{'k': 1, rows: 1}.k == 1", "the map key rows", "{'rows': ..}"),
        ("a.result.list.all(i, a.result.list.exists(j, i == j))", "more than 1 loop", ""),
        ("a.result.list.all(a, a > 0)", "another meaning", "another name"),
        ("a.result.list.all(process, process > 0)", "begins the task id 'process-a'", "another name"),
        ("a.result.list.all(i > 0)", "needs a name", ".all(item"),
        ("a.result.list.all(i, i > 0) && i == 1", "unknown name 'i'", ""),
        ("a.result == 'open", "a text has no end", ""),
        ("a.result.rows >", "is not CEL", ""),
        ("a extract", "an operator is missing", ""),
        ("a.result.rows)", "closes nothing", ""),
        ("(a.result.rows]", "closes nothing", ""),
        ("message{field: 1}", "unknown name 'message'", ""),
        (".a.result == 1", "cannot begin with a dot", ""),
        ("'\ud800' == 'a'", "no Unicode", ""),
        ("  ", "empty", ""),
        ("(" * (DEPTH_MAX + 1) + "true" + ")" * (DEPTH_MAX + 1), "nested deeper", ""),
        ("'" + "x" * SOURCE_BYTES_MAX + "' == ''", "the limit is 1024", ""),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_defined(source: str, problem: str, hint: str) -> None:
    refused = refusal(source)
    assert problem in refused.problem
    assert hint in refused.hint


def test_only_ancestors_may_be_asked() -> None:
    assert condition("extract.state == 'failed'", allowed={"extract"}).references == {"extract"}
    for source in ("extract.state == 'failed'", "tasks['extract'].state == 'failed'"):
        refused = refusal(source, allowed={"a"})
        assert "not upstream" in refused.problem
        assert "depends_on" in refused.hint


def test_an_id_that_is_also_a_variable_is_ambiguous() -> None:
    assert "tasks['input']" in refusal("input.rows > 0", {"input"}).hint
    assert condition("tasks['input'].result == 1", {"input"}).references == {"input"}
    assert "rename" in refusal("tasks['a'].result == 1", {"tasks", "a"}).hint


def test_depth_and_size_at_their_limits_are_accepted() -> None:
    assert holds("(" * DEPTH_MAX + "true" + ")" * DEPTH_MAX) is True
    filler = "'" + "x" * (SOURCE_BYTES_MAX - len("'' != ''")) + "' != ''"
    assert len(filler) == SOURCE_BYTES_MAX
    assert holds(filler) is True


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a.result.nope > 0", "no field 'nope'"),
        ("a.result.rows", "a number, not true or false"),
        ("a.result.text", "a text, not true or false"),
        ("a.result.none", "null, not true or false"),
        ("a.result.map", "a map, not true or false"),
        ("a.result.rows + 0.5 > 1", "No such overload"),
        ("a.result.rows / 0 == 1", "division by zero"),
        ("a.result.list[9] == 1", "out of bounds"),
        ("a.result.rows.matches('3')", "'matches' does not take values of these types"),
        ("input.nope == 1", "no field 'nope'"),
        ("b.result.rows > 0", "'b' is skipped and its result is null"),
        ("extract.result.rows > 0", "'extract' is failed and its result is null"),
    ],
)
def test_no_answer_is_an_error_and_never_false(source: str, reason: str) -> None:
    with pytest.raises(ConditionError) as caught:
        holds(source, {"b": SKIPPED, "extract": FAILED}, {})
    assert reason in caught.value.reason


def test_a_settled_task_without_a_result_can_be_asked_how_it_ended() -> None:
    tasks = {"b": SKIPPED, "extract": FAILED}
    assert holds("b.result == null and b.state == 'skipped' and b.error == null", tasks)
    assert holds("extract.result == null and extract.error.type == 'Boom'", tasks)
    assert holds("b.state == 'completed' and b.result.rows > 0", tasks) is False


def test_loops_over_a_map_have_one_order_in_every_process() -> None:
    tasks = {"a": {**DONE, "result": dict.fromkeys("qwertzuiopasdfghjkl", 1)}}
    ordered = condition(
        "a.result.map(k, k) == [" + ", ".join(f"'{letter}'" for letter in sorted("qwertzuiopasdfghjkl")) + "]"
    )
    assert all(ordered.evaluate(tasks, None) for _ in range(10))
    filtered = condition("a.result.filter(k, k > 'd')[0] == 'e'")
    assert all(filtered.evaluate(tasks, None) for _ in range(10))


def test_a_condition_answers_in_any_thread() -> None:
    compiled = condition("a.result.list.exists(i, i == 3)")
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(compiled.evaluate({"a": DONE}, None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 4


def test_every_function_that_is_let_through_exists_in_the_engine() -> None:
    import cel

    values = ["'1'", "1", "duration('1h')", "timestamp('2020-01-01T00:00:00Z')", "b'a'"]
    calls = {
        name: [f"{name}({one})" for one in values]
        + [f"{one}.{name}()" for one in values]
        + [f"'a'.{name}('a')", f"{name}({{'a': 1}}.a)"]
        for name in FUNCTIONS
    }
    loops = {name: [f"[1].{name}(i, i > 0)"] for name in MACROS}

    def answers(call: str) -> bool:
        try:
            cel.compile(call).execute({})
        except (ValueError, TypeError, RuntimeError):
            return False
        return True

    assert not [name for name, tries in (calls | loops).items() if not any(answers(call) for call in tries)]


def test_what_nests_without_brackets_cannot_overflow_a_small_stack() -> None:
    """An overflow in the engine would end the process, so this asks another one, on a thread with a small stack."""
    program = """
import threading
from infinity_matrix_actors.condition import Condition, ConditionError
from infinity_matrix_actors.errors import InvalidDefinition
def go():
    for source in ["!" * 1020 + "true", "-" * 1023 + "1", "1+" * 511 + "1", "a||" * 340 + "a", "a?a:" * 255 + "a",
                   "a?" * 340 + "a" + ":a" * 340, "a.result" + ".x" * 500, "a" + "[0]" * 340, "a" + ".size()" * 140,
                   "[" * 32 + "1," * 400 + "]" * 32, "size(" * 31 + "a" + ")" * 31, "a.state" + "!=''" * 250]:
        try:
            Condition.compile(source, {"a"}, {"a"}, "").evaluate({"a": {"result": 1, "state": ""}}, None)
        except (InvalidDefinition, ConditionError):
            pass
    print("survived")
threading.stack_size(512 * 1024)
thread = threading.Thread(target=go)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "survived", done.stderr


def test_the_engine_is_imported_with_the_first_condition_only() -> None:
    program = (
        "import sys; from infinity_matrix_actors.document import define, parse_document;"
        "define(parse_document({'name': 'w', 'tasks': [{'id': 'a', 'agent': 'x'}]})); print('cel' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_a_filter_is_over_the_event_alone() -> None:
    compiled = compile_filter("event.total > 100 and event['kind'] == 'order'", "triggers[0].filter")
    assert isinstance(compiled, Filter)
    assert compiled.evaluate({"total": 101, "kind": "order"}) is True
    assert compiled.evaluate({"total": 1, "kind": "order"}) is False
    with pytest.raises(ConditionError):
        compiled.evaluate({})
    for source in ("input.total > 100", "tasks['a'].result == 1", "evnt.total > 1"):
        with pytest.raises(InvalidDefinition):
            compile_filter(source, "triggers[0].filter")


# ---- properties

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,5}", fullmatch=True) | st.sampled_from(sorted(IDS))
free_names = names.filter(lambda name: name not in ("input", "tasks"))
#: Text that is full of what the reader replaces elsewhere.
inner = st.lists(st.sampled_from([*sorted(IDS), " and ", " or ", " not ", "True", ".", "-", " ", "tasks", "("])).map(
    "".join
)
literals = st.tuples(inner, st.sampled_from(["'{}'", '"{}"', "r'{}'", "'''{}'''", '"""{}"""', "b'{}'", "'\\'{}'"])).map(
    lambda pair: pair[1].format(pair[0])
)


@given(st.sets(free_names, min_size=1, max_size=6), st.data())
def test_ids_are_replaced_wherever_they_stand_and_texts_never_change(ids: set[str], data: st.DataObject) -> None:
    selected = st.sampled_from(sorted(ids)).flatmap(
        lambda task: st.sampled_from(
            [(f"{task}.result", f"tasks['{task}'].result"), (f"tasks.{task}.state", f"tasks['{task}'].state")]
        )
    )
    operand = selected | literals.map(lambda text: (text, text))
    operator = st.sampled_from([(" == ", " == "), ("-", "-"), (" and ", " && "), (" or ", " || "), (" in ", " in ")])
    parts = [data.draw(operand)]
    for _ in range(data.draw(st.integers(0, 4))):
        parts += [data.draw(operator), data.draw(operand)]
    compiled = condition("".join(written for written, _ in parts), ids)
    assert compiled.expression.cel == "".join(expected for _, expected in parts)


@given(st.sets(free_names, min_size=1, max_size=6))
def test_a_task_answers_for_itself_and_for_no_other(ids: set[str]) -> None:
    tasks = {task: {"result": task, "state": "completed", "error": None} for task in ids}
    for task in ids:
        assert condition(f"{task}.result == '{task}' && tasks['{task}'].result == \"{task}\"", ids).evaluate(
            tasks, None
        )


fragments = st.sampled_from(
    [*"()[]{}.,:?!-+*/%<>='\"\\ \n&|", "&&", "==", "a", "a-b", "tasks", "input", "in", "not", "and", "true", "1", "1.5",
     "0x1", ".result", ".all(i, ", "size(", "r'", "'''", "i", "é", ".rows", "has(", "['a']", "1u", "1e9", "//"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(fragments, max_size=25).map("".join))
def test_whatever_is_written_is_refused_or_has_an_answer_or_an_error(source: str) -> None:
    try:
        compiled = condition(source)
    except InvalidDefinition:
        return
    import cel

    # The reader and the engine agree on what is a name: nothing slipped through unread.
    assert set(cel.compile(compiled.expression.cel).variables()) <= {"tasks", "input", "i"}
    tasks = dict.fromkeys(compiled.references, DONE)
    try:
        assert compiled.evaluate(tasks, {"a": 1}) in (True, False)
    except ConditionError as problem:
        assert problem.reason
