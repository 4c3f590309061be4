"""Whether what happened in a run was allowed: the history checker, fed with what only a simulation knows."""

import json
import math
from collections import Counter, defaultdict
from typing import NamedTuple

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.fact import Outcome
from infinity_matrix_agents.begins import MARK_TIMEOUT_S
from infinity_matrix_agents.doubt import ANSWER_AGE_MAX_S, ASK_TIMEOUT_S, AWAY_S
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.verification import AgentLine, ClientLine, Entry, History, QueuedWork, verify

from .jetstream import EPOCH_S
from .server import ServerConnection
from .workload import PLAIN
from .world import Line, World

#: What an agent does between its answer and its beginning: it marks it, and waits for the confirmation.
MARK_S = MARK_TIMEOUT_S + 0.05


class Told(NamedTuple):
    """That an attempt was still to be done, as the server said to one process."""

    at: float
    #: Who began after this has not begun on the strength of it, unless it was stopped after `since`.
    until: float
    since: float = math.inf


class Knowledge:
    """When the server told whom that an attempt was still to be done; a watcher of the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: By process and attempt.
        self.told: dict[tuple[int, str], list[Told]] = defaultdict(list)
        #: When each process asked about an attempt last, and how often it was answered; by attempt.
        self._asked: dict[str, dict[int, tuple[float, int]]] = defaultdict(dict)
        #: Whether all agents keep a journal.
        self.is_kept = True
        world.watchers.append(self._see)
        world.server.on_request = self._see_question

    def _see_question(self, subject: str, data: bytes, by: ServerConnection) -> None:
        if subject.endswith(".api.attempt"):
            question = json.loads(data)
            asked = self._asked[f"{question['execution']}/{question['task']}/{question['attempt']}"]
            number = by.link.process.number
            asked[number] = (self._world.loop.now, asked.get(number, (0.0, 0))[1])

    def _see(self, operation: str, subject: str, result: object) -> None:
        if operation == "get" and result is None and ".outcome." in subject:
            _, _, _, execution, _, _, task, attempt, _ = subject.split(".")
            self._answer(f"{execution}/{task}/{attempt}")
        elif operation == "deliver":
            _, _, _, execution, task, attempt = subject.split(".")
            for link in self._world.server.links_to(self._world.streams.work_inbox):
                # Who finds it in its socket later has noticed that it slept, and asks.
                told = Told(self._world.loop.now, link.arrives_by() + AWAY_S)
                self.told[link.process.number, f"{execution}/{task}/{attempt}"].append(told)

    def _answer(self, attempt: str) -> None:
        """A coordinator looked: all who asked about this attempt, and still wait, may have their answer from that."""
        now = self._world.loop.now
        for number, (asked_at, answers) in self._asked[attempt].items():
            if now - asked_at <= ASK_TIMEOUT_S:
                # Each answer that came too late makes it content with one that takes twice as long.
                age_s = min(ASK_TIMEOUT_S, ANSWER_AGE_MAX_S * 2.0**answers)
                self.told[number, attempt].append(Told(now, asked_at + age_s + MARK_S, asked_at))
                self._asked[attempt][number] = (asked_at, answers + 1)

    def known_at(self, line: Line, outcome_s: float) -> float | None:
        """When the process that began was told last that it is to be done, if it may have begun because of that."""
        told = self.told.get((line.process.number, f"{line.execution}/{line.task}/{line.attempt}"), ())
        known = (one.at for one in told if one.at <= outcome_s and line.at <= one.until + _stopped_s(line, one.since))
        return max(known, default=None)


def _stopped_s(line: Line, since_s: float) -> float:
    """How long the process of a line was stopped between then and the line."""
    return sum(max(0.0, min(line.at, at + for_s) - max(since_s, at)) for at, for_s in line.process.stops)


def facts_of(world: World, shards: int, secret: bytes) -> tuple[dict[str, list[Entry]], int]:
    """The facts of all executions, in the log's order, and how many messages of the log are none."""
    subjects = Subjects("im", secret)
    found: dict[str, list[Entry]] = defaultdict(list)
    garbage = 0
    for shard in range(shards):
        stream = world.streams.streams.get(subjects.facts_stream(shard))
        if stream is None:
            continue
        for message in (*(stream.aged or ()), *(stream.messages[sequence] for sequence in stream.sequences)):
            parsed = subjects.parse_fact(message.subject)
            fact = decode_fact(parsed, message.data, message.at_ns / 1e9) if parsed is not None else None
            if fact is None:
                garbage += 1
            else:
                found[fact.execution].append((message.sequence, fact))
    return found, garbage


def history_of(
    world: World,
    knowledge: Knowledge,
    shards: int,
    secret: bytes,
    started: set[str],
    definitions: dict[str, WorkflowDefinition],
) -> History:
    """What happened in a world that is over."""
    facts, garbage = facts_of(world, shards, secret)
    history = History(facts, definitions, is_over=True, garbage=garbage)
    outcomes = history.outcomes()
    history.journal = [
        agent_line(line, knowledge, outcomes.get((line.execution, line.task, line.attempt))) for line in world.journal
    ]
    if not knowledge.is_kept:
        history.journal = None
    history.clients = [ClientLine("start", execution) for execution in sorted(started)]
    subjects = Subjects("im", secret)
    work = world.streams.streams.get(subjects.work_stream)
    for subject in work.by_subject if work is not None else ():
        parsed = subjects.parse_work(subject)
        # Work in the hands of an agent that never asks may come to it again and again.
        if parsed is not None and parsed[0] not in ("im-closed", PLAIN):
            history.queued = [*history.queued, QueuedWork(*parsed)]
    records = world.streams.streams.get("KV_IM_CHECKPOINTS")
    subjects_of_records = records.by_subject if records is not None else ()
    if not world.faults.counts.get("mark refused"):
        # Else a lagging owner may have stored one as it lost the shard: who takes that over next takes it out.
        history.checkpoints = [subject.split(".")[-1] for subject in subjects_of_records if ".state." in subject]
    history.queue_read_at = EPOCH_S + world.loop.now
    return history


def agent_line(line: Line, knowledge: Knowledge, outcome: Outcome | None) -> AgentLine:
    """A line of the journal, with the time of what the agent knew when it began.

    An agent that was told that an attempt is still to be done, and was slow or stopped after that, begins late and is
    right; one that was told so too long ago, or never, is not. Who never asks may begin at any time.
    """
    at_s = line.at
    if outcome is not None and line.event == "began" and line.at > (outcome_s := outcome.at - EPOCH_S):
        known_at = knowledge.known_at(line, outcome_s)
        if not line.asks:
            at_s = outcome_s
        elif known_at is not None:
            at_s = known_at
    at = EPOCH_S + at_s
    number = line.process.number
    return AgentLine(line.event, line.execution, line.task, line.attempt, at, number, line.sequence, line.state)


def missing_ticks(history: History, wanted: dict[str, int]) -> list[str]:
    """Schedules of which not every tick has its place in the log, as started or as skipped."""
    starts = [history.started(execution) for execution in history.facts]
    there = Counter(str(started.cause.get("schedule")) for started in starts if started is not None)
    return [
        f"schedule {name}: {there[name]} of {count} ticks are in the log"
        for name, count in wanted.items()
        if there[name] != count
    ]


def violations(world: World, history: History) -> list[str]:
    """Everything that was not allowed, in words."""
    found = [str(violation) for violation in verify(history)]
    found += [f"alarm: {alarm}" for alarm in world.alarms]
    found += [f"raised: {error}" for error in world.loop.errors]
    return found
