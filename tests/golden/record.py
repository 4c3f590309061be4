"""`python -m tests.golden.record [SOURCE ...]`: writes new golden histories from these sources, or from all.

A source is an example's name, `failpoints` or `simulation`; `python -m tests.chaos --golden N` adds some of its run.

It never overwrites one: what was decided once is not to be decided otherwise. A history is known by its shape, the
definition's tasks and the kinds of its facts, so that running this again adds only what is new.
"""

import argparse
import asyncio
import hashlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.fact import (
    DECIDE_VERSION,
    Command,
    ErrorType,
    Finished,
    Outcome,
    Signal,
    Started,
    TaskError,
)
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.installation import read_installation
from infinity_matrix_bus.session import Endpoint
from infinity_matrix_coordinator.contents import unread_in

from .folding import FOLDER, SUBJECTS, Message, differences, fold, fold_from

EXAMPLES = FOLDER.parents[1] / "examples"
#: Longer histories, and larger ones, show little that a shorter one does not.
MESSAGES_MAX = 60
BYTES_MAX = 24_000
#: Of each example, and of each seed, so that there are many kinds and not many of one.
FROM_ONE_MAX = 2
FROM_SEED_MAX = 1
#: Of an example there is to be one, however large, and no second that is.
EXAMPLE_MESSAGES_MAX = 100
EXAMPLE_BYTES_MAX = 130_000
#: A simulated history is kept for what no more than so many have: there is no end of seeds.
RARE_MAX = 1
#: Where the processes of a world die.
KILLED = (("coordinator", "send.tombstone.after:1:kill"), ("agent", "send.fact.outcome.after:3:kill"))
FAILPOINTS, SIMULATION = "failpoints", "simulation"
Stored = dict[str, Any]
"""`definitions` by hash, and `messages` as [sequence, at, subject, data]."""


async def dump(url: str, prefix: str) -> Stored:
    """All that is in the logs of a live installation."""
    connection = await Connection(Endpoint(url)).open()
    try:
        session = connection.session
        installation = await read_installation(session, prefix)
        subjects = installation.subjects()
        messages: list[list[Any]] = []
        for shard in range(installation.shards):
            entries = await read_all(session, subjects.facts_stream(shard), ())
            messages += [
                [e.sequence, e.at, e.subject.replace(f"{prefix}.", "im.", 1), text_of(e.data)] for e in entries
            ]
        digests = {str(json.loads(m[3])["definition"]) for m in messages if m[2].endswith(".started") and "{" in m[3]}
        definitions = {}
        for digest in digests:
            definition = await DefinitionStore(session, subjects).load(digest)
            if definition is not None:
                definitions[digest] = json.loads(definition.canonical())
        return {"definitions": definitions, "messages": messages}
    finally:
        await connection.close()


def text_of(data: bytes) -> str:
    """A payload as text; what is none is of no use here, and no fact then."""
    return data.decode(errors="replace")


def examples() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.py") if path.name != "run_all.py")


def source_of(example: str) -> str:
    return f"example-{example.replace('_', '-')}"


def from_examples(names: Iterable[str]) -> Iterator[tuple[str, Stored]]:
    """Runs examples, each in a process of its own, which writes its logs down before its server ends."""
    for name in names:
        path = EXAMPLES / f"{name}.py"
        with tempfile.TemporaryDirectory(prefix="golden-") as folder:
            output = Path(folder) / "stored"
            environment = {name: value for name, value in os.environ.items() if name not in ("IM_URL", "IM_PREFIX")}
            environment["IM_HOME"] = folder
            command = [sys.executable, "-m", "tests.golden.record", "--example", str(path), "--output", str(output)]
            done = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True, text=True)
            say(f"{path.name}: {'read' if output.exists() else done.stderr[-300:]}")
            for line in output.read_text().splitlines() if output.exists() else ():
                yield source_of(name), json.loads(line)


def run_example(path: Path, output: Path) -> None:
    """Runs one example here; each embedded server's logs are read before it stops, and then the local runtime's."""
    from infinity_matrix.runtime import RuntimeFolder, stop_runtime
    from infinity_matrix_bus import server

    stop = server.EmbeddedServer.stop

    async def tell(url: str) -> None:
        stored = await dump(url, "im")
        with output.open("a") as file:
            file.write(json.dumps(stored) + "\n")

    async def stop_and_tell(self: Any) -> None:
        if self.running:
            await tell(self.connect_url)
        await stop(self)

    sys.argv = [str(path)]
    server.EmbeddedServer.stop = stop_and_tell  # type: ignore[method-assign]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        runtime = RuntimeFolder.of_user().read()
        if runtime is not None:
            # Its folder is gone in a moment.
            asyncio.run(tell(runtime.connect_url))
            asyncio.run(stop_runtime())


