"""Commands that need no server: help, validate, graph."""

import subprocess
import sys
import time
from typing import Any

import pytest
from command_line import CommandLine
from infinity_matrix.cli.mermaid import flowchart
from infinity_matrix.workflow import Task, Trigger, Workflow

#: The goal is 0.2 s, and 0.11 s was measured on an idle machine of 2 cores; a busy one is slower.
HELP_S_MAX = 1.0
COMMANDS = "run validate graph deploy start trigger status watch ls cancel logs tail agents dev env coordinator demo"
HEAVY = {"nats", "pydantic", "structlog", "uvloop", "yaml", "rich", "asyncio"}
PAIR = """
name: pair
version: "1"
tasks:
  - {id: first, agent: a}
  - {id: end, agent: b, depends_on: [first], condition: first.result.rows > 0}
"""


def imported(*arguments: str) -> set[str]:
    """The modules that are there after a command."""
    code = (
        "import sys, atexit; atexit.register(lambda: sys.stderr.write('\\n'.join(sys.modules)));"
        f"sys.argv = ['imx', *{arguments!r}];"
        "from infinity_matrix.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    return set(done.stderr.splitlines())


def test_help_answers_at_once_and_names_every_command(imx: CommandLine) -> None:
    took_s = []
    for _ in range(3):
        began = time.monotonic()
        answer = imx("--help")
        took_s.append(time.monotonic() - began)
    assert answer.code == 0
    for name in [*COMMANDS.split(), "agent"]:
        assert f"\n  {name} " in answer.out
    assert min(took_s) < HELP_S_MAX


def test_help_imports_nothing_heavy() -> None:
    assert not imported("--help") & HEAVY


def test_a_ctrl_c_while_it_is_still_being_imported_ends_it_without_a_traceback() -> None:
    code = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "infinity_matrix.cli.workflows":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from infinity_matrix.entry import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (130, "")


#: Commands that talk to no installation, or to the one they make.
WITHOUT_URL = ("validate", "graph", "dev", "env", "demo")
#: Commands that serve until they are ended, and answer nothing.
SERVING = ("exec", "host", "coordinator")


def commands() -> dict[str, Any]:
    """Every command by its words, those of the groups too."""
    import typer.main
    from infinity_matrix.cli.main import app

    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {verb}": one for verb, one in below.items()}
    return found


def test_every_command_answers_in_json() -> None:
    for words, command in commands().items():
        options = {option for parameter in command.params for option in parameter.opts}
        if words.split()[-1] not in SERVING:
            assert "--json" in options, words
        assert ("--url" in options) == (words.split()[0] not in WITHOUT_URL), words


def test_validate_says_the_hash_of_the_python_form_and_imports_no_nats(imx: CommandLine) -> None:
    file = imx.write("pair.yaml", PAIR)
    same = Workflow("pair")
    same.add_tasks([Task("first", "a"), Task("end", "b", depends_on=["first"], condition="first.result.rows > 0")])
    digest = same.definition().digest()
    answer = imx("validate", file)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("ok ") and digest in answer.out
    answer = imx("validate", file, "--json")
    assert answer.json == {"ok": True, "workflow": "pair", "version": "1", "tasks": 2, "definition": digest}
    assert not imported("validate", str(imx.folder / file)) & {"nats", "infinity_matrix_bus"}


def test_a_bad_definition_is_told_with_its_place_and_a_hint(imx: CommandLine) -> None:
    file = imx.write("bad.yaml", PAIR.replace("[first]", "[frist]"))
    answer = imx("validate", file)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("error: bad.yaml: task 'end': depends_on names an unknown task 'frist'\nhint: ")
    assert "Traceback" not in answer.err
    error = imx("--json", "validate", file)
    assert error.code == 2
    assert '"type": "InvalidDefinition"' in error.err and error.err.startswith('{"error": ')
    assert "Traceback" in imx("validate", file, IM_DEBUG="1").err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.yaml", "none.yaml cannot be read: No such file"),
        ("no such thing", "neither a file nor a module"),
        ("nowhere:workflow", "there is no module 'nowhere'"),
        ("broken:workflow", "cannot be imported: ZeroDivisionError"),
        ("empty:workflow", "empty:workflow is no Workflow"),
        ("empty", "has no Workflow"),
    ],
)
def test_a_definition_that_cannot_be_found_is_a_usage_error(imx: CommandLine, source: str, message: str) -> None:
    imx.write("broken.py", "1 / 0\n")
    imx.write("empty.py", "\n")
    answer = imx("validate", source)
    assert answer.code == 2
    assert message in answer.err and answer.err.startswith("error: ")
    assert "Traceback" not in answer.err


