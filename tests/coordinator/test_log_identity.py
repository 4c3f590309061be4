"""A log is known again, and another in its place told from it: restored, cut off, made anew, or grown again."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.backup import back_up, restore
from infinity_matrix_bus.history import read_all
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session
from infinity_matrix_coordinator.log_identity import (
    WITNESS_SPACING,
    WITNESSES_MAX,
    Likeness,
    LogIdentity,
    Witness,
    compare,
)

LOG = "IM_FACTS_0"


@pytest.fixture
async def session(server: EmbeddedServer) -> AsyncIterator[Session]:
    session = await Session.connect(Endpoint(server.connect_url))
    await install(session, shards=1)
    yield session
    await session.close()


async def write(session: Session, *names: str) -> None:
    for name in names:
        await session.request(f"im.fact.0.{name}.started", b"{}")


async def folded(session: Session) -> LogIdentity:
    """The identity of a log as an owner has it who read all of it."""
    info = await JetStreamApi(session).call(f"STREAM.INFO.{LOG}")
    known = LogIdentity(info["created"])
    for entry in await read_all(session, LOG, ()):
        known.note(entry.sequence, entry.subject, entry.at)
    return known


async def likeness(session: Session, known: LogIdentity) -> Likeness:
    # As it is read back from where it is kept.
    assert LogIdentity.read(known.record()) == known
    return await compare(JetStreamApi(session), LOG, known)


async def test_a_log_that_went_on_is_the_same(server: EmbeddedServer, session: Session) -> None:
    empty = await folded(session)
    await write(session, "a", "b")
    known = await folded(session)
    await write(session, "c")
    assert await likeness(session, known) is Likeness.SAME
    assert await likeness(session, empty) is Likeness.SAME
    await session.close()
    await server.kill()
    await server.start()
    again = await Session.connect(Endpoint(server.connect_url))
    assert await likeness(again, known) is Likeness.SAME
    await again.close()


async def test_a_log_that_was_rolled_back_is_another_even_when_it_has_grown_again(
    session: Session, tmp_path: Path
) -> None:
    await write(session, "a", "b")
    await back_up(session, await install(session), tmp_path / "backup")
    await write(session, "c", "d")
    known = await folded(session)
    await restore(session, tmp_path / "backup", overwrites=True)
    assert await likeness(session, known) is Likeness.OTHER
    await write(session, "x", "y", "z")
    assert await likeness(session, known) is Likeness.OTHER
    # Also where the server kept the creation time, as a power loss does.
    info = await JetStreamApi(session).call(f"STREAM.INFO.{LOG}")
    known.created = info["created"]
    assert known.last is not None
    assert int(info["state"]["last_seq"]) > known.last.sequence
    assert await likeness(session, known) is Likeness.OTHER


async def test_a_log_that_lost_its_end_is_another(session: Session) -> None:
    await write(session, "a", "b")
    known = await folded(session)
    known.note(3, "im.fact.0.lost.started", 1.0)
    assert await likeness(session, known) is Likeness.OTHER


async def test_a_log_that_is_gone_or_made_anew_is_told(session: Session) -> None:
    await write(session, "a")
    known = await folded(session)
    config = (await JetStreamApi(session).call(f"STREAM.INFO.{LOG}"))["config"]
    await JetStreamApi(session).call(f"STREAM.DELETE.{LOG}")
    assert await likeness(session, known) is Likeness.GONE
    await JetStreamApi(session).create_stream(config)
    assert await likeness(session, known) is Likeness.OTHER


async def test_facts_that_were_purged_or_expired_leave_others_to_tell_by(session: Session) -> None:
    await write(session, "a", "b", "c")
    known = await folded(session)
    api = JetStreamApi(session)
    await api.purge(LOG, "im.fact.0.c.>")
    assert await likeness(session, known) is Likeness.SAME
    await api.purge(LOG, "im.fact.0.a.>")
    # Of those that are left none was remembered.
    assert await likeness(session, known) is Likeness.UNKNOWN
    await api.call(f"STREAM.PURGE.{LOG}")
    assert await likeness(session, known) is Likeness.UNKNOWN


def test_few_facts_are_remembered_however_many_are_folded() -> None:
    known = LogIdentity("now")
    for sequence in range(1, 20 * WITNESS_SPACING):
        known.note(sequence, f"s{sequence}", float(sequence))
    sequences = [witness.sequence for witness in known.witnesses]
    assert len(sequences) == WITNESSES_MAX + 1
    assert sequences[0] == 20 * WITNESS_SPACING - 1
    assert all(one - other >= WITNESS_SPACING for one, other in itertools.pairwise(sequences[1:]))
    assert LogIdentity.read(known.record()).witnesses == known.witnesses
    assert not Witness(1, "s", 1.0).is_like("s", 1.001)
