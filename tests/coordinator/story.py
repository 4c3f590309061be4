"""Stories: an execution told as a table, a line a fact: the fact, the messages that follow, and where the tasks stand.

    started       -> work a.1            | a queued, b waiting
    a ok          -> work b.1            | a completed, b queued

Facts: `started`, `a ok`, `a fails [type]`, `a fatal [type]` (not retryable), `a later 7` (fails, retry_after 7 s),
`a closed <type>` (by a coordinator), `a taken`, `a due 2`, `a released [late]`, `cancel`, `deadline`,
`signal [name [data]]`, `finished <state>`. `a.2 ok` is about attempt 2 (else the current one), `a@thief ok` comes from
another agent. Each fact is one second after the one before, or `+60 a ok` sixty. `=x` in the last column is the
execution's state.
"""

import re
from dataclasses import replace
from typing import Any

from infinity_matrix_actors.definition import RetryDefinition, RunWhen, TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.effect import (
    Arm,
    AskTaken,
    CloseAttempt,
    Disarm,
    Effect,
    PublishDeadline,
    PublishDue,
    PublishFinished,
    PublishStatus,
    PublishWork,
    PurgeWork,
    TellAgents,
)
from infinity_matrix_actors.fact import (
    RELEASED_SIGNAL,
    Command,
    CommandKind,
    Due,
    Fact,
    Finished,
    Outcome,
    Signal,
    Started,
    Taken,
    TaskError,
)
from infinity_matrix_actors.plan import Plan
from infinity_matrix_coordinator.execution_actor import ExecutionActor

EXECUTION = "e1"
AGENT = "agent-x"
START = 1000.0
_LINE = re.compile(r"(?:\+(?P<after>[\d.]+) )?(?P<words>.*)")


def task(id: str, *depends_on: str, **fields: Any) -> TaskDefinition:
    """A task of `AGENT`; `retry` may be a dict, `run_when` its name."""
    if isinstance(fields.get("retry"), dict):
        fields["retry"] = RetryDefinition(**fields["retry"])
    if "run_when" in fields:
        fields["run_when"] = RunWhen(fields["run_when"])
    return TaskDefinition(id, AGENT, depends_on, **fields)


def wait(id: str, *depends_on: str, **fields: Any) -> TaskDefinition:
    """A task that waits: with `wait_for`, `sleep` or `until`."""
    return TaskDefinition(id, "", depends_on, **fields)


def undo(forward: str | None, id: str, **fields: Any) -> TaskDefinition:
    """A task of `on_failure`; with `forward` the compensation of that task."""
    return task(id, compensates=forward, **fields)


def workflow(*tasks: TaskDefinition, **fields: Any) -> WorkflowDefinition:
    return WorkflowDefinition("w", tasks, **fields)


def render(effects: list[Effect], *, all: bool = False) -> list[str]:
    """Effects in the words of the tables: messages only, or with `all` timers (in seconds after START) and statuses."""
    words = []
    for effect in effects:
        match effect:
            case PublishWork(name, attempt):
                words.append(f"work {name}.{attempt}")
            case PublishDue(name, attempt):
                words.append(f"due {name}.{attempt}")
            case AskTaken(name, attempt):
                words.append(f"ask {name}.{attempt}")
            case CloseAttempt(name, attempt, error):
                words.append(f"close {name}.{attempt} {error.type}")
            case PurgeWork(name, attempt):
                words.append(f"purge {name}.{attempt}")
            case TellAgents(None):
                words.append("tell all")
            case TellAgents(name):
                words.append(f"tell {name}")
            case PublishDeadline():
                words.append("deadline")
            case PublishFinished(state):
                words.append(f"finished {state}")
            case PublishStatus(name, state, attempt) if all:
                words.append(f"{name or '='} {state}" + (f" {attempt}" if attempt else ""))
            case Arm(name, at) if all:
                words.append(f"arm {name or '='} {round(at - START, 6):g}")
            case Disarm(name) if all:
                words.append(f"disarm {name or '='}")
    return words