def from_simulation(seeds: Iterable[int]) -> Iterator[tuple[str, Stored]]:
    """Runs seeds, and takes the logs of each world when it is over."""
    simulation: Any = importlib.import_module("tests.simulation.run")
    found: list[Stored] = []
    real = simulation.history_of

    def history_of(world: Any, *more: Any) -> Any:
        history = real(world, *more)
        streams = [stream for name, stream in world.streams.streams.items() if name.startswith("IM_FACTS_")]
        kept = [stream.messages[sequence] for stream in streams for sequence in stream.sequences]
        messages = [[one.sequence, one.at_ns / 1e9, one.subject, text_of(one.data)] for one in kept]
        definitions = {digest: json.loads(one.canonical()) for digest, one in history.definitions.items()}
        found.append({"definitions": definitions, "messages": messages})
        return history

    simulation.history_of = history_of
    try:
        for seed in seeds:
            simulation.run_seed(seed)
            while found:
                yield f"simulation-{seed}", found.pop()
    finally:
        simulation.history_of = real


async def from_failpoints(points: Sequence[tuple[str, str]] = KILLED) -> list[tuple[str, Stored]]:
    """Worlds of real processes, in each of which one is killed; `points` has its role, and where that is."""
    from infinity_matrix_bus.server import EmbeddedServer

    from tests.failpoints.worlds import World, Zygote, run

    found = []
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        async with EmbeddedServer(Path(folder) / "store", sync="lazy") as server:
            zygote = Zygote()
            for number, (role, point) in enumerate(points):
                own = Path(folder) / str(number)
                own.mkdir()
                world = World(server.connect_url, own, zygote, f"w{number}")
                fate = await run(world, {role: [point]})
                world.close()
                if fate.problems or not all(strike.is_struck for strike in fate.strikes):
                    # What went wrong is not to be decided so for ever.
                    raise RuntimeError(f"{fate.strikes}: {fate.problems}")
                found.append((f"killed-{role}", await dump(server.connect_url, world.prefix)))
            zygote.close()
    return found


def write(
    source: str, stored: Stored, count_max: int, folder: Path = FOLDER, *, only_rare: bool = False
) -> Iterator[str]:
    """Writes the executions of a source whose shapes are new; answers the names of their files.

    With `only_rare` none but those with something in them that few histories of the folder have, the rarest first.
    """
    is_example = source.startswith("example-")
    records = []
    for execution, messages in _by_execution(stored).items():
        started = next((one for one in messages if one.subject.endswith(".started")), None)
        if started is None or len(messages) > (EXAMPLE_MESSAGES_MAX if is_example else MESSAGES_MAX):
            continue
        digest = str(json.loads(started.data)["definition"])
        if digest not in stored["definitions"]:
            continue
        record = record_of(f"{source}, execution {execution}", stored["definitions"][digest], digest, messages)
        if record is not None:
            records.append(record)
    known = {one.stem.rpartition("-")[2]: json.loads(one.read_text()) for one in folder.glob("*.json")}
    if only_rare:
        counts = Counter(word for one in known.values() for word in words_of(one))
        rarity = {id(one): min(counts[word] for word in words_of(one)) for one in records}
        records = sorted((one for one in records if rarity[id(one)] <= RARE_MAX), key=lambda one: rarity[id(one)])
    written = 0
    for record in records:
        shape, text = shape_of(record), json.dumps(record, indent=1, sort_keys=True)
        is_large = len(json.dumps(record)) > BYTES_MAX
        if written == count_max or shape in known or (is_large and (written or not is_example)):
            continue
        path = folder / f"{source}-{shape}.json"
        path.write_text((json.dumps(record, sort_keys=True) if is_large else text) + "\n")
        known[shape] = record
        written += 1
        yield path.name


def _by_execution(stored: Stored) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = defaultdict(list)
    for message in stored["messages"]:
        one = Message(*message)
        subject = SUBJECTS.parse_fact(one.subject)
        if subject is not None:
            found[subject.execution].append(one)
    return found


