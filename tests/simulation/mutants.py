"""The rules of DESIGN section 4 taken out, one at a time: what a simulation is worth shows in which of these it finds.

`python -m tests.simulation.mutants [NAME ...]` tells every trace with each of them, in processes of their own; it fails
when one is not found.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import infinity_matrix_agents.delivery as delivery
import infinity_matrix_bus.publisher as publisher
import infinity_matrix_coordinator.clock as clock
import infinity_matrix_coordinator.mailbox as mailbox
import infinity_matrix_coordinator.performer as performer
import infinity_matrix_coordinator.repairs as repairs
import infinity_matrix_coordinator.saga as saga
import infinity_matrix_coordinator.shard as shard
import infinity_matrix_coordinator.stopping as stopping
from infinity_matrix_actors.effect import CloseAttempt, PublishDue, PublishFinished, PurgeWork


def agents_never_ask() -> None:
    delivery.Delivery.is_doubtful = lambda self, trusted_from, now: False  # type: ignore[method-assign]


def agents_trust_the_delivery_count() -> None:
    """Rule 6 without `repair`, without the age of the work and without the agent's own doubts."""
    delivery.Delivery.is_doubtful = lambda self, trusted_from, now: self.deliveries > 1  # type: ignore[method-assign]


def a_full_stream_counts_as_already_there() -> None:
    real = publisher.read_ack

    def read_ack(data: bytes | None, headers: bytes | None) -> publisher.Ack:
        ack = real(data, headers)
        return ack._replace(fate=publisher.Fate.TAKEN) if "exceeded" in ack.reason else ack

    publisher.read_ack = read_ack


def facts_are_published_once_and_never_again() -> None:
    def again(self: Any, letter: Any, timer: Any) -> None:
        self._timers.discard(timer)

    publisher.Outbox._again = again  # type: ignore[method-assign]


def no_repairs() -> None:
    repairs.Repairs.add = lambda self, attempt: None  # type: ignore[method-assign]


def repairs_do_not_read_the_head() -> None:
    async def read_to_head(self: Any) -> None:
        return

    shard.Shard.read_to_head = read_to_head  # type: ignore[method-assign]


def repairs_look_like_plain_work() -> None:
    real = performer.work_payload

    def work_payload(*arguments: Any, is_repair: bool) -> bytes:
        return real(*arguments, is_repair=False)

    performer.work_payload = work_payload


def a_duplicate_repair_counts_as_success() -> None:
    real = performer.Performer._publish_work

    def publish_work(self: Any, *arguments: Any, with_id: bool = True, **more: Any) -> None:
        if with_id:
            real(self, *arguments, **more)

    performer.Performer._publish_work = publish_work  # type: ignore[method-assign]


def old_causes_are_published_plainly() -> None:
    shard.FRESH_S = 1e9
    performer.FRESH_S = 1e9


def takeover_publishes_plainly() -> None:
    def resume(self: Any, execution_id: str) -> None:
        execution = self.mailbox.executions.get(execution_id)
        if execution is not None:
            self._perform(execution, execution.outstanding(), self.clock.now())

    shard.Shard._resume = resume  # type: ignore[method-assign]


def nothing_is_outstanding_after_a_takeover() -> None:
    shard.Shard._resume = lambda self, execution_id: None  # type: ignore[method-assign]


def a_closed_attempts_work_is_not_purged() -> None:
    async def close_attempt(self: Any, execution: Any, effect: CloseAttempt) -> None:
        self._post_outcome(
            execution, effect.task, effect.attempt, performer.closed_payload(effect.error, self.instance)
        )

    real = performer.Performer.perform

    def perform(self: Any, execution: Any, effects: Any, **more: Any) -> None:
        real(self, execution, [effect for effect in effects if not isinstance(effect, PurgeWork)], **more)

    performer.Performer._close_attempt = close_attempt  # type: ignore[method-assign]
    performer.Performer.perform = perform  # type: ignore[method-assign]


def no_tombstones() -> None:
    async def plant_tombstone(self: Any, *key: Any) -> None:
        return

    performer.Performer._plant_tombstone = plant_tombstone  # type: ignore[method-assign]


