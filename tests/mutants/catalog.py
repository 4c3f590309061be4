"""The mutants: a rule, the source that keeps it, the same without it, and the tests that must find that."""

from dataclasses import dataclass

COORDINATOR = "coordinator/infinity_matrix_coordinator"
AGENTS = "agents/infinity_matrix_agents"
BUS = "bus/infinity_matrix_bus"
ACTORS = "actors/infinity_matrix_actors"

TRACES = ("tests/simulation/test_traces.py",)
STORIES = ("tests/coordinator", "-k", "story")
SAGAS = ("tests/coordinator/test_story_sagas.py", "tests/coordinator/test_story_endings.py")
PROPERTIES = ("tests/coordinator/test_execution_properties.py",)
MAILBOX = ("tests/coordinator/test_mailbox.py",)
WIRE = ("tests/coordinator/test_wire_facts.py", "tests/coordinator/test_wire_subjects.py")
STORE = ("tests/integration/test_checkpoint_store.py",)
REPAIRS = ("tests/integration/test_repairs.py",)
GOLDEN = ("tests/golden",)
DOUBT = ("tests/agents/test_doubt.py",)
MENDING = ("tests/integration/test_the_system_mends_itself.py", "-k", "acked_without_an_outcome")
PUBLISHER = ("tests/bus/test_publisher.py",)


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` stands once in `path`."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    # Rule 1: a timer's firing is a fact.
    Mutant(
        "the end of a backoff is no fact",
        f"{COORDINATOR}/performer.py",
        'self.outbox.post(self.subjects.due(self.shard, execution.id, task, attempt), b"{}", _ignore)',
        "from infinity_matrix_actors.fact import Due\n"
        "                at = execution.tasks[task].retry_at or 0.0\n"
        "                for one in execution.receive(Due(execution.id, at, task, attempt)):\n"
        "                    self._perform(execution, one, is_fresh)",
        TRACES,
    ),
    Mutant(
        "overdue timers fire at once after a takeover",
        f"{COORDINATOR}/shard.py",
        "OVERDUE_WAIT_S = 5.0",
        "OVERDUE_WAIT_S = 0.0",
        TRACES,
    ),
    Mutant(
        "timers run on the machine's clock",
        f"{COORDINATOR}/clock.py",
        "self._offset_s = server_time - time.monotonic()",
        "pass",
        TRACES,
    ),
    Mutant(
        "a clock that is set is believed",
        f"{COORDINATOR}/clock.py",
        "import time\n",
        "import time as _time\nfrom types import SimpleNamespace\n\n"
        "time = SimpleNamespace(time=lambda: _time.time(), monotonic=lambda: _time.time())\n",
        TRACES,
    ),
    # Rule 2: closing an attempt.
    Mutant(
        "no tombstone",
        f"{COORDINATOR}/performer.py",
        "                await self._plant_tombstone(*key)\n",
        "",
        TRACES,
    ),
    Mutant(
        "a closed attempt's work is never purged",
        f"{BUS}/api.py",
        'return int((await self.call(f"STREAM.PURGE.{stream}", {"filter": subject})).get("purged", 0))',
        "return 0",
        TRACES,
    ),
    Mutant(
        "no purge once more when the closing is folded",
        f"{COORDINATOR}/execution_actor.py",
        "            return PurgeWork(name, actor.closed)",
        "            return None",
        STORIES,
    ),
    # Rule 3: the barrier.
    Mutant(
        "no barrier before the end",
        f"{COORDINATOR}/stopping.py",
        "execution.open or execution.reopen_at",
        "execution.reopen_at",
        SAGAS,
    ),
    Mutant("no lease after a closing", f"{COORDINATOR}/saga.py", "LEASE_S = 30.0", "LEASE_S = 0.0", SAGAS),
    Mutant(
        "what is unknown is not undone",
        f"{ACTORS}/task_actor.py",
        "        if self.closed > 0 or ",
        "        if ",
        SAGAS,
    ),
    Mutant(
        "what an earlier run left is forgotten",
        f"{ACTORS}/task_actor.py",
        "self.left = None if is_undone else self._left()",
        "self.left = None",
        ("tests/coordinator/test_story_left_behind.py",),
    ),
    Mutant(
        "an order to stop means what became ready after it",
        f"{AGENTS}/cancels.py",
        "ready_at > at else reason",
        "False else reason",
        ("tests/integration/test_going_on.py",),
    ),
    Mutant(
        "compensations in no order",
        f"{COORDINATOR}/saga.py",
        "return [undo for undo, after in self.after.items() if not after]",
        "return list(self.after)",
        SAGAS,
    ),
    Mutant(
        "a new owner does not write an end that is decided",
        f"{COORDINATOR}/execution_actor.py",
        "        if self.is_decided:\n",
        "        if False:\n",
        STORIES,
    ),
    # Rule 4: what is outstanding.
    Mutant(
        "nothing is outstanding after a takeover",
        f"{COORDINATOR}/shard.py",
        "self.performer.perform(execution, execution.outstanding(), is_fresh=False)",
        "pass",
        TRACES,
    ),
    # Rule 5: plain only once and only fresh; everything else is a repair.
    Mutant(
        "an old cause is published plainly",
        f"{COORDINATOR}/shard.py",
        "is_fresh=self.clock.now() - at < FRESH_S",
        "is_fresh=True",
        TRACES,
    ),
    Mutant(
        "work has no Msg-Id",
        f"{COORDINATOR}/performer.py",
        "        if with_id:\n",
        "        if False:\n",
        TRACES,
    ),
    Mutant(
        "a repair does not look before it publishes",
        f"{COORDINATOR}/repairs.py",
        "        absent = await self.absent(batch)\n        if not",
        "        absent = batch\n        if not",
        REPAIRS,
    ),
    Mutant(
        "a repair looks after it has read the head",
        f"{COORDINATOR}/repairs.py",
        "        absent = await self.absent(batch)\n"
        "        if not absent:\n            return\n        await self._target.read_to_head()\n",
        "        await self._target.read_to_head()\n        absent = await self.absent(batch)\n",
        REPAIRS,
    ),
    Mutant(
        "a repair does not read the head",
        f"{COORDINATOR}/repairs.py",
        "        await self._target.read_to_head()\n",
        "",
        TRACES,
    ),
    Mutant(
        "a repair looks like plain work",
        f"{COORDINATOR}/performer.py",
        "payload = work_payload(record, is_repair=is_repair)",
        "payload = work_payload(record, is_repair=False)",
        MENDING,
    ),
    Mutant(
        "a repair that the server swallows counts as published",
        f"{COORDINATOR}/performer.py",
        "if ack.fate is Fate.DUPLICATE and is_repair and not self.session.is_lost:",
        "if False:",
        TRACES,
    ),
    # Rule 6: agents ask when in doubt.
    Mutant(
        "agents never ask",
        f"{AGENTS}/runner.py",
        "            if self._doubt.is_about(delivery):",
        "            if False:",
        TRACES,
    ),
    Mutant(
        "agents trust the delivery count",
        f"{AGENTS}/delivery.py",
        "            or self.stored_at < trusted_from\n",
        "",
        TRACES,
    ),
    Mutant(
        "agents do not ask about repairs",
        f"{AGENTS}/delivery.py",
        '            or self.record.get("repair") is True\n',
        "",
        DOUBT,
    ),
    Mutant(
        "agents ack before the outcome is confirmed",
        f"{AGENTS}/runner.py",
        "        delivery.is_settled = True\n        self._release(delivery)\n",
        "        delivery.is_settled = True\n        self._reply(delivery.ack_reply, b'+ACK')\n"
        "        self._release(delivery)\n",
        TRACES,
    ),
    # Rule 7: the sweep.
    Mutant(
        "no sweep",
        f"{COORDINATOR}/sweep.py",
        "                self._repairs.add(attempt)\n",
        "                pass\n",
        TRACES,
    ),
    Mutant(
        "work that is acked and that a killed server brings back stays in the queue",
        f"{COORDINATOR}/leftovers.py",
        "if floor >= first and pattern:",
        "if floor > 1 << 62:",
        TRACES,
    ),
    # The log.
    Mutant(
        "a full stream counts as already there",
        f"{BUS}/publisher.py",
        "reason == ALREADY_THERE",
        '"exceeded" in reason',
        PUBLISHER,
    ),
    Mutant(
        "a fact is published once and never again",
        f"{BUS}/publisher.py",
        "        self._timers.discard(timer)\n        self._waiting.append(letter)\n",
        "        self._timers.discard(timer)\n",
        PUBLISHER,
    ),
    Mutant(
        "forged facts are folded",
        f"{BUS}/facts.py",
        "    if not subject.is_genuine:\n        return None\n",
        "",
        WIRE,
    ),
    Mutant(
        "the fold takes an outcome whose slot it holds",
        f"{COORDINATOR}/execution_actor.py",
        "        actor.is_open = False\n        actor.started_at =",
        "        actor.started_at =",
        PROPERTIES,
    ),
    # Takeover and checkpoints.
    Mutant(
        "a checkpoint replaces a newer one",
        f"{COORDINATOR}/checkpoint_store.py",
        "Nats-Expected-Last-Subject-Sequence: {revision}",
        "Nats-Unexpected: {revision}",
        STORE,
    ),
    Mutant(
        "the mark passes what is being stored",
        f"{COORDINATOR}/checkpoints.py",
        "return min([next_sequence, *self._saving.values()])",
        "return next_sequence",
        STORE,
    ),
    Mutant(
        "the mark passes what is open",
        f"{COORDINATOR}/mailbox.py",
        "            oldest = min(oldest, actor.sequence)\n",
        "            pass\n",
        MAILBOX,
    ),
    Mutant(
        "an execution leaves memory while facts are on their way to it",
        f"{COORDINATOR}/checkpoints.py",
        " and not self._target.is_awaited(execution.id)",
        "",
        STORE,
    ),
    Mutant(
        "what stands still is taken for what has ended",
        f"{COORDINATOR}/checkpoints.py",
        "                if execution not in mailbox:\n",
        "                if execution not in mailbox.reopening:\n",
        STORE,
    ),
    Mutant(
        "facts that a checkpoint holds are folded again",
        f"{COORDINATOR}/mailbox.py",
        "if sequence > actor.folded else []",
        "if True else []",
        MAILBOX,
    ),
    Mutant(
        "facts before their start are dropped",
        f"{COORDINATOR}/mailbox.py",
        "        self._park(fact, sequence).facts.append((sequence, fact))\n",
        "        self._park(fact, sequence)\n",
        MAILBOX,
    ),
    # Versions.
    Mutant(
        "every version is decided by the rules of today",
        f"{COORDINATOR}/mailbox.py",
        "    return version == facts_of_core.DECIDE_VERSION",
        "    return True",
        MAILBOX,
    ),
    Mutant(
        "the jitter of a backoff is another",
        f"{ACTORS}/retry.py",
        'f"{execution}/{task}/{attempt}"',
        'f"{execution}.{task}.{attempt}"',
        GOLDEN,
    ),
)
