"""`python -m tests.golden.record`: writes new golden histories from the examples, the simulation and the failpoints.

`python -m tests.chaos --golden N` adds some of its run.

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
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.fact import DECIDE_VERSION
from infinity_matrix_bus.artifacts import MARK
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.installation import read_installation
from infinity_matrix_bus.session import Endpoint

from .folding import FOLDER, SUBJECTS, Message, differences, fold, fold_from

EXAMPLES = FOLDER.parents[1] / "examples"
#: Longer histories, and larger ones, show little that a shorter one does not.
MESSAGES_MAX = 60
BYTES_MAX = 24_000
#: Of each example, and of each seed, so that there are many kinds and not many of one.
FROM_ONE_MAX = 2
FROM_SEED_MAX = 1
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


def from_examples() -> Iterator[tuple[str, Stored]]:
    """Runs every example in a process of its own, which writes its logs down before its server ends."""
    for path in sorted(EXAMPLES.glob("*.py")):
        if path.name == "run_all.py":
            continue
        with tempfile.TemporaryDirectory(prefix="golden-") as folder:
            output = Path(folder) / "stored"
            environment = {name: value for name, value in os.environ.items() if name not in ("IM_URL", "IM_PREFIX")}
            environment["IM_HOME"] = folder
            command = [sys.executable, "-m", "tests.golden.record", "--example", str(path), "--output", str(output)]
            done = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True, text=True)
            say(f"{path.name}: {'read' if output.exists() else done.stderr[-300:]}")
            for line in output.read_text().splitlines() if output.exists() else ():
                yield f"example-{path.stem.replace('_', '-')}", json.loads(line)


def run_example(path: Path, output: Path) -> None:
    """Runs one example here; each embedded server's logs are read before it stops."""
    from infinity_matrix_bus import server

    stop = server.EmbeddedServer.stop

    async def stop_and_tell(self: Any) -> None:
        if self.running:
            stored = await dump(self.connect_url, "im")
            with output.open("a") as file:
                file.write(json.dumps(stored) + "\n")
        await stop(self)

    sys.argv = [str(path)]
    server.EmbeddedServer.stop = stop_and_tell  # type: ignore[method-assign]
    runpy.run_path(str(path), run_name="__main__")


def from_simulation(seeds: int) -> Iterator[tuple[str, Stored]]:
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
    for seed in range(seeds):
        simulation.run_seed(seed)
        while found:
            yield f"simulation-{seed}", found.pop()


async def from_failpoints() -> list[tuple[str, Stored]]:
    """Worlds of real processes, of which one is killed."""
    from infinity_matrix_bus.server import EmbeddedServer

    from tests.failpoints.worlds import World, Zygote, run

    points = [("coordinator", "send.tombstone.after:1:kill"), ("agent", "send.fact.outcome.after:3:kill")]
    found = []
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        async with EmbeddedServer(Path(folder) / "store", sync="lazy") as server:
            zygote = Zygote()
            for number, (role, point) in enumerate(points):
                own = Path(folder) / str(number)
                own.mkdir()
                world = World(server.connect_url, own, zygote, f"w{number}")
                await run(world, role, point)
                world.close()
                found.append((f"killed-{role}", await dump(server.connect_url, world.prefix)))
            zygote.close()
    return found


def write(source: str, stored: Stored, count_max: int) -> Iterator[str]:
    """Writes the executions of a source whose shapes are new; answers the names of their files."""
    by_execution: dict[str, list[Message]] = defaultdict(list)
    for message in stored["messages"]:
        found = Message(*message)
        subject = SUBJECTS.parse_fact(found.subject)
        if subject is not None:
            by_execution[subject.execution].append(found)
    written = 0
    for execution, messages in by_execution.items():
        if written == count_max:
            return
        started = next((one for one in messages if one.subject.endswith(".started")), None)
        if started is None or len(messages) > MESSAGES_MAX:
            continue
        digest = str(json.loads(started.data)["definition"])
        if digest not in stored["definitions"]:
            continue
        record = record_of(f"{source}, execution {execution}", stored["definitions"][digest], digest, messages)
        if record is None:
            continue
        path = FOLDER / f"{source}-{shape_of(record)}.json"
        known = {one.stem.rpartition("-")[2] for one in FOLDER.glob("*.json")}
        if shape_of(record) not in known:
            path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            written += 1
            yield path.name


def record_of(about: str, document: Any, digest: str, messages: list[Message]) -> dict[str, Any] | None:
    """A history with what is decided on it today; None for one that is too large, or whose values are elsewhere."""
    definition = WorkflowDefinition.from_canonical(json.dumps(document).encode())
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
    text = json.dumps(record)
    if len(text) > BYTES_MAX or MARK.decode().strip('"') in text or decided.state is None:
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


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.record", description=__doc__)
    parser.add_argument("--example", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=20, help="seeds of the simulation to look through")
    options = parser.parse_args()
    if options.example is not None:
        run_example(options.example, options.output)
        return
    for name, stored in from_examples():
        say_all(write(name, stored, FROM_ONE_MAX))
    for name, stored in asyncio.run(from_failpoints()):
        say_all(write(name, stored, MESSAGES_MAX))
    for name, stored in from_simulation(options.seeds):
        say_all(write(name, stored, FROM_SEED_MAX))


def say_all(paths: Iterable[str]) -> None:
    for path in paths:
        say(f"  {path}")


if __name__ == "__main__":
    main()
