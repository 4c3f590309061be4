"""The subjects of facts and work: built and taken apart again, with the capability that makes an outcome genuine."""

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infinity_matrix_bus.subjects import FactSubject, Subjects, is_name, is_task_name, shard_of

SUBJECTS = Subjects("im", b"the secret")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
TASKS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}(~[0-9]{1,3}){0,2}", fullmatch=True)
SHARDS = st.integers(0, 63)
ATTEMPTS = st.integers(1, 10_000)


@given(shard=SHARDS, execution=NAMES, agent=NAMES, task=TASKS, attempt=ATTEMPTS, name=NAMES, id=NAMES)
def test_every_kind_of_fact_comes_back_from_its_subject(
    shard: int, execution: str, agent: str, task: str, attempt: int, name: str, id: str
) -> None:
    taken_apart = {
        SUBJECTS.started(shard, execution): FactSubject(shard, execution, "started"),
        SUBJECTS.taken(shard, execution, agent, task, attempt): FactSubject(
            shard, execution, "taken", agent, task, attempt
        ),
        SUBJECTS.outcome(shard, execution, agent, task, attempt): FactSubject(
            shard, execution, "outcome", agent, task, attempt
        ),
        SUBJECTS.due(shard, execution, task, attempt): FactSubject(shard, execution, "due", "", task, attempt),
        SUBJECTS.signal(shard, execution, name, id): FactSubject(shard, execution, "signal", name=name, id=id),
        SUBJECTS.command(shard, execution, name, id): FactSubject(shard, execution, "command", name=name, id=id),
        SUBJECTS.finished(shard, execution, attempt): FactSubject(shard, execution, "finished", n=attempt),
    }
    for subject, expected in taken_apart.items():
        assert SUBJECTS.parse_fact(subject) == expected
        assert len(subject.encode()) <= 512
        assert subject.startswith(SUBJECTS.facts_of(shard, execution)[:-1])


@given(agent=NAMES, execution=NAMES, task=TASKS, attempt=ATTEMPTS)
def test_work_comes_back_from_its_subject(agent: str, execution: str, task: str, attempt: int) -> None:
    subject = SUBJECTS.work(agent, execution, task, attempt)
    assert SUBJECTS.parse_work(subject) == (agent, execution, task, attempt)
    assert subject.startswith(SUBJECTS.work_of_agent(agent)[:-1])


@pytest.mark.parametrize("task", [None, "a"])
def test_a_cancel_comes_back_from_its_subject(task: str | None) -> None:
    assert SUBJECTS.parse_cancel(SUBJECTS.cancel("e1", task)) == ("e1", task)


def test_the_purge_of_an_attempt_takes_its_tombstone_too() -> None:
    tombstone = SUBJECTS.tombstone("e1", "a", 1)
    assert tombstone == "im.work.im-closed.e1.a.1"
    pattern = SUBJECTS.work_of_attempt("e1", "a", 1).split(".")
    assert all(want in ("*", have) for want, have in zip(pattern, tombstone.split("."), strict=True))


def test_a_capability_is_keyed_blake2b_over_the_subject_before_it() -> None:
    subject, _, capability = SUBJECTS.outcome(3, "e1", "agent-x", "a", 1).rpartition(".")
    assert subject == "im.fact.3.e1.outcome.agent-x.a.1"
    assert capability == blake2b(subject.encode(), key=b"the secret", digest_size=8).hexdigest()
    assert len(capability) == 16


