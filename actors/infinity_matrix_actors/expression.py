"""What users write in a condition or a filter, turned into the CEL that the engine takes.

Users name tasks as they named them: `extract.result.rows > 0`, ids with dashes and ids that are CEL words included. CEL
would read `load-a.result` as `load` minus `a.result`, so the source is read token by token, every id that stands where
a value can stand becomes `tasks['id']`, and every other name is checked, so that a slip of the keyboard is found when
the workflow is defined and not when it runs. Strings and what follows a dot are never changed.
"""

import re
from collections.abc import Container, Set
from dataclasses import dataclass

from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.suggestion import did_you_mean

SOURCE_BYTES_MAX = 1024
#: Nested brackets; the engine's own parser is safe to 250 of them, its recursion on a small thread stack is not. What
#: nests without brackets (`!!!`, `a ? b : c ? ..`) is kept harmless by the size of the source alone.
DEPTH_MAX = 32
#: The engine has no limit on cost: 2 nested loops over 1,000 values take a second, 3 take the coordinator.
MACROS_MAX = 1
#: A function the condition's evaluator adds: a CEL map has another order in every process, a loop must not.
IN_ORDER = "im_in_order"
MACROS = frozenset({"all", "exists", "exists_one", "existsOne", "map", "filter"})
_DATE_FUNCTIONS = {"getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek"}
_TIME_FUNCTIONS = {"getHours", "getMinutes", "getSeconds", "getMilliseconds"}
_CONVERSIONS = {"int", "uint", "double", "string", "bytes", "timestamp", "duration", "type", "dyn"}
_TESTS = {"has", "size", "contains", "startsWith", "endsWith", "matches"}
FUNCTIONS = frozenset(_TESTS | _CONVERSIONS | _DATE_FUNCTIONS | _TIME_FUNCTIONS)
#: What a condition sees of a task.
VIEW = ("result", "state", "error")

_LITERALS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_TYPES = frozenset({"int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"})
_OWN_MEANING = _LITERALS.keys() | _TYPES
_OPERATORS = {"in": "in", "and": "&&", "or": "||"}
_CLOSES = {"(": ")", "[": "]", "{": "}"}

_SPACE = re.compile(r"[ \t\r\n\f]+")
_STRING = re.compile(
    r"""[bB]?(?:
        [rR](?: '''(?s:.*?)''' | \"\"\"(?s:.*?)\"\"\" | '[^'\r\n]*' | "[^"\r\n]*" )
      | '''(?s:\\.|[^\\])*?''' | \"\"\"(?s:\\.|[^\\])*?\"\"\" | '(?:\\.|[^'\\\r\n])*' | "(?:\\.|[^"\\\r\n])*"
    )""",
    re.VERBOSE,
)
_QUOTE = re.compile(r"[bB]?[rR]?['\"]")
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]+[uU]?|(?:[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?[uU]?)(?![\w])")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PUNCTUATION = re.compile(r"&&|\|\||==|!=|<=|>=|[-<>+*/%!?:,.()\[\]{}]")
_PLAIN_STRING = re.compile(r"""(['"])([A-Za-z0-9_-]+)\1""")
_MEMBER = re.compile(r"\s*\.\s*([A-Za-z_][A-Za-z0-9_]*)")
_MEMBER_WITH_DASH = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)-\Z")
_EXPLICIT_TASK = re.compile(r"tasks\s*(?:\[\s*([^\]]*?)\s*\]|\.\s*([A-Za-z0-9][A-Za-z0-9_-]*))")
_SELECTED = re.compile(r"\s*(?:\.\s*[A-Za-z_]|\[)")
_CALLED = re.compile(r"\s*\(")
_OPERAND_NEXT = re.compile(r"\s*[\w'\"(!]")
_LOOP_VARIABLE = re.compile(r"\s*\(\s*([A-Za-z_][A-Za-z0-9_]*)\s*,")
_SLIPS = {
    "=": "write '==' to compare",
    "&": "write '&&' or 'and'",
    "|": "write '||' or 'or'",
    "`": "an id needs no quotes here, with dashes neither",
    "'": "the text has no closing quote, or an escape that CEL does not know",
    '"': "the text has no closing quote, or an escape that CEL does not know",
}