def no_barrier() -> None:
    """Rule 3: what is undone, and the end, do not wait for attempts that are out."""
    real = stopping.conclude

    def conclude(execution: Any, *arguments: Any) -> None:
        if execution.stopped_by is None:
            real(execution, *arguments)
            return
        execution.open, out = set(), execution.open
        real(execution, *arguments)
        execution.open |= out

    for module in list(sys.modules.values()):
        if getattr(module, "conclude", None) is real:
            module.conclude = conclude  # type: ignore[attr-defined]


def no_lease() -> None:
    saga.LEASE_S = 0.0


def timers_do_not_wait_after_an_outage() -> None:
    shard.OVERDUE_WAIT_S = 0.0


def clocks_are_the_machines_own() -> None:
    clock.StreamClock.learn = lambda self, server_time: None  # type: ignore[method-assign]


def backoffs_are_no_facts() -> None:
    """Rule 1: the owner whose timer fires goes on as if everybody knew."""
    real = performer.Performer._perform

    def perform(self: Any, execution: Any, effect: Any, is_fresh: bool) -> None:
        if isinstance(effect, PublishDue):
            due = performer_due(execution, effect)
            for one in execution.receive(due):
                real(self, execution, one, is_fresh)
        else:
            real(self, execution, effect, is_fresh)

    performer.Performer._perform = perform  # type: ignore[method-assign]


def performer_due(execution: Any, effect: PublishDue) -> Any:
    from infinity_matrix_actors.fact import Due

    actor = execution.tasks[effect.task]
    return Due(execution.id, actor.retry_at or 0.0, effect.task, effect.attempt)


def every_second_end_is_called_completed() -> None:
    real = performer.Performer._publish_finished
    count = [0]

    def publish_finished(self: Any, execution: Any, effect: PublishFinished) -> None:
        count[0] += 1
        if count[0] % 2:
            effect = dataclasses.replace(effect, state=type(effect.state)("completed"))
        real(self, execution, effect)

    performer.Performer._publish_finished = publish_finished  # type: ignore[method-assign]


def the_mark_passes_open_executions() -> None:
    mailbox.Mailbox.position = lambda self, next_sequence: next_sequence  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        agents_never_ask,
        agents_trust_the_delivery_count,
        a_full_stream_counts_as_already_there,
        facts_are_published_once_and_never_again,
        no_repairs,
        repairs_do_not_read_the_head,
        repairs_look_like_plain_work,
        a_duplicate_repair_counts_as_success,
        old_causes_are_published_plainly,
        takeover_publishes_plainly,
        nothing_is_outstanding_after_a_takeover,
        a_closed_attempts_work_is_not_purged,
        no_tombstones,
        no_barrier,
        no_lease,
        timers_do_not_wait_after_an_outage,
        clocks_are_the_machines_own,
        backoffs_are_no_facts,
        every_second_end_is_called_completed,
        the_mark_passes_open_executions,
    )
}
TRACES = Path(__file__).with_name("test_traces.py")
TIMEOUT_S = 300
#: What pytest answers when tests failed, and not because it could not run them.
TESTS_FAILED = 1


def tell(mutant: str) -> int:
    """Tells the traces with a mutant in place, until one fails; answers what pytest does."""
    import pytest

    MUTANTS[mutant]()
    options = ("-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist")
    return int(pytest.main([*options, str(TRACES)]))


def main(names: list[str]) -> int:
    """Answers 0 when every mutant was found."""
    missed: list[str] = []
    for name in names or list(MUTANTS):
        told = subprocess.run(
            [sys.executable, "-m", "tests.simulation.mutants", "--tell", name],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        found = [line for line in told.stdout.splitlines() if line.startswith("FAILED")]
        if told.returncode != TESTS_FAILED or not found:
            missed.append(name)
        where = found[0].rpartition("::")[2] if found else f"not found: {told.stdout[-500:]}"
        sys.stdout.write(f"{name}: {where}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(missed)} not found {missed or ''}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(tell(sys.argv[2]) if sys.argv[1:2] == ["--tell"] else main(sys.argv[1:]))