def test_a_capability_fits_one_subject_only() -> None:
    subjects = [
        SUBJECTS.outcome(0, "e1", "agent-x", "a", 1),
        SUBJECTS.taken(0, "e1", "agent-x", "a", 1),
        SUBJECTS.outcome(0, "e1", "agent-x", "a", 2),
        SUBJECTS.outcome(0, "e1", "thief", "a", 1),
        SUBJECTS.outcome(0, "e2", "agent-x", "a", 1),
        SUBJECTS.outcome(1, "e1", "agent-x", "a", 1),
        SUBJECTS.due(0, "e1", "a", 1),
        SUBJECTS.finished(0, "e1", 1),
    ]
    for subject in subjects:
        for other in subjects:
            forged = f"{subject.rpartition('.')[0]}.{other.rpartition('.')[2]}"
            parsed = SUBJECTS.parse_fact(forged)
            assert parsed is not None
            assert parsed.is_genuine is (subject == other)
    stranger = Subjects("im", b"another secret")
    parsed = SUBJECTS.parse_fact(stranger.outcome(0, "e1", "agent-x", "a", 1))
    assert parsed is not None
    assert not parsed.is_genuine


def test_who_has_no_secret_leaves_the_check_to_the_coordinators() -> None:
    parsed = Subjects("im").parse_fact("im.fact.0.e1.outcome.agent-x.a.1.0000000000000000")
    assert parsed is not None
    assert parsed.is_genuine


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "im.fact",
        "im.fact.0",
        "im.fact.0.e1",
        "im.fact.x.e1.started",
        "im.fact.0.e1.started.more",
        "im.fact.0.e1.outcome.agent-x.a.1",
        "im.fact.0.e1.outcome.agent-x.a.one.0000000000000000",
        "im.fact.0.e1.due.a.0000000000000000",
        "im.fact.0.e1.signal.only",
        "im.fact.0.e1.finished.x.0000000000000000",
        "im.fact.0.e1.unheard-of.a.b",
        "im.work.agent-x.e1.a.1",
        "other.fact.0.e1.started",
    ],
)
def test_what_has_the_shape_of_no_fact_is_none(subject: str) -> None:
    assert SUBJECTS.parse_fact(subject) is None


@pytest.mark.parametrize("subject", ["im.work.x.e1.a", "im.work.x.e1.a.one", "im.work.x.e1.a.1.2", "im.fact.x.e1.a.1"])
def test_what_has_the_shape_of_no_work_is_none(subject: str) -> None:
    assert SUBJECTS.parse_work(subject) is None


def test_two_prefixes_have_nothing_in_common() -> None:
    other = Subjects("other", b"the secret")
    assert other.parse_fact(SUBJECTS.started(0, "e1")) is None
    assert other.facts_stream(0) == "OTHER_FACTS_0"
    assert (other.work_stream, other.bucket("members")) == ("OTHER_WORK", "OTHER_MEMBERS")


def test_the_shard_is_the_crc32_of_the_execution_in_every_language() -> None:
    assert shard_of("123456789", 1 << 32) == 0xCBF43926  # the check value of CRC-32 (IEEE)
    assert shard_of("123456789", 4) == 2
    counts = [0, 0, 0, 0]
    for number in range(4000):
        counts[shard_of(f"execution-{number}", 4)] += 1
    assert min(counts) > 800


def test_derived_ids_depend_on_every_part_and_on_the_secret() -> None:
    ids = {
        SUBJECTS.derived_id("trigger", "w", "1"),
        SUBJECTS.derived_id("trigger", "w1", ""),
        SUBJECTS.derived_id("trigger", "w", "2"),
        Subjects("im", b"another secret").derived_id("trigger", "w", "1"),
    }
    assert len(ids) == 4
    assert all(is_name(one) and len(one) == 32 for one in ids)


@pytest.mark.parametrize("name", ["a.b", "a b", "*", ">", "", "-a", "_a", "a" * 65, "é", "a\n"])
def test_what_would_break_a_subject_is_no_name(name: str) -> None:
    assert not is_name(name)
    assert not is_task_name(name)


def test_only_tasks_have_the_suffix_of_an_instance() -> None:
    assert is_task_name("a~0")
    assert is_task_name("a~12~3")
    assert not is_name("a~0")
    assert not is_task_name("a~")
    assert not is_task_name("~0")
