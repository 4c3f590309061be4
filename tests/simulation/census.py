"""What is open in a world, and what happened in it that no fault struck with and yet is worth counting.

Kept as the streams take things in, because of a log with an age what was there may be gone in the end.
"""

import json

from .stream import SLOT_TAKEN, Message
from .world import World

FORGED = "0" * 16
#: Work and consequences that are counted; `disorder.KINDS` has the faults.
COUNTED = (
    *("child", "child of a child", "child started twice", "instance of a map or loop", "paused", "retried"),
    *("undone further", "slot asked for", "tick of a schedule", "tick skipped", "tick of a schedule raced"),
    *("claim of a tick raced", "checkpoint taken", "checkpoint refused", "mark raised", "mark refused"),
    *("taken over from a checkpoint", "brought back from a checkpoint", "outlived by its execution"),
)


class Census:
    """The executions of a world; a watcher of it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.open: dict[str, None] = {}
        #: The last end of each, as it is in the log.
        self.ends: dict[str, dict[str, object]] = {}
        world.watchers.append(self._see)

    def _see(self, operation: str, subject: str, result: object) -> None:
        if operation == "publish":
            assert isinstance(result, tuple)
            if subject.startswith("im.fact."):
                self._fact(subject, result)
            elif subject.startswith("$KV."):
                self._record(subject, result)
        elif operation == "get" and result is not None and subject.startswith("$KV.IM_CHECKPOINTS.state."):
            self._count("brought back from a checkpoint")

    def _fact(self, subject: str, result: tuple[object, ...]) -> None:
        _, _, shard, execution, kind, *rest = subject.split(".")
        if result == SLOT_TAKEN and kind == "started":
            cause = _read(self._stored(shard, subject)).get("cause") or {}
            if "parent" in cause:
                self._count("child started twice")
            elif "schedule" in cause:
                self._count("tick of a schedule raced")
        if len(result) != 2 or result[1]:
            return
        if kind == "started":
            self._started(execution, _read(self._stored(shard, subject)))
        elif kind == "finished" and rest[-1] != FORGED:
            self.open.pop(execution, None)
            self.ends[execution] = _read(self._stored(shard, subject))
        elif kind == "command" and rest[0] in ("retry", "compensate"):
            if self.ends.get(execution, {}).get("state") not in (None, "completed"):
                self.open[execution] = None
        elif kind == "outcome" and "~" in rest[1]:
            self._count("instance of a map or loop")
        elif kind == "signal" and rest[0] == "im-enter":
            self._count("slot asked for")

    def _started(self, execution: str, record: dict[str, object]) -> None:
        cause = record.get("cause")
        assert isinstance(cause, dict)
        if "parent" in cause:
            self._count("child" if cause.get("depth") == 1 else "child of a child")
        elif "schedule" in cause:
            self._count("tick skipped" if record.get("skipped") else "tick of a schedule")
        if not record.get("skipped"):
            self.open[execution] = None

    def _record(self, subject: str, result: tuple[object, ...]) -> None:
        _, bucket, kind, *_ = subject.split(".")
        is_stored = len(result) == 2
        if bucket == "IM_CHECKPOINTS":
            what = "checkpoint" if kind == "state" else "mark"
            taken = "taken" if kind == "state" else "raised"
            self._count(f"{what} {taken if is_stored else 'refused'}")
        elif bucket == "IM_SCHEDULES" and not is_stored:
            self._count("claim of a tick raced")

    def _stored(self, shard: str, subject: str) -> Message:
        message = self._world.streams.streams[f"IM_FACTS_{shard}"].last(subject)
        assert message is not None
        return message

    def _count(self, kind: str) -> None:
        self._world.faults.count(kind)


def _read(message: Message) -> dict[str, object]:
    record = json.loads(message.data)
    assert isinstance(record, dict)
    return record
