"""Definitions and agents as they are named on the command line: a file, or `module:name`.

A file is read without importing anything of NATS.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from infinity_matrix.cli.failure import UsageProblem, wants_traceback

if TYPE_CHECKING:
    from infinity_matrix_actors.definition import WorkflowDefinition
    from infinity_matrix_agents import Agent

    from infinity_matrix.workflow import Workflow

SUFFIXES = (".yaml", ".yml", ".json")


def load_definition(name: str) -> "WorkflowDefinition":
    """The definition that FILE or module:workflow names; raises InvalidDefinition, UsageProblem."""
    if is_file(name):
        return _read_definition(Path(name))
    return load_workflow(name).definition()


def load_workflow(name: str) -> "Workflow":
    """The workflow that `module:workflow` names, or the only one of `module`; raises UsageProblem."""
    from infinity_matrix.workflow import Workflow

    module_name, _, attribute = name.partition(":")
    workflow: Workflow = _pick(load_module(module_name), attribute, Workflow, "Workflow")
    return workflow


def load_workflows(name: str) -> "list[Workflow]":
    """The workflow that `module:workflow` names, or all of `module`; raises UsageProblem."""
    from infinity_matrix.workflow import Workflow

    module_name, separator, _ = name.partition(":")
    if separator:
        return [load_workflow(name)]
    # A module may have one object under two names.
    found = {id(value): value for value in vars(load_module(module_name)).values() if isinstance(value, Workflow)}
    return list(found.values())


def is_file(name: str) -> bool:
    """Whether a name is that of a file, not of something in a module."""
    return name.lower().endswith(SUFFIXES) or os.sep in name or Path(name).is_file()


def load_agents(name: str) -> list["Agent"]:
    """The agents that `module` or `module:agent` names; raises UsageProblem."""
    from infinity_matrix_agents import Agent, agents_of_this_process

    module_name, separator, attribute = name.partition(":")
    module = load_module(module_name)
    if separator:
        return [_pick(module, attribute, Agent, "Agent")]
    agents = agents_of_this_process()
    if not agents:
        raise UsageProblem(f"the module {module_name!r} defines no agent with a handler")
    return agents


def load_module(name: str) -> ModuleType:
    """Imports a module, also from the current directory; raises UsageProblem, naming the line that failed."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageProblem(
            f"{name!r} is neither a file nor a module", "give a .yaml or .json file, or module:name as in Python"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        if wants_traceback():
            raise
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            raise UsageProblem(
                f"there is no module {error.name!r}", "run it from the directory the module is in, or set PYTHONPATH"
            ) from error
        if isinstance(error, SyntaxError):
            raise UsageProblem(f"the module {name!r} cannot be imported: {error}") from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageProblem(
            f"the module {name!r} cannot be imported: {type(error).__name__}: {error}",
            f"in {frame.filename}, line {frame.lineno}",
        ) from error


def read_json(text: str | None, what: str) -> Any:
    """The value of JSON text, of @file, or of - (standard input); None stays None. Raises UsageProblem."""
    if text is None:
        return None
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{what}: {error}") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageProblem(
            f"{what} is not JSON: {error}", "quote text twice, as in '\"text\"'; @file reads a file"
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} has no JSON form")


def _read_definition(path: Path) -> "WorkflowDefinition":
    from infinity_matrix_actors.document import define
    from infinity_matrix_actors.document_file import FILE_BYTES_MAX, load_document
    from infinity_matrix_actors.errors import InvalidDefinition

    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageProblem(f"{path} cannot be read: {error.strerror}") from error
    try:
        return define(load_document(text, path.name))
    except InvalidDefinition as problem:
        if path.name in problem.where:
            raise
        where = f"{path.name}: {problem.where}" if problem.where else path.name
        raise InvalidDefinition(problem.problem, where=where, hint=problem.hint) from problem


def _pick(module: ModuleType, attribute: str, kind: type[Any], kind_name: str) -> Any:
    """What a module has under a name, or the only one of its kind when no name is given."""
    found = {key: value for key, value in vars(module).items() if isinstance(value, kind)}
    names = ", ".join(sorted(found)) or "none"
    if attribute:
        value = getattr(module, attribute, None)
        if isinstance(value, kind):
            return value
        raise UsageProblem(f"{module.__name__}:{attribute} is no {kind_name}", f"the module has: {names}")
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise UsageProblem(f"the module {module.__name__!r} has no {kind_name}")
    raise UsageProblem(
        f"the module {module.__name__!r} has more than one {kind_name}",
        f"name one, as in {module.__name__}:name; it has: {names}",
    )