@dataclass(frozen=True, slots=True)
class Expression:
    """CEL ready for the engine, and the ids of the tasks it names."""

    cel: str
    references: frozenset[str]
    variables: frozenset[str]


def translate(
    source: str, *, known_ids: Set[str], allowed_ids: Container[str], variables: frozenset[str], where: str
) -> Expression:
    """Answers `source` as CEL over `tasks` and `variables`.

    Every name must be a task of `known_ids` that is also in `allowed_ids`, one of `variables`, a loop's own variable or
    a function of CEL. Raises `InvalidDefinition` for any other, and for what is beyond the limits above.
    """
    if not source.strip():
        raise InvalidDefinition("the expression is empty", where=where, hint="leave it out")
    try:
        size_bytes = len(source.encode())
    except UnicodeEncodeError as problem:
        raise InvalidDefinition(f"the expression is no Unicode text: {problem.reason}", where=where) from problem
    if size_bytes > SOURCE_BYTES_MAX:
        raise InvalidDefinition(
            f"the expression has {size_bytes} bytes, the limit is {SOURCE_BYTES_MAX}",
            where=where,
            hint="compute the answer in a task and ask for its result",
        )
    reader = _Reader(source, known_ids, allowed_ids, variables, where)
    reader.read()
    return Expression("".join(reader.out), frozenset(reader.references), frozenset(reader.variables_used))


@dataclass(slots=True)
class _Bracket:
    opener: str
    loop_variable: str | None = None


