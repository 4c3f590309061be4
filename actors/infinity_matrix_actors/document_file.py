"""Documents from the text of a YAML or JSON file, with the line of whatever is wrong.

One strict reading for both: keys are text and stand once, depth and size have limits, and YAML means its 1.2 core
schema: `no`, `1:30` and `2024-01-01` are text, as they are in Python and JSON. Anchors, aliases and tags are refused:
nobody needs them here, and a few lines of aliases can stand for a billion values.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, NoReturn

import yaml

from infinity_matrix_actors.document import WorkflowDocument, parse_document
from infinity_matrix_actors.errors import InvalidDefinition

FILE_BYTES_MAX = 1 << 20
DEPTH_MAX = 64
#: An integer longer than this is above 64 bits anyway, and Python refuses to read the longest.
INTEGER_LENGTH_MAX = 64

#: What newer parsers of YAML say of nesting that is too deep for them; older ones leave it to the limit above.
_TOO_DEEP_FOR_YAML = "maximum nesting depth"
#: The C parser reads a megabyte in a tenth of a second, the Python one in ten.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_YAML_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_YAML_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_JSON_MARKS: dict[str, Literal["map", "list", "end"]] = {"{": "map", "[": "list", "}": "end", "]": "end"}
_JSON_TOKEN = re.compile(r'(?P<space>[\s,:]+)|(?P<mark>[\[\]{}])|(?P<value>"(?:[^"\\]|\\.)*"|[^\s,:\[\]{}"]+)')


def load_document(text: str | bytes, name: str) -> WorkflowDocument:
    """Answers the document in `text`; `name` is the file's, and its suffix tells the format: .yaml, .yml or .json.

    Raises `InvalidDefinition` for text that is neither, is above 1 MiB, or has the wrong shape.
    """
    events = {".yaml": _yaml_events, ".yml": _yaml_events, ".json": _json_events}.get(PurePath(name).suffix.lower())
    if events is None:
        raise InvalidDefinition("the format is unknown", where=name, hint="name the file .yaml, .yml or .json")
    builder = _Builder(name)
    for event in events(_decode(text, name), name):
        builder.add(event)
    try:
        return parse_document(builder.root)
    except InvalidDefinition as problem:
        where = f"{name}:{builder.line_of(problem.where)}" + (f": {problem.where}" if problem.where else "")
        raise InvalidDefinition(problem.problem, where=where, hint=problem.hint) from problem


def _decode(text: str | bytes, name: str) -> str:
    try:
        data = text.encode() if isinstance(text, str) else text
        size_bytes = len(data)
        if size_bytes > FILE_BYTES_MAX:
            raise InvalidDefinition(
                f"it has {size_bytes} bytes, the limit is {FILE_BYTES_MAX}",
                where=name,
                hint="store large configuration elsewhere and pass a reference",
            )
        return data.decode("utf-8-sig")
    except UnicodeError as problem:
        raise InvalidDefinition(f"it is no UTF-8 text: {problem}", where=name) from problem


@dataclass(frozen=True, slots=True)
class _Event:
    kind: Literal["map", "list", "end", "value"]
    line: int
    value: Any = None


@dataclass(slots=True)
class _Level:
    """A map or list that is still open, and where it stands in the document."""

    value: dict[str, Any] | list[Any]
    path: str
    key: str | None = None
    key_lines: dict[str, int] = field(default_factory=dict)


class _Builder:
    """Builds the value from events, without recursion, and remembers the line of every place in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Any = None
        self.levels: list[_Level] = []
        self.lines: dict[str, int] = {}

    def add(self, event: _Event) -> None:
        if event.kind == "end":
            self.levels.pop()
        elif self.levels and isinstance(self.levels[-1].value, dict) and self.levels[-1].key is None:
            self.levels[-1].key = self.checked_key(self.levels[-1], event)
        else:
            value = {"map": {}, "list": []}.get(event.kind, event.value)
            path = self.place(value, event.line)
            if event.kind != "value":
                if len(self.levels) == DEPTH_MAX:
                    _fail(self.name, event.line, f"nested deeper than {DEPTH_MAX} levels")
                self.levels.append(_Level(value, path))

    def place(self, value: Any, line: int) -> str:
        """Puts `value` where it belongs and answers its path."""
        if not self.levels:
            self.root = value
            self.lines[""] = line
            return ""
        level = self.levels[-1]
        if isinstance(level.value, list):
            path = f"{level.path}[{len(level.value)}]"
            level.value.append(value)
            self.lines[path] = line
            return path
        assert level.key is not None
        path = f"{level.path}.{level.key}".lstrip(".")
        level.value[level.key] = value
        self.lines[path] = level.key_lines[level.key]
        level.key = None
        return path

    def checked_key(self, level: _Level, event: _Event) -> str:
        key = event.value
        if event.kind != "value" or not isinstance(key, str):
            shown = f"the key {key!r}" if event.kind == "value" else f"a key that is a {event.kind}"
            _fail(self.name, event.line, f"{shown} is not text", "put it in quotes")
        if key in level.key_lines:
            place = f" of {level.path}" if level.path else ""
            _fail(
                self.name, event.line, f"the key {key!r}{place} is there twice", f"first in line {level.key_lines[key]}"
            )
        level.key_lines[key] = event.line
        return key

    def line_of(self, path: str) -> int:
        """Answers the line of `path`, or of the nearest that is in the file around it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 1)


def _fail(name: str, line: int, problem: str, hint: str = "") -> NoReturn:
    raise InvalidDefinition(problem, where=f"{name}:{line}", hint=hint)


def _yaml_events(text: str, name: str) -> Iterator[_Event]:
    documents = 0
    line = 1
    try:
        for event in yaml.parse(text, Loader=_YAML):
            line = event.start_mark.line + 1 if event.start_mark else line
            if getattr(event, "anchor", None) is not None:
                _fail(name, line, "anchors and aliases are not supported", "write the value out")
            if (tag := getattr(event, "tag", None)) is not None:
                _fail(name, line, f"the tag {tag!r} is not supported", "put text in quotes")
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        _fail(name, line, "a second document begins", "one workflow a file")
                case yaml.MappingStartEvent():
                    yield _Event("map", line)
                case yaml.SequenceStartEvent():
                    yield _Event("list", line)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    yield _Event("end", line)
                case yaml.ScalarEvent():
                    value = _yaml_scalar(event.value, name, line) if event.implicit[0] else event.value
                    yield _Event("value", line, value)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        told = problem.problem or problem.context or ""
        reason = f"nested deeper than {DEPTH_MAX} levels" if _TOO_DEEP_FOR_YAML in told else f"it is not YAML: {told}"
        _fail(name, mark.line + 1 if mark else line, reason)
    except yaml.YAMLError as problem:
        _fail(name, line, f"it is not YAML: {str(problem).splitlines()[0]}")
    if documents == 0:
        _fail(name, 1, "the file is empty")


def _yaml_scalar(text: str, name: str, line: int) -> Any:
    """Answers what an unquoted scalar means in the core schema of YAML 1.2."""
    if text in _YAML_WORDS:
        return _YAML_WORDS[text]
    if _YAML_INTEGER.fullmatch(text):
        if len(text) > INTEGER_LENGTH_MAX:
            _fail(name, line, "an integer above 64 bits", "write it as text, in quotes")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _YAML_FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _json_events(text: str, name: str) -> Iterator[_Event]:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as problem:
        _fail(name, problem.lineno, f"it is not JSON: {problem.msg}, at column {problem.colno}")
    except RecursionError:
        _fail(name, 1, f"nested deeper than {DEPTH_MAX} levels")
    except ValueError as problem:
        _fail(name, 1, f"it is not JSON: {problem}")
    # The text is JSON, so reading it a second time for the lines of keys needs no care for anything but strings.
    line = 1
    for token in _JSON_TOKEN.finditer(text):
        written = token[0]
        if token["mark"]:
            yield _Event(_JSON_MARKS[written], line)
        elif token["value"]:
            yield _Event("value", line, json.loads(written))
        else:
            line += written.count("\n")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} has no JSON form")
