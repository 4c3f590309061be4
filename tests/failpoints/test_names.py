"""Every message that the sources can make has a name: what is asked of the server, and every subject there is."""

import inspect
import re
from pathlib import Path

import pytest
from infinity_matrix_bus import installation
from infinity_matrix_bus.failpoint import NAMES, kind_of_sent, kind_of_taken
from infinity_matrix_bus.streams import stream_configs
from infinity_matrix_bus.subjects import Subjects

ROOT = Path(__file__).parents[2]
PACKAGES = ("bus", "coordinator", "agents", "workflow")
SUBJECTS = Subjects("im", b"secret")
BUCKETS = (*installation._BUCKETS, "members", "installation")
STREAMS = [
    *(str(config["name"]) for config in stream_configs(SUBJECTS, 2, 1, 1 << 30)),
    *(SUBJECTS.bucket_stream(name) for name in BUCKETS),
]
#: A request to the server, in quotes, perhaps with what stands before all of them.
REQUEST = re.compile(r'"(?:\{\w+\}\.|\$JS\.API\.)?((?:STREAM|CONSUMER|DIRECT)\.[A-Z](?:\{[^"}]*\}|[^" {])*)"')
REQUESTS_MIN = 15
ARGUMENTS = {int: 1, str: "name", str | None: "name", int | None: 1}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "failpoint.py"]


def requests() -> list[str]:
    """Everything the sources ask of the server, without what says of which stream."""
    return sorted({found for path in sources() for found in REQUEST.findall(path.read_text())})


def subjects() -> dict[str, str]:
    """Every subject, not pattern, that messages have; by what makes it."""
    found = {}
    for name, member in inspect.getmembers(Subjects):
        if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
            continue
        if isinstance(member, property):
            made = getattr(SUBJECTS, name)
        else:
            parameters = list(inspect.signature(member).parameters.values())[1:]
            # Some take a subject apart.
            if any(one.annotation not in ARGUMENTS or one.name == "subject" for one in parameters):
                continue
            made = getattr(SUBJECTS, name)(*(ARGUMENTS[one.annotation] for one in parameters))
        if isinstance(made, str) and made.startswith(("im.", "$")) and not set("*>") & set(made):
            found[name] = made
    return found


@pytest.mark.parametrize("request_", requests())
def test_what_is_asked_of_the_server_has_a_name(request_: str) -> None:
    for stream in STREAMS:
        # The stream stands first, then the consumer.
        asked = re.sub(r"\{[^}]*\}", "one", re.sub(r"\{[^}]*\}", stream, request_, count=1))
        kind = kind_of_sent(f"$JS.API.{asked}", b"")
        assert {f"send.{kind}.before", f"send.{kind}.after", f"reply.{kind}"} <= NAMES.keys(), f"{asked} is {kind}"


def test_there_is_something_asked_of_the_server() -> None:
    found = requests()
    assert len(found) >= REQUESTS_MIN
    assert any(one.startswith("STREAM.MSG.DELETE") for one in found)
    assert any(one.startswith("CONSUMER.PAUSE") for one in found)
    assert any(one.startswith("DIRECT.GET") for one in found)


@pytest.mark.parametrize(("name", "subject"), subjects().items())
def test_a_message_on_any_subject_has_a_name_when_it_leaves_and_when_it_comes(name: str, subject: str) -> None:
    assert f"send.{kind_of_sent(subject, b'')}.before" in NAMES
    assert f"take.{kind_of_taken(subject)}.before" in NAMES


def test_there_are_subjects() -> None:
    assert subjects().keys() >= {"work", "outcome", "finished", "dead", "cancel", "checkpoint", "mark", "artifact_meta"}


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_record_has_a_name_when_it_leaves_and_when_it_comes(bucket: str) -> None:
    subject = f"$KV.{SUBJECTS.bucket(bucket)}.key"
    assert f"send.{kind_of_sent(subject, b'')}.before" in NAMES
    assert f"take.{kind_of_taken(subject)}.before" in NAMES


@pytest.mark.parametrize(
    ("subject", "payload", "kind"),
    [
        ("$JS.ACK.IM_WORK.worker.1.2.3.4.0", b"+ACK", "ack"),
        ("$JS.ACK.IM_WORK.worker.1.2.3.4.0", b'-NAK {"delay": 1}', "nak"),
        ("$JS.ACK.IM_WORK.worker.1.2.3.4.0", b"+WPI", "lease"),
        ("$JS.ACK.IM_TRIGGERS.triggers.1.2.3.4.0", b"+TERM", "term"),
        ("$JS.API.STREAM.MSG.DELETE.IM_WORK", b"{}", "message.delete"),
        ("$JS.API.STREAM.DELETE.IM_STATUS", b"", "stream.delete"),
        ("$JS.API.CONSUMER.PAUSE.IM_WORK.worker", b"{}", "consumer.pause"),
        ("$JS.API.DIRECT.GET.IM_DEAD", b"{}", "read.dead"),
        ("$JS.API.STREAM.INFO.IM_STATUS", b"{}", "head.status"),
        ("$JS.API.STREAM.PURGE.KV_IM_CHECKPOINTS", b"{}", "forget"),
        ("$JS.SNAPSHOT.RESTORE.IM_FACTS_0.abc", b"data", "chunk"),
        ("im.work.worker.e.t.1", b'{"repair":true}', "repair"),
        ("im.work.im-closed.e.t.1", b"", "tombstone"),
        ("$KV.IM_CHECKPOINTS.mark.0", b"1", "mark"),
        ("elsewhere", b"", "other"),
    ],
)
def test_a_message_is_told_from_others(subject: str, payload: bytes, kind: str) -> None:
    assert kind_of_sent(subject, payload) == kind
    assert (f"send.{kind}.before" in NAMES) == (kind != "other")


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        ("$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.IM_WORK.worker", "advisory"),
        ("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.IM_WORK.worker", "advisory"),
        ("$SRV.PING", "discovery"),
        ("$KV.IM_SCHEDULES.nightly", "schedule"),
        ("im.dead.worker.e.t.1", "dead"),
        ("_INBOX.abc.1", "chunk"),
        ("elsewhere", "other"),
    ],
)
def test_a_message_that_comes_is_told_from_others(subject: str, kind: str) -> None:
    assert kind_of_taken(subject) == kind
    assert (f"take.{kind}.before" in NAMES) == (kind != "other")
