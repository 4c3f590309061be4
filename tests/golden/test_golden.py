"""Every golden history is decided as it was when it was written down."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.fact import DECIDE_VERSION

from .folding import FOLDER, Message, differences, fold, fold_from
from .record import words_of

HISTORIES = sorted(FOLDER.glob("*.json"))
HISTORIES_MIN = 30
#: Kinds of facts, and of effects, that some history must have.
FACTS = {"started", "taken", "outcome", "due", "signal", "command", "finished"}
EFFECTS = {
    *("PublishWork", "PublishStatus", "PublishFinished", "Arm", "Disarm", "TellAgents", "PurgeWork"),
    *("StartChild", "CancelChild", "AskSlot"),
}
#: And what else, at least twice.
WORDS = {
    *(f"command {kind}" for kind in ("cancel", "deadline", "pause", "resume", "retry", "compensate")),
    *(f"task {kind}" for kind in ("map", "loop", "child", "sleep", "wait_for", "approval", "condition", "compensates")),
    *(f"finished {end}" for end in ("completed None", "failed complete", "failed incomplete", "cancelled complete")),
    *(f"started {start}" for start in ("normal", "high", "low", "normal skipped")),
    *("definition slots", "effect CloseAttempt", "error timed_out", "error garbage", "error child_failed"),
}
WORDS_MIN = 2


def read(path: Path) -> tuple[dict[str, Any], WorkflowDefinition, list[Message]]:
    record = json.loads(path.read_text())
    definition = WorkflowDefinition.from_canonical(json.dumps(record["definition"]).encode())
    return record, definition, [Message(**message) for message in record["messages"]]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_history_is_decided_as_it_was(path: Path) -> None:
    record, definition, messages = read(path)
    assert record["decide"] <= DECIDE_VERSION
    decided = fold(definition, record["digest"], messages)
    assert differences(record["effects"], decided.effects, "effects") == []
    assert differences(record["state"], decided.state, "state") == []


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_checkpoint_that_was_stored_then_is_taken_up_now(path: Path) -> None:
    record, definition, messages = read(path)
    if record["snapshot"] is None:
        return
    half = record["half"]
    decided = fold_from(record["snapshot"], definition, record["digest"], messages[half:])
    assert differences(record["effects"][half:], decided.effects, "effects") == []
    assert differences(record["state"], decided.state, "state") == []


def test_the_histories_have_everything_in_them() -> None:
    facts: Counter[str] = Counter()
    effects: Counter[str] = Counter()
    words: Counter[str] = Counter()
    snapshots = 0
    for path in HISTORIES:
        record, _, messages = read(path)
        facts.update(message.subject.split(".")[4] for message in messages)
        effects.update(effect[0] for asked in record["effects"] for effect in asked)
        words.update(words_of(record))
        snapshots += record["snapshot"] is not None
    assert len(HISTORIES) >= HISTORIES_MIN
    assert facts.keys() >= FACTS
    assert effects.keys() >= EFFECTS
    assert sorted(word for word in WORDS if words[word] < WORDS_MIN) == []
    assert snapshots >= HISTORIES_MIN / 2


def test_a_history_that_would_be_decided_otherwise_is_noticed() -> None:
    path = next(path for path in HISTORIES if "PublishWork" in path.read_text())
    record, definition, messages = read(path)
    decided = fold(definition, record["digest"], [*messages[:1], *messages[2:]])
    assert differences(record["effects"], decided.effects) != []
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2, "new": 3}]}) == []
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == [".a[1].b was 2 and is 3"]
    assert differences({"a": 1}, {}) == [".a is gone"]
    assert differences([1], [1, 2]) == [" was [1] and is [1, 2]"]
