"""Stories: an execution told as a table, a line a fact: the fact, the messages that follow, and where the tasks stand.

    started       -> work a.1            | a queued, b waiting
    a ok          -> work b.1            | a completed, b queued

Facts: `started`, `a ok`, `a fails [type]`, `a fatal [type]` (not retryable), `a later 7` (fails, retry_after 7 s),
`a closed <type>` (by a coordinator), `a taken`, `a due 2`, `a released [late]`, `cancel`, `deadline`,
`signal [name [data]]`, `finished [state]`, `pause`, `resume`, `retry`, `compensate`, `slot [n]`, `a gives <json>`,
`a stops` (its agent says so), `a approve|reject [by]`. `a.2 ok` is about attempt 2 (else the current one), `a@thief ok`
comes from another agent than the task's own. Each fact is one second after the one before, or `+60 a ok` sixty. `=x`
in the last column is the execution's state.
"""

import json
import re
from dataclasses import replace
from typing import Any

from infinity_matrix_actors.definition import (
    CHILD_AGENT,
    ChildDefinition,
    LoopDefinition,
    MapDefinition,
    RetryDefinition,
    RunWhen,
    TaskDefinition,
    WorkflowDefinition,
)
from infinity_matrix_actors.effect import (
    Arm,
    AskHeartbeat,
    AskSlot,
    AskTaken,
    CancelChild,
    CloseAttempt,
    Disarm,
    Effect,
    PublishDead,
    PublishDeadline,
    PublishDue,
    PublishFinished,
    PublishStatus,
    PublishWork,
    PurgeWork,
    StartChild,
    TellAgents,
)
from infinity_matrix_actors.fact import (
    APPROVAL_SIGNAL,
    RELEASED_SIGNAL,
    SLOT_SIGNAL,
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
from infinity_matrix_actors.state import TaskState
from infinity_matrix_coordinator.execution import SLOT
from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.snapshot import restore, snapshot

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


def each(id: str, items: str | tuple[str, ...], *depends_on: str, **fields: Any) -> TaskDefinition:
    """A task with an instance for each of `items`; `max_parallel` and what is tolerated are the map's."""
    names = ("max_parallel", "tolerated", "tolerated_percent")
    limits = {name: fields.pop(name) for name in names if name in fields}
    expressions = (items,) if isinstance(items, str) else items
    return task(id, *depends_on, map=MapDefinition(expressions, **limits), **fields)


def loop(id: str, until: str, *depends_on: str, **fields: Any) -> TaskDefinition:
    """A task that runs again until CEL over its last `result` holds."""
    limits = {name: fields.pop(name) for name in ("max_iterations",) if name in fields}
    return task(id, *depends_on, loop=LoopDefinition(until, **limits), **fields)


def child(id: str, *depends_on: str, **fields: Any) -> TaskDefinition:
    """A task that is another workflow; `input` and `close` are the child's."""
    own = {name: fields.pop(name) for name in ("input", "close") if name in fields}
    return replace(task(id, *depends_on, **fields), agent=CHILD_AGENT, child=ChildDefinition("other", **own))


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
            case StartChild(name, attempt):
                words.append(f"child {name}.{attempt}")
            case CancelChild(name, attempt):
                words.append(f"end {name}.{attempt}")
            case AskSlot(key, limit, number):
                words.append(f"slot {key or '-'} {limit} {number}")
            case AskHeartbeat(name, attempt):
                words.append(f"pulse {name}.{attempt}")
            case PublishDeadline(is_again=is_again):
                words.append("again" if is_again else "deadline")
            case PublishDead(name, attempt) if all:
                words.append(f"dead {name}.{attempt}")
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
        self._open: set[str] = set()

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
        if was_decided and not (isinstance(fact, Command) and fact.kind in (CommandKind.RETRY, CommandKind.COMPENSATE)):
            unended = {"finished": None, "finishes": 0, "signals": {}}
            if isinstance(fact, Signal) and fact.name == RELEASED_SIGNAL:
                # Only that it was done all the same is seen then.
                unended["tasks"] = {}
            assert effects == []
            assert {**self.actor.record(), **unended} == {**before, **unended}
        self._check_outstanding(fact, effects)
        self._check_snapshot()
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

    def _check_snapshot(self) -> None:
        """A state that went through a checkpoint is the same state."""
        record = json.loads(json.dumps(snapshot(self.actor)))
        restored = restore(record, self.actor.plan, self.actor.sequence)
        assert restored.record() == self.actor.record()
        assert restored.outstanding() == self.actor.outstanding()

    def _check_outstanding(self, fact: Fact, effects: list[Effect]) -> None:
        """What was asked for and is in no fact: no more, and no less (rule 4)."""
        tasks = self.actor.tasks
        if isinstance(fact, Outcome) and f"{fact.task}.{fact.attempt}@{fact.agent}" in self._open:
            self._open.discard(f"{fact.task}.{fact.attempt}@{fact.agent}")
            self._asked.pop(f"work {fact.task}.{fact.attempt}", None)
            self._asked.pop(f"child {fact.task}.{fact.attempt}", None)
        for effect in effects:
            if isinstance(effect, PurgeWork):
                self._asked[f"purge {effect.task}"] = effect
            elif isinstance(effect, PublishWork | StartChild | PublishDead | PublishFinished | AskSlot):
                self._asked[render([effect], all=True)[0]] = effect
            if isinstance(effect, PublishWork | StartChild):
                agent = tasks[effect.task].node.definition.agent
                self._open.add(f"{effect.task}.{effect.attempt}@{agent}")
        if isinstance(fact, Finished):
            self._asked.clear()
        elif isinstance(fact, Command) and effects and not self.actor.is_decided:
            # It was taken up again perhaps, and what was closed before is purged once more.
            closed = ((name, actor.closed) for name, actor in tasks.items() if actor.closed)
            self._asked |= {f"purge {name}": PurgeWork(name, attempt) for name, attempt in closed}
        over = [key for key, effect in self._asked.items() if self._is_over(effect)]
        for key in over:
            del self._asked[key]
        others = Arm | TellAgents | CancelChild | CloseAttempt
        outstanding = [one for one in self.actor.outstanding() if not isinstance(one, others)]
        assert sorted(map(repr, outstanding)) == sorted(map(repr, self._asked.values()))

    def _is_over(self, effect: Effect) -> bool:
        """Whether nobody waits for it any more, though no fact answered it."""
        if isinstance(effect, AskSlot):
            return SLOT not in self.actor.holds
        if isinstance(effect, PublishDead):
            return self.actor.tasks[effect.task].state is not TaskState.FAILED
        if not isinstance(effect, PurgeWork):
            return False
        actor = self.actor.tasks.get(effect.task)
        return actor is None or not actor.closed or actor.node.definition.child is not None

    def _fact(self, words: str) -> Fact:
        subject, *rest = words.split()
        now = self.now
        match subject:
            case "started":
                return replace(self.actor.started, at=now)
            case "deadline":
                return Command(EXECUTION, now, CommandKind.DEADLINE, PublishDeadline(self.actor.runs).id)
            case "again":
                again = PublishDeadline(self.actor.runs, is_again=True).id
                return Command(EXECUTION, now, CommandKind.DEADLINE, again)
            case "cancel" | "pause" | "resume" | "retry" | "compensate":
                return Command(EXECUTION, now, CommandKind(subject), rest[0] if rest else str(len(self.facts)))
            case "signal":
                return Signal(EXECUTION, now, rest[0] if rest else "approval", "1", rest[1] if rest[1:] else True)
            case "slot":
                number = int(rest[0]) if rest else self.actor.finishes + 1
                return Signal(EXECUTION, now, SLOT_SIGNAL, f"ticket-{number}", {"n": number})
            case "finished":
                return Finished(EXECUTION, now, self.actor.finishes + 1, rest[0] if rest else str(self.actor.state))
        place, _, agent = subject.partition("@")
        name, _, number = place.partition(".")
        current = self.actor.tasks[name].attempt if name in self.actor.tasks else 1
        own = self.actor.tasks[name].node.definition.agent if name in self.actor.tasks else AGENT
        about = (EXECUTION, now, agent or own, name, int(number or current))
        match rest:
            case ["ok"]:
                return Outcome(*about, result={"from": name})
            case ["ok", value]:
                return Outcome(*about, result={"n": int(value)})
            case ["gives", value]:
                return Outcome(*about, result=json.loads(value))
            case ["stops"]:
                return Outcome(*about, error=TaskError("cancelled", "it was told to", retryable=False))
            case ["approve" | "reject" as decision, *by]:
                data = {"task": name, "decision": decision, "by": by[0] if by else None}
                return Signal(EXECUTION, now, APPROVAL_SIGNAL, f"{name}-{len(self.facts)}", data)
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