class _Reader:
    """One pass over a source. `operand` says whether a value or an operator may come next: only that tells an id `in`
    from the operator, or the id `a-b` from a subtraction.
    """

    def __init__(
        self, source: str, known_ids: Set[str], allowed_ids: Container[str], variables: frozenset[str], where: str
    ) -> None:
        self.source = source
        self.known_ids = known_ids
        self.allowed_ids = allowed_ids
        self.variables = variables
        self.where = where
        self.at = 0
        self.operand = True
        self.out: list[str] = []
        self.references: set[str] = set()
        self.variables_used: set[str] = set()
        self.brackets: list[_Bracket] = []
        self.last = ""  # the last token
        self.macros = 0

    def fail(self, problem: str, hint: str = "") -> InvalidDefinition:
        place = f"at column {self.at + 1} of {self.source!r:.120}"
        return InvalidDefinition(f"{problem}, {place}", where=self.where, hint=hint)

    def take(self, length: int, written: str | None = None) -> None:
        """Copies the next `length` characters to the output, or writes `written` in their place."""
        text = self.source[self.at : self.at + length]
        self.out.append(text if written is None else written)
        self.last = text
        self.at += length

    def read(self) -> None:
        while self.at < len(self.source):
            if space := _SPACE.match(self.source, self.at):
                self.out.append(space[0])
                self.at = space.end()
            elif self.operand:
                self.read_operand()
            else:
                self.read_operator()

    # ---- where a value may stand

    def read_operand(self) -> None:
        if _QUOTE.match(self.source, self.at):
            self.read_string()
        elif self.source[self.at].isascii() and (self.source[self.at].isalnum() or self.source[self.at] == "_"):
            self.read_word()
        elif number := _NUMBER.match(self.source, self.at):
            self.take(len(number[0]))
            self.operand = False
        else:
            self.read_punctuation()

    def read_string(self) -> None:
        text = _STRING.match(self.source, self.at)
        if text is None:
            raise self.fail("a text has no end", _SLIPS["'"])
        self.take(len(text[0]))
        self.operand = False

    def read_word(self) -> None:
        number = _NUMBER.match(self.source, self.at)
        run = _RUN.match(self.source, self.at)
        task = self.task_at(run[0], number is not None) if run else None
        if task is not None:
            self.refuse_as_key(task)
            if task == "tasks" or task in self.variables:
                raise self.fail(f"{task!r} is a task and has another meaning here", self.way_out(task))
            self.take(len(task), self.reference(task))
            self.operand = False
            self.check_view(task)
        elif number:
            self.take(len(number[0]))
            self.operand = False
        elif name := _IDENTIFIER.match(self.source, self.at):
            self.read_name(name[0])
        else:
            raise self.unknown(run[0] if run else self.source[self.at])

    @staticmethod
    def way_out(task: str) -> str:
        return "rename the task" if task == "tasks" else f"rename the task, or write tasks['{task}'] for it"

    def task_at(self, run: str, is_number: bool) -> str | None:
        """Answers the longest known id that the run of id characters begins with, if it means that task here."""
        for end in range(min(len(run), 64), 0, -1):
            id_ = run[:end]
            after = self.at + end
            if id_ not in self.known_ids or (end < len(run) and run[end] != "-"):
                continue
            selected = _SELECTED.match(self.source, after) is not None
            if not selected and (is_number or id_ in _OWN_MEANING or _CALLED.match(self.source, after)):
                continue  # 1, true, int and size(..) keep their meaning unless something is selected from them
            if id_ == "not" and _OPERAND_NEXT.match(self.source, after):
                continue
            return id_
        return None

    def read_name(self, name: str) -> None:
        after = self.at + len(name)
        if name == "not":
            raise self.fail("'not' is not supported", "write '!(..)': 'not a == b' would mean '(!a) == b'")
        if name in _LITERALS:
            self.take(len(name), _LITERALS[name])
        elif _CALLED.match(self.source, after):
            if name not in FUNCTIONS:
                raise self.fail(f"unknown function {name!r}", did_you_mean(name, FUNCTIONS))
            self.take(len(name))
        elif any(name == bracket.loop_variable for bracket in self.brackets):
            self.take(len(name))
        elif name == "tasks" and self.known_ids:
            self.read_explicit_task()
        elif name in self.variables:
            self.refuse_as_key(name)
            self.variables_used.add(name)
            self.take(len(name))
        elif name in _TYPES:
            self.take(len(name))
        else:
            self.refuse_as_key(name)
            run = _RUN.match(self.source, self.at)
            raise self.unknown(run[0] if run else name)
        self.operand = False

    def unknown(self, name: str) -> InvalidDefinition:
        if member := _MEMBER_WITH_DASH.search(self.source, 0, self.at):
            return self.fail(f"unknown name {name!r}", f"a field with a dash is written ['{member[1]}-{name}']")
        known = [*self.known_ids, *self.variables]
        return self.fail(f"unknown name {name!r}", did_you_mean(name, known) or f"known: {self.some(known)}")

    @staticmethod
    def some(names: list[str]) -> str:
        return ", ".join(sorted(names)[:5]) + (", .." if len(names) > 5 else "")

    def refuse_as_key(self, name: str) -> None:
        """In `{rows: 1}` CEL would take the value of `rows` for the key; whoever writes it means the text."""
        follows = self.source[self.at + len(name) :].lstrip()
        if self.brackets and self.brackets[-1].opener == "{" and self.last in ("{", ",") and follows[:1] == ":":
            raise self.fail(f"the map key {name} is a name", f"quote it: {{'{name}': ..}}")

    def reference(self, task: str) -> str:
        if task not in self.allowed_ids:
            raise self.fail(
                f"{task!r} is not upstream of the task", "name it in depends_on, so that it is settled before"
            )
        self.references.add(task)
        return f"tasks['{task}']"

    def check_view(self, task: str) -> None:
        """`extract.rows` is the commonest slip: what a task gave is under `.result`."""
        member = _MEMBER.match(self.source, self.at)
        if member and member[1] not in VIEW:
            raise self.fail(
                f"a task has no {member[1]!r}, only {', '.join(VIEW)}", f"did you mean '{task}.result.{member[1]}'?"
            )

    def read_explicit_task(self) -> None:
        """`tasks.load`, `tasks['load']`: the form that needs no translation, with the same checks."""
        match = _EXPLICIT_TASK.match(self.source, self.at)
        plain = _PLAIN_STRING.fullmatch(match[1]) if match and match[1] is not None else None
        if match and match[2] is not None:
            ends = [end for end in range(len(match[2]), 0, -1) if match[2][end : end + 1] in ("", "-")]
            task = next((match[2][:end] for end in ends if match[2][:end] in self.known_ids), match[2])
            end = match.start(2) + len(task)
        elif match and plain:
            task, end = plain[2], match.end()
        else:
            raise self.fail("'tasks' can only be asked for one id written out", "write tasks['id'], or just the id")
        if task not in self.known_ids:
            raise self.fail(f"unknown task {task!r}", did_you_mean(task, self.known_ids))
        self.take(end - self.at, self.reference(task))
        self.check_view(task)

    # ---- where an operator may stand

    def read_operator(self) -> None:
        name = _IDENTIFIER.match(self.source, self.at)
        if name and name[0] in _OPERATORS:
            written = _OPERATORS[name[0]]
            self.take(len(name[0]), written)
            self.operand = True
        elif name and name[0] == "not":
            raise self.fail("'not' is not supported", "write '!(a in b)' for 'a not in b'")
        elif name or _RUN.match(self.source, self.at) or _QUOTE.match(self.source, self.at):
            word = name[0] if name else self.source[self.at :][:20]
            raise self.fail(f"an operator is missing before {word!r}")
        elif self.source[self.at] == ".":
            self.read_member()
        else:
            self.read_punctuation()

    def read_member(self) -> None:
        dot = _MEMBER.match(self.source, self.at)
        if dot is None:
            raise self.fail("a name must follow the dot", "for a key that is no name write ['key']")
        name = dot[1]
        if name in ("in", "true", "false", "null"):
            raise self.fail(f"{name!r} cannot follow a dot", f"write ['{name}']")
        loop = _LOOP_VARIABLE.match(self.source, dot.end())
        if _CALLED.match(self.source, dot.end()):
            if name in MACROS:
                self.begin_macro(name, loop[1] if loop else None)
                self.out.append(f".{IN_ORDER}()")
                self.take(len(dot[0]))
                self.open_bracket(loop[1] if loop else None)
                return
            if name not in FUNCTIONS:
                raise self.fail(f"unknown function {name!r}", did_you_mean(name, FUNCTIONS | MACROS))
        self.take(len(dot[0]))

    def begin_macro(self, name: str, loop_variable: str | None) -> None:
        self.macros += 1
        if self.macros > MACROS_MAX:
            raise self.fail(f"more than {MACROS_MAX} loop", "compute the answer in a task and ask for its result")
        if loop_variable is None:
            raise self.fail(f"'{name}' needs a name for the element", f"write .{name}(item, item.ok)")
        if loop_variable in self.known_ids | self.variables | _OWN_MEANING | {"tasks", "in", "not", "and", "or"}:
            raise self.fail(f"the loop's {loop_variable!r} has another meaning already", "choose another name")
        if task := next((id_ for id_ in self.known_ids if id_.startswith(f"{loop_variable}-")), None):
            raise self.fail(f"the loop's {loop_variable!r} begins the task id {task!r}", "choose another name")

    def open_bracket(self, loop_variable: str | None = None) -> None:
        """Takes the next bracket, and whatever space is before it."""
        while self.source[self.at] not in _CLOSES:
            self.take(1)
        opener = self.source[self.at]
        self.brackets.append(_Bracket(opener, loop_variable))
        if len(self.brackets) > DEPTH_MAX:
            raise self.fail(f"brackets are nested deeper than {DEPTH_MAX}")
        self.take(1)
        self.operand = True

    def read_punctuation(self) -> None:
        if self.source.startswith("//", self.at):
            raise self.fail("'//' would begin a comment", "write '/' to divide: CEL divides integers to an integer")
        match = _PUNCTUATION.match(self.source, self.at)
        if match is None:
            character = self.source[self.at]
            raise self.fail(f"unexpected {character!r}", _SLIPS.get(character, ""))
        sign = match[0]
        if sign in _CLOSES:
            if sign == "{" and not self.operand:
                raise self.fail("'{' cannot follow a value")
            self.open_bracket()
            return
        if sign in _CLOSES.values():
            if not self.brackets or _CLOSES[self.brackets.pop().opener] != sign:
                raise self.fail(f"{sign!r} closes nothing")
            self.operand = False
        elif sign == ".":
            raise self.fail("a name cannot begin with a dot")
        else:
            self.operand = True
        self.take(len(sign))