def record_of(about: str, document: Any, digest: str, messages: list[Message]) -> dict[str, Any] | None:
    """A history with what is decided on it today; None for one that is too large, or that what is elsewhere decides."""
    definition = WorkflowDefinition.from_canonical(json.dumps(document).encode())
    plan = Plan.of(definition, digest)
    facts = [fact for fact in (message.fact() for message in messages) if fact is not None]
    if any(unread_in(fact, plan) is not None for fact in facts):
        return None
    decided = fold(definition, digest, messages)
    record = {
        "about": about,
        "decide": DECIDE_VERSION,
        "definition": document,
        "digest": digest,
        "messages": [{"sequence": m.sequence, "at": m.at, "subject": m.subject, "data": m.data} for m in messages],
        "effects": decided.effects,
        "state": decided.state,
        "half": decided.half,
        "snapshot": decided.snapshot,
    }
    is_skipped = any(isinstance(fact, Started) and fact.skipped for fact in facts)
    if len(json.dumps(record)) > EXAMPLE_BYTES_MAX or (decided.state is None and not is_skipped):
        return None
    if decided.snapshot is not None:
        # Of one that is taken up again its snapshot is not all: it is read from its log.
        rest = fold_from(decided.snapshot, definition, digest, messages[decided.half :])
        if differences(decided.effects[decided.half :], rest.effects) or differences(decided.state, rest.state):
            record["snapshot"] = None
    return record


def shape_of(record: dict[str, Any]) -> str:
    """What makes a history worth keeping: its tasks, the order of its facts, and what each outcome was."""
    tasks = [{**one, "config": None} for one in record["definition"]["tasks"]]
    words = []
    for message in record["messages"]:
        _, _, _, _, kind, *rest = message["subject"].split(".")
        closed = "closed" if '"closed":true' in message["data"] else ""
        words.append((kind, rest[1:3] if kind in ("outcome", "due") else "", closed, '"error":{' in message["data"]))
    return hashlib.sha256(json.dumps([tasks, words], sort_keys=True).encode()).hexdigest()[:10]


def words_of(record: dict[str, Any]) -> set[str]:
    """What a history has in it: what its definition says, kinds of facts, of effects, and how it ended."""
    definition = record["definition"]
    words = {f"definition {key}" for key, value in definition.items() if value}
    for task in (*definition["tasks"], *definition["on_failure"]):
        words.update(f"task {key}" for key, value in task.items() if value)
        words.update(f"{key} {task[key]}" for key in ("run_when", "compensate_when", "on_timeout") if task.get(key))
    for message in record["messages"]:
        match Message(**message).fact():
            case Command() as fact:
                words.add(f"command {fact.kind}")
            case Signal() as fact:
                words.add(f"signal {fact.name if fact.name.startswith('im-') else 'of a user'}")
            case Started() as fact:
                is_forked, is_skipped = bool(fact.seed), fact.skipped
                words.add(f"started {fact.priority}{' forked' * is_forked}{' skipped' * is_skipped}")
                words.update(f"cause {key}" for key in fact.cause)
            case Finished() as fact:
                words.add(f"finished {fact.state} {fact.compensation}")
            case Outcome(error=TaskError() as error) if error.type in set(ErrorType):
                words.add(f"error {error.type}")
    words.update(f"effect {effect[0]}" for asked in record["effects"] for effect in asked)
    return words


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.record", description=__doc__)
    parser.add_argument("sources", nargs="*", choices=[[], *examples(), FAILPOINTS, SIMULATION], metavar="SOURCE")
    parser.add_argument("--example", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=160, help="seeds of the simulation to look through")
    options = parser.parse_args()
    if options.example is not None:
        run_example(options.example, options.output)
        return
    sources = options.sources or [*examples(), FAILPOINTS, SIMULATION]
    for name, stored in from_examples(name for name in examples() if name in sources):
        say_all(write(name, stored, FROM_ONE_MAX))
    if FAILPOINTS in sources:
        for name, stored in asyncio.run(from_failpoints()):
            say_all(write(name, stored, MESSAGES_MAX))
    if SIMULATION in sources:
        for name, stored in from_simulation(range(options.seeds)):
            say_all(write(name, stored, FROM_SEED_MAX, only_rare=True))


def say_all(paths: Iterable[str]) -> None:
    for path in paths:
        say(f"  {path}")


if __name__ == "__main__":
    main()
