"""The documentation as far as it can be checked: links, snippets, limits, settings, commands."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from infinity_matrix.cli.main import app
from infinity_matrix_actors.document import define
from infinity_matrix_actors.document_file import load_document

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SHARED_OPTIONS = {"--url", "--credentials", "--prefix", "--context", "--json", "--help", "-h"}
#: A command in the text, or a line of a snippet that is one.
COMMAND = re.compile(r"`imx ([^`]+)`|^(?:\$ )?imx (.+)$", re.MULTILINE)


def fences(language: str) -> Iterator[tuple[str, str]]:
    """The snippets of a language, each with the place where it begins."""
    for page in PAGES:
        text = page.read_text()
        for fence in FENCE.finditer(text):
            if fence[1] == language:
                yield f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, fence.start()) + 1}", fence[2]


def anchors(page: Path) -> set[str]:
    """The anchors GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PYTHON = dict(fences("python"))
YAML = dict(fences("yaml"))
JSON = dict(fences("json"))


def test_there_is_something_to_check() -> None:
    assert len(PAGES) > 15
    assert len(PYTHON) > 10
    assert len(YAML) > 2
    assert len(JSON) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(path), f"{target}: there is no such heading"


@pytest.mark.parametrize("place", PYTHON)
def test_a_python_snippet_compiles_and_imports_what_there_is(place: str) -> None:
    for node in ast.walk(ast.parse(PYTHON[place])):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("infinity_matrix"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("infinity_matrix"):
                    importlib.import_module(alias.name)


@pytest.mark.parametrize("place", YAML)
def test_a_workflow_in_yaml_is_valid(place: str) -> None:
    assert define(load_document(YAML[place], "snippet.yaml")).tasks


@pytest.mark.parametrize("place", JSON)
def test_a_json_snippet_is_json(place: str) -> None:
    json.loads(JSON[place])


def test_every_limit_is_the_one_in_the_code() -> None:
    rows = re.findall(
        r"^\| `(infinity_matrix[\w.]*)\.(\w+)` \| ([\d.,]+)", (REFERENCE / "limits.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 50
    told = {f"{module}.{name}": float(value.replace(",", "")) for module, name, value in rows}
    real = {f"{module}.{name}": float(getattr(importlib.import_module(module), name)) for module, name, _ in rows}
    assert told == real


def test_every_setting_that_is_read_is_told() -> None:
    told = (REFERENCE / "settings.md").read_text()
    # A variable in quotes; the streams of the default prefix are named in quotes as well.
    read = {
        name
        for package in ("actors", "bus", "coordinator", "agents", "workflow")
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r"""["'](IM_[A-Z_]+)["']""", path.read_text())
    }
    assert {"IM_URL", "IM_HOME", "IM_SECRET"} <= read
    assert {name for name in read if f"`{name}`" not in told} == set()


def test_every_command_and_option_is_told() -> None:
    sections = dict(re.findall(r"^### `imx ([^`]*)`\n(.*?)(?=^##|\Z)", (REFERENCE / "cli.md").read_text(), re.M | re.S))
    told = {re.split(r" (?=[A-Z\[-])", title)[0]: text for title, text in sections.items()}
    commands = dict(_commands(typer.main.get_command(app), ""))
    assert told.keys() == commands.keys()
    for name, command in commands.items():
        options = {text for parameter in command.params for text in parameter.opts if text.startswith("-")}
        for option in options - SHARED_OPTIONS:
            assert f"`{option}" in told[name], f"imx {name} {option} is not told"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_named_exists(page: Path) -> None:
    for found in COMMAND.finditer(page.read_text()):
        words = (found[1] or found[2]).split(" -- ")[0].split("#")[0].split()
        root: Any = typer.main.get_command(app)
        command, name = root, "imx"
        while words and (inner := getattr(command, "commands", None)) and not words[0].startswith("-"):
            name = f"{name} {words[0]}"
            assert words[0] in inner, f"there is no {name}"
            command = inner[words.pop(0)]
        if command is not root:
            # A group by itself lists what it is about.
            command = getattr(command, "commands", {}).get("ls", command)
        known = {text for parameter in command.params for text in parameter.opts} | SHARED_OPTIONS
        options = {word.strip("[]") for word in words if word.lstrip("[").startswith("-")}
        assert options - known == set(), f"{name} has no such option"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for key, part in inner.items():
        yield from _commands(part, f"{name} {key}".strip())


def test_the_first_workflow_of_the_readme_is_the_example() -> None:
    shown = FENCE.search((ROOT / "README.md").read_text().split("## A first workflow", 1)[1])
    assert shown is not None
    assert shown[1] == "python"
    example = (ROOT / "examples" / "first_workflow.py").read_text()
    docstring = ast.parse(example).body[0]
    assert isinstance(docstring, ast.Expr)
    assert docstring.end_lineno is not None
    code = "".join(example.splitlines(keepends=True)[docstring.end_lineno :])
    assert shown[2].strip() == code.strip()