def test_a_workflow_of_a_module_in_the_current_directory_is_found(imx: CommandLine) -> None:
    imx.write("mine.py", 'from infinity_matrix.workflow import *\nit = Workflow("mine", tasks=[Task("a", "b")])\n')
    assert imx("validate", "mine:it").out.startswith("ok  mine 1  1 task ")
    assert imx("validate", "mine").code == 0


def test_an_unknown_command_or_option_is_a_usage_error(imx: CommandLine) -> None:
    assert imx("lss").code == 2
    assert imx("ls", "--colour").code == 2
    assert imx("start").code == 2


def test_a_graph_survives_words_and_marks_that_mermaid_knows() -> None:
    workflow = Workflow("graph")
    workflow.add_tasks(
        [
            Task("end", "a", retry_config={"max_attempts": 3}),
            Task("subgraph", "b", depends_on=["end"], condition='end.result.name == "a<b>#c;" && end.result.n > 0'),
            Task("rescue", "c", depends_on=["end", "subgraph"], run_when="any_failed"),
        ]
    )
    workflow.add_trigger(Trigger("orders.created", filter="event.total > 100"))
    lines = flowchart(workflow.definition()).splitlines()
    assert lines == [
        "flowchart TD",
        '    t0["end<br>a<br>up to 3 attempts"]',
        '    t1["subgraph<br>b"]',
        '    t2["rescue<br>c"]',
        '    t0 -->|"end.result.name == #quot;a#lt;b#gt;#35;c;#quot; #amp;#amp; end.result.n #gt; 0"| t1',
        '    t0 -.->|"any_failed"| t2',
        '    t1 -.->|"any_failed"| t2',
        '    e0(["orders.created"])',
        '    e0 -->|"event.total #gt; 100"| t0',
    ]


def test_a_graph_shows_maps_loops_children_waits_and_what_undoes() -> None:
    workflow = Workflow("graph", on_failure=[Task("tell", "mail"), Task("log", "mail")])
    workflow.add_tasks(
        [
            Task("parts", "a", for_each=["input.items", "item.parts"], max_parallel=5, compensation=Task("undo", "a")),
            Task("poll", "service:jobs.state", loop={"until": "result.done", "max_iterations": 9}),
            Task("sub", workflow="child", depends_on=["parts"]),
            Task("sign", approval={"assignees": ["ada", "bob"]}, depends_on=["sub"]),
        ]
    )
    assert flowchart(workflow.definition()).splitlines() == [
        "flowchart TD",
        '    t0["parts<br>a<br>for each of input.items<br>for each of item.parts<br>5 at once"]',
        '    t1["poll<br>service jobs.state"]',
        '    t2[["sub<br>workflow child"]]',
        '    t3{{"sign<br>approval by ada, bob"}}',
        '    t1 -->|"until result.done<br>at most 9 times"| t1',
        "    t0 --> t2",
        "    t2 --> t3",
        '    subgraph on_failure ["on failure"]',
        '        u0["undo<br>a"]',
        '        u1["tell<br>mail"]',
        '        u2["log<br>mail"]',
        "    end",
        '    t0 -.->|"undone by"| u0',
        "    u1 --> u2",
    ]


def test_graph_prints_the_flowchart(imx: CommandLine) -> None:
    answer = imx("graph", imx.write("pair.yaml", PAIR))
    assert answer.code == 0
    assert 't0 -->|"first.result.rows #gt; 0"| t1' in answer.out
    assert imx("graph", "pair.yaml", "--json").json == {"mermaid": answer.out.rstrip("\n")}