class Story:
    """An execution actor, told facts in words. Every fact is checked for what holds of all of them."""

    def __init__(self, definition: WorkflowDefinition, input: Any = None) -> None:
        self.plan = Plan.of(definition)
        self.now = START
        started = Started(EXECUTION, START, definition.name, self.plan.digest, input)
        self.actor = ExecutionActor(started, self.plan, 1)
        self.facts: list[Fact] = []
        self.effects: list[Effect] = []
        #: Messages that no fact has answered yet: what `outstanding` must say after every fact.
        self._asked: dict[str, Effect] = {}

    def tell(self, line: str) -> list[Effect]:
        """Folds the fact that `line` names; answers what follows."""
        match = _LINE.fullmatch(line.strip())
        assert match is not None
        if self.facts:
            self.now += float(match["after"] or 1.0)
        fact = self._fact(match["words"])
        was_decided = self.actor.is_decided
        before = self.actor.record()
        effects = self.actor.receive(fact)
        self.facts.append(fact)
        self.effects += effects
        if was_decided:
            unended = {"finished": None, "finishes": 0}
            assert effects == []
            assert {**self.actor.record(), **unended} == {**before, **unended}
        self._check_outstanding(fact, effects)
        return effects

    def tells(self, *lines: str) -> "Story":
        for line in lines:
            self.tell(line)
        return self

    def check(self, table: str) -> "Story":
        """Tells every line of the table and compares what follows."""
        lines = [line.strip() for line in table.strip().splitlines()]
        assert lines
        for line in lines:
            told, _, rest = line.partition("->")
            messages, _, states = rest.partition("|")
            expected = [one.strip() for one in messages.split(",") if one.strip()]
            assert render(self.tell(told)) == expected, line
            self.check_states(states, line)
        # The same log again: the same state and the same effects (I12).
        again = ExecutionActor(self.actor.started, self.plan, 1)
        assert [effect for fact in self.facts for effect in again.receive(fact)] == self.effects
        assert again.record() == self.actor.record()
        return self

    def check_states(self, states: str, why: str = "") -> None:
        for one in filter(None, (one.strip() for one in states.split(","))):
            name, _, state = one.partition(" ") if not one.startswith("=") else ("=", "", one[1:])
            if name == "=":
                assert self.actor.state == state, why
            else:
                assert self.state_of(name) == state, (name, why)

    def state_of(self, name: str) -> str:
        actor = self.actor.tasks.get(name)
        return str(actor.state) if actor is not None else "waiting"

    def timer(self, name: str | None, at: float) -> list[str]:
        """What the timer of a task (None: the execution's) asks for when it fires `at` seconds after START."""
        return render(self.actor.expire(name, START + at), all=True)

    def quiet(self, name: str, at: float, *, is_queued: bool, seen_at: float | None = None) -> list[str]:
        """What the answer about a quiet attempt asks for."""
        attempt = self.actor.tasks[name].attempt
        seen = START + seen_at if seen_at is not None else None
        return render(self.actor.expire_quiet(name, attempt, START + at, is_queued, seen), all=True)

    def armed(self) -> dict[str | None, float]:
        """The timers that are armed now, in seconds after START."""
        timers: dict[str | None, float] = {}
        for effect in self.effects:
            if isinstance(effect, Arm):
                timers[effect.task] = round(effect.at - START, 6)
            elif isinstance(effect, Disarm):
                timers.pop(effect.task, None)
        return timers

    def _check_outstanding(self, fact: Fact, effects: list[Effect]) -> None:
        """What was asked for and is in no fact: no more, and no less (rule 4)."""
        if isinstance(fact, Outcome) and fact.agent == AGENT:
            self._asked.pop(f"work {fact.task}.{fact.attempt}", None)
        for effect in effects:
            if isinstance(effect, PurgeWork):
                self._asked[f"purge {effect.task}"] = effect
            elif isinstance(effect, PublishWork | PublishFinished):
                self._asked[render([effect])[0]] = effect
        if isinstance(fact, Finished):
            self._asked.clear()
        outstanding = [one for one in self.actor.outstanding() if not isinstance(one, Arm | TellAgents)]
        assert sorted(map(repr, outstanding)) == sorted(map(repr, self._asked.values()))

    def _fact(self, words: str) -> Fact:
        subject, *rest = words.split()
        now = self.now
        match subject:
            case "started":
                return replace(self.actor.started, at=now)
            case "cancel" | "deadline":
                return Command(EXECUTION, now, CommandKind(subject), rest[0] if rest else "1")
            case "signal":
                return Signal(EXECUTION, now, rest[0] if rest else "approval", "1", rest[1] if rest[1:] else True)
            case "finished":
                return Finished(EXECUTION, now, 1, rest[0])
        place, _, agent = subject.partition("@")
        name, _, number = place.partition(".")
        current = self.actor.tasks[name].attempt if name in self.actor.tasks else 1
        about = (EXECUTION, now, agent or AGENT, name, int(number or current))
        match rest:
            case ["ok"]:
                return Outcome(*about, result={"from": name})
            case ["ok", value]:
                return Outcome(*about, result={"n": int(value)})
            case ["fails", *kind]:
                return Outcome(*about, error=TaskError((kind or ["boom"])[0], "it broke"))
            case ["fatal", *kind]:
                return Outcome(*about, error=TaskError((kind or ["boom"])[0], "it broke", retryable=False))
            case ["later", seconds]:
                return Outcome(*about, error=TaskError("busy", "come back", retry_after=float(seconds)))
            case ["closed", kind]:
                return Outcome(*about, error=TaskError(kind, "closed", retryable=kind == "timed_out"), closed=True)
            case ["taken"]:
                return Taken(*about)
            case ["released", *late]:
                data = {"task": name, "attempt": about[4], "late": bool(late)}
                return Signal(EXECUTION, now, RELEASED_SIGNAL, f"{name}-{about[4]}", data)
            case ["due", attempt]:
                return Due(EXECUTION, now, name, int(attempt))
        raise AssertionError(f"no such fact: {words}")
