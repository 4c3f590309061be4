"""Whether what happened in a run was allowed: the history checker, fed with what only a simulation knows."""

from collections import Counter, defaultdict

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.fact import Outcome
from infinity_matrix_bus.facts import decode_fact
from infinity_matrix_bus.subjects import Subjects
from infinity_matrix_coordinator.verification import AgentLine, ClientLine, Entry, History, QueuedWork, verify

from .jetstream import EPOCH_S
from .workload import PLAIN
from .world import Line, World

#: How old an agent's knowledge may be when it begins, at most, by the agent's own rules.
KNOWLEDGE_MAX_S = 6.0
#: Stops of a process this long ago matter no more.
STOPS_S = 100.0


class Knowledge:
    """When the server told whom that an attempt was still to be done; a watcher of the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.told: dict[str, list[float]] = defaultdict(list)
        #: Whether all agents keep a journal.
        self.is_kept = True
        world.watchers.append(self._see)

    def _see(self, operation: str, subject: str, result: object) -> None:
        if operation == "get" and result is None and ".outcome." in subject:
            _, _, _, execution, _, _, task, attempt, _ = subject.split(".")
            self.told[f"{execution}/{task}/{attempt}"].append(self._world.loop.now)
        elif operation == "deliver":
            _, _, _, execution, task, attempt = subject.split(".")
            self.told[f"{execution}/{task}/{attempt}"].append(self._world.loop.now)


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
        _agent_line(line, knowledge, outcomes.get((line.execution, line.task, line.attempt))) for line in world.journal
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
    history.queue_read_at = EPOCH_S + world.loop.now
    return history


def _agent_line(line: Line, knowledge: Knowledge, outcome: Outcome | None) -> AgentLine:
    """A line of the journal, with the time of what the agent knew when it began.

    An agent that was told that an attempt is still to be done, and was slow or stopped after that, begins late and is
    right; one that was told so too long ago, or never, is not. Who never asks may begin at any time.
    """
    at_s = line.at
    if outcome is not None and line.event == "began" and line.at > (outcome_s := outcome.at - EPOCH_S):
        if not line.asks:
            at_s = outcome_s
        stopped_s = sum(for_s for stop_s, for_s in line.process.stops if stop_s > line.at - STOPS_S)
        since_s = line.at - KNOWLEDGE_MAX_S - stopped_s
        told = knowledge.told.get(f"{line.execution}/{line.task}/{line.attempt}", ())
        known = [told_s for told_s in told if since_s <= told_s <= outcome_s]
        at_s = max([*known, min(at_s, outcome_s)]) if known else at_s
    return AgentLine(line.event, line.execution, line.task, line.attempt, EPOCH_S + at_s, line.process.number)


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
