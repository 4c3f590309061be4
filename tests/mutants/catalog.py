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
GOLDEN = ("tests/golden/test_golden.py",)
DOUBT = ("tests/agents/test_doubt.py",)
MENDING = ("tests/integration/test_the_system_mends_itself.py", "-k", "acked_without_an_outcome")
PUBLISHER = ("tests/bus/test_publisher.py",)
LIVES = ("tests/simulation/test_traces_across_lives.py",)
IDENTITY = ("tests/coordinator/test_log_identity.py",)
BACKLOG = ("tests/coordinator/test_backlog.py",)
FULL = ("tests/integration/test_full_logs.py", "-k", "start_is_refused or make_room")
ALONE = ("tests/mutants/test_rules_alone.py",)


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
    # Owners that were away, and logs that are others.
    Mutant(
        "an owner that was away for long goes on",
        f"{COORDINATOR}/shard.py",
        "if now - self._ticked_at > FRESH_S:",
        "if False:",
        ALONE,
    ),
    Mutant(
        "a log that was made anew is gone on with",
        f"{COORDINATOR}/log_identity.py",
        'if info["created"] != known.created:',
        "if False:",
        ALONE,
    ),
    Mutant(
        "a log that lost its end and grew again is gone on with",
        f"{COORDINATOR}/log_identity.py",
        "if found is not None and not witness.is_like(*found):",
        "if False:",
        IDENTITY,
    ),
    Mutant(
        "a log that is replaced under its owner is not noticed",
        f"{COORDINATOR}/shard.py",
        'if self._identity is not None and info.get("created") != self._identity.created:',
        "if False:",
        ("tests/integration/test_a_log_that_is_set_back.py",),
    ),
    # Questions, and what is told when nothing can be done.
    Mutant(
        "an agent begins work whose deadline has passed without asking",
        f"{AGENTS}/delivery.py",
        "            or (deadline is not None and now > deadline)\n",
        "",
        ALONE,
    ),
    Mutant(
        "a question about an attempt is answered by any replica",
        f"{COORDINATOR}/service.py",
        "stored = await JetStreamApi(self._session).last_message(self._subjects.facts_stream(shard), subject)",
        "read = await JetStreamApi(self._session).multi_last(self._subjects.facts_stream(shard), [subject])\n"
        "        stored = read[0] if read else None",
        ALONE,
    ),
    Mutant(
        "work that kills its agents is given out for ever",
        f"{AGENTS}/delivery.py",
        "return self.is_worn and begun >= DELIVERIES_MAX - 1",
        "return False",
        ALONE,
    ),
    Mutant(
        "work that cannot be sent has no outcome",
        f"{COORDINATOR}/performer.py",
        "        error = TaskError(ErrorType.UNDELIVERABLE, reason, retryable=False)\n",
        "        return\n        error = TaskError(ErrorType.UNDELIVERABLE, reason, retryable=False)\n",
        ALONE,
    ),
    # What an execution waits for.
    Mutant(
        "an execution whose definition is not there yet is forgotten",
        f"{COORDINATOR}/mailbox.py",
        "                if plan is not None:\n                    return self.receive(self._open",
        "                if plan is None:\n                    return []\n"
        "                if plan is not None:\n                    return self.receive(self._open",
        (*TRACES, "-k", "waits_for_its_definition"),
    ),
    Mutant(
        "a checkpoint has no results",
        f"{COORDINATOR}/snapshot.py",
        "_TASK_PLAIN = tuple(name for name in TaskActor.__slots__ if name not in _TASK_DERIVED)",
        '_TASK_PLAIN = tuple(name for name in TaskActor.__slots__ if name not in {*_TASK_DERIVED, "result"})',
        LIVES,
    ),
    # Children.
    Mutant(
        "a child ends before its parent has its outcome",
        f"{COORDINATOR}/performer.py",
        "            self._spawn(self.children.answer_parent(execution, let_go))\n",
        "            let_go()\n            self._spawn(self.children.answer_parent(execution, lambda: None))\n",
        LIVES,
    ),
    Mutant(
        "a parent that ends lets its children go on",
        f"{COORDINATOR}/children.py",
        '        self._outbox.post(subject, command_payload(CommandKind.CANCEL, f"its parent',
        '        return\n        self._outbox.post(subject, command_payload(CommandKind.CANCEL, f"its parent',
        LIVES,
    ),
    # Full streams.
    Mutant("starts are taken above 70%", f"{BUS}/fill.py", "START_FILL_MAX = 0.70", "START_FILL_MAX = 7.0", FULL),
    Mutant(
        "a log above 60% is not purged",
        f"{COORDINATOR}/purging.py",
        "PURGE_FILL_MIN = 0.60",
        "PURGE_FILL_MIN = 6.0",
        FULL,
    ),
    Mutant(
        "what is open is purged like what has ended",
        f"{COORDINATOR}/purging.py",
        "return execution.startswith(KEY_PREFIX) or any(execution in place for place in self._held)",
        "return execution.startswith(KEY_PREFIX)",
        FULL,
    ),
    Mutant(
        "all work of an agent is queued at once",
        f"{COORDINATOR}/backlog.py",
        "if size >= self._limit or (",
        "if (",
        BACKLOG,
    ),
    # Schedules.
    Mutant(
        "a tick is claimed by whoever comes",
        f"{BUS}/schedules.py",
        'f"Nats-Expected-Last-Subject-Sequence: {stored.revision}"\n        )',
        'f"Nats-Unexpected: {stored.revision}"\n        )',
        ("tests/bus/test_schedule_store.py",),
    ),
    Mutant(
        "a tick that is skipped is no fact",
        f"{COORDINATOR}/schedules.py",
        "            place = await write_tick(*self._context,",
        "            if action is Action.SKIP:\n                state = settle(schedule, state, tick, None)\n"
        "                continue\n            place = await write_tick(*self._context,",
        LIVES,
    ),
    # What only the end shows.
    Mutant(
        "every end is called completed",
        f"{COORDINATOR}/performer.py",
        "execution.id, effect.at, effect.n, effect.state, effect.error,",
        "execution.id, effect.at, effect.n, ExecutionState.COMPLETED, effect.error,",
        TRACES,
    ),
    Mutant(
        "a new owner publishes plainly what the one before it may have published",
        f"{COORDINATOR}/shard.py",
        "self.performer.perform(execution, execution.outstanding(), is_fresh=False)",
        "self.performer.perform(execution, execution.outstanding(), is_fresh=True)",
        ALONE,
    ),
)
