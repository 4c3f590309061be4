"""House rules as tests: sizes, imports, words."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "bus", "coordinator", "agents", "workflow")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
INIT_LINES_MAX = 60


def test_there_are_modules_to_check() -> None:
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_fits(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module begins with what it is"
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, f"{node.name} does not fit a screen"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except swallows cancellation"


def test_an_init_only_hands_names_on() -> None:
    for path in MODULES:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body[1:]
            assert len(path.read_text().splitlines()) <= INIT_LINES_MAX, path
            assert all(isinstance(node, ast.ImportFrom | ast.Import | ast.Assign) for node in body), path


def test_subjects_are_built_in_one_module() -> None:
    pattern = re.compile(r"""["']im\.(fact|work|status|logs|trigger|dead|cancel|api)\.""")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES
        if path.name != "subjects.py" and "demo" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line) and not line.lstrip().startswith("#")
    ]
    assert found == []


def test_imports_go_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "1 kept, 0 broken" in checked.stdout


#: What decides, and what counts for who decides.
PURE = (
    "execution_actor.py",
    "execution.py",
    "beginning.py",
    "routing.py",
    "waiting.py",
    "callbacks.py",
    "reopening.py",
    "stopping.py",
    "saga.py",
    "snapshot.py",
    "deadlines.py",
    "views.py",
    "timers.py",
    "backlog.py",
)


def test_the_core_does_no_io() -> None:
    """The pure core imports nothing that waits, reads a clock, or talks."""
    banned = {"asyncio", "nats", "socket", "time", "random", "subprocess", "threading", "logging", "os"}
    core = sorted((ROOT / "actors").rglob("*.py"))
    core += [ROOT / "coordinator/infinity_matrix_coordinator" / name for name in PURE]
    for path in core:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not {name.split(".")[0] for name in names} & banned, f"{path.relative_to(ROOT)} imports {names}"


def test_nobody_waits_by_what_can_swallow_a_cancellation() -> None:
    # In Python 3.11 `wait_for` answers when what it waits for is done at the same turn, cancelled or not.
    users = [str(path.relative_to(ROOT)) for path in MODULES if "asyncio.wait_for(" in path.read_text()]
    assert users == []
