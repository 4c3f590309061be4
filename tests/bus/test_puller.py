"""Long pulls on a real consumer: how much is asked for, how long it is waited for, and what ends it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bus_world import connected, eventually, freeze, make_stream
from infinity_matrix_bus import puller as puller_module
from infinity_matrix_bus.api import API_PREFIX, JetStreamApi
from infinity_matrix_bus.puller import Puller
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Session

STREAM = "W"
CONSUMER = "c"


async def fill(session: Session, count: int, first: int = 0) -> None:
    for number in range(first, first + count - 1):
        session.publish(f"w.{number}", b"%d" % number)
    await session.request(f"w.{first + count - 1}", b"%d" % (first + count - 1))


async def make_consumer(session: Session, **config: Any) -> None:
    await make_stream(session, STREAM, "w.>")
    body = {"durable_name": CONSUMER, "ack_policy": "none", "max_waiting": 64, **config}
    await JetStreamApi(session).create_consumer(STREAM, CONSUMER, body)


async def consumer(session: Session) -> dict[str, Any]:
    info = await JetStreamApi(session).consumer_info(STREAM, CONSUMER)
    assert info is not None
    return info


class Owner:
    """Takes messages of a puller up to its capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken: list[int] = []
        self.broken: list[str] = []
        #: The most that was ever on its way although there was no place for it.
        self.overdrawn = 0
        self.puller: Puller | None = None

    def take(self, subject: str, reply: str, data: bytes) -> None:
        self.taken.append(int(data))
        self.capacity -= 1
        self.overdrawn = max(self.overdrawn, -self.capacity)

    def free(self, places: int) -> None:
        self.capacity += places
        assert self.puller is not None
        self.puller.pull()


@asynccontextmanager
async def pulling(
    session: Session, owner: Owner, take: Callable[[str, str, bytes], None] | None = None
) -> AsyncIterator[Puller]:
    puller = Puller(
        session, API_PREFIX, STREAM, CONSUMER, lambda: owner.capacity, take or owner.take, owner.broken.append
    )
    owner.puller = puller
    await puller.open()
    try:
        yield puller
    finally:
        await puller.close()


@pytest.fixture
def short_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls that expire soon, with heartbeats to match."""
    monkeypatch.setattr(puller_module, "EXPIRES_S", 0.3)
    monkeypatch.setattr(puller_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(puller_module, "SILENCE_MAX_S", 0.35)


async def test_twenty_thousand_messages_come_once_and_in_order(session: Session) -> None:
    await make_consumer(session)
    await fill(session, 20_000)
    owner = Owner(0)
    taken: list[int] = []
    began = time.monotonic()
    owner.capacity = 500
    async with pulling(session, owner, lambda subject, reply, data: taken.append(int(data))):
        await eventually(lambda: len(taken) == 20_000, "all messages")
    assert taken == list(range(20_000))
    assert time.monotonic() - began < 10
    assert not owner.broken


async def test_no_more_comes_than_there_is_room_for(session: Session) -> None:
    await make_consumer(session)
    await fill(session, 500)
    owner = Owner(10)
    async with pulling(session, owner) as puller:
        await eventually(lambda: len(owner.taken) == 10, "ten messages")
        assert (await consumer(session))["delivered"]["consumer_seq"] == 10
        for places in (1, 1, 2, 5, 30, 1, 100, 40):
            expected = len(owner.taken) + places
            owner.free(places)
            await eventually(lambda expected=expected: len(owner.taken) == expected, "as many as places")  # type: ignore[misc]
        assert (await consumer(session))["delivered"]["consumer_seq"] == len(owner.taken)
        assert puller._credit == 0
    assert owner.overdrawn == 0
    assert not owner.broken


async def test_credit_is_right_after_pulls_expired_in_part(session: Session, short_pulls: None) -> None:
    await make_consumer(session)
    owner = Owner(50)
    async with pulling(session, owner) as puller:
        # Each pull ends with some of it delivered and the rest left over; what is asked for stays what has room.
        for batch in range(8):
            await fill(session, 5, first=batch * 5)
            await asyncio.sleep(0.15)
            assert puller._credit == owner.capacity
        assert (await consumer(session))["num_waiting"] <= 4
        await fill(session, 100, first=40)
        await eventually(lambda: len(owner.taken) == 50, "as many as there is room for")
        assert (await consumer(session))["delivered"]["consumer_seq"] == 50
        owner.free(90)
        await eventually(lambda: len(owner.taken) == 140, "the rest")
    assert owner.taken == list(range(140))
    assert owner.overdrawn == 0
    assert not owner.broken


async def test_of_two_open_pulls_the_one_that_expires_takes_only_its_own_credit(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller_module, "EXPIRES_S", 1.0)
    monkeypatch.setattr(puller_module, "HEARTBEAT_S", 0.2)
    await make_consumer(session)
    owner = Owner(10)
    async with pulling(session, owner) as puller:
        await asyncio.sleep(0.5)
        owner.free(20)
        assert (puller._pulls, puller._credit) == (2, 30)
        await eventually(lambda: puller._credit != 30, "the first's expiry")
        assert puller._credit == 20
        await fill(session, 60)
        await eventually(lambda: len(owner.taken) == 30, "as many as there is room for")
        assert (await consumer(session))["delivered"]["consumer_seq"] == 30
    assert owner.overdrawn == 0
    assert not owner.broken


async def test_after_a_long_idle_time_a_message_comes_at_once(session: Session, short_pulls: None) -> None:
    await make_consumer(session)
    owner = Owner(10)
    async with pulling(session, owner) as puller:
        await eventually(lambda: puller._pulls >= 5, "several expiries")
        assert puller._credit == 10
        assert (await consumer(session))["num_waiting"] == 1
        pulls = puller._pulls
        await fill(session, 1)
        await eventually(lambda: owner.taken, "the message")
        # The pull that was open brought it, or the one after.
        assert puller._pulls <= pulls + 1
    assert not owner.broken


async def test_without_room_nothing_is_asked_for_and_nothing_is_broken(session: Session, short_pulls: None) -> None:
    await make_consumer(session)
    await fill(session, 3)
    owner = Owner(0)
    async with pulling(session, owner) as puller:
        await asyncio.sleep(0.8)
        assert puller._pulls == 0
        # Nobody calls `pull`: the check finds the room.
        owner.capacity = 5
        await eventually(lambda: len(owner.taken) == 3, "the messages")
    assert not owner.broken


async def test_heartbeats_keep_a_pull_alive_while_no_message_may_be_delivered(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(puller_module, "SILENCE_MAX_S", 0.35)
    await make_consumer(session, ack_policy="explicit", max_ack_pending=1)
    await fill(session, 2)
    owner = Owner(10)
    replies: list[str] = []
    async with pulling(session, owner, lambda subject, reply, data: replies.append(reply)):
        await eventually(lambda: len(replies) == 1, "the first")
        await asyncio.sleep(1)
        assert not owner.broken
        session.publish(replies[0], b"+ACK")
        await eventually(lambda: len(replies) == 2, "the second")


async def test_a_deleted_consumer_is_told_with_the_reason(session: Session) -> None:
    await make_consumer(session)
    owner = Owner(10)
    async with pulling(session, owner):
        await eventually(lambda: owner.puller is not None and owner.puller._credit == 10, "the pull")
        await session.client.flush()
        await JetStreamApi(session).delete_consumer(STREAM, CONSUMER)
        await eventually(lambda: owner.broken, "the end")
        await asyncio.sleep(0.05)
    assert owner.broken == ["409 Consumer Deleted"]


async def test_a_consumer_that_was_never_there_is_told(session: Session) -> None:
    owner = Owner(10)
    async with pulling(session, owner):
        await eventually(lambda: owner.broken, "the end")
    assert owner.broken == ["503"]


async def test_a_consumer_that_refuses_pulls_for_good_is_told_and_not_asked_again(session: Session) -> None:
    await make_consumer(session, max_batch=5)
    owner = Owner(10)
    async with pulling(session, owner) as puller:
        await eventually(lambda: owner.broken, "the end")
        assert puller._pulls == 1
    assert owner.broken == ["409 Exceeded MaxRequestBatch of 5"]


async def test_a_pull_that_the_server_drops_without_a_word_is_noticed(session: Session, short_pulls: None) -> None:
    # That is what it does, mostly, with one that finds `max_waiting` others there.
    await make_consumer(session, max_waiting=1)
    first, second = Owner(1), Owner(1)
    async with pulling(session, first), pulling(session, second):
        await eventually(lambda: second.broken, "the end")
    assert second.broken == ["the consumer is silent"]
    assert not first.broken


async def test_a_message_handler_that_raises_does_not_stop_the_pulling(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    await make_consumer(session)
    await fill(session, 100)
    owner = Owner(3)
    seen: list[int] = []

    def fail(subject: str, reply: str, data: bytes) -> None:
        seen.append(int(data))
        raise RuntimeError("a fault of its owner")

    async with pulling(session, owner, fail):
        await eventually(lambda: len(seen) == 100, "all messages")
    assert "a fault of its owner" in caplog.text


async def test_a_frozen_server_breaks_the_pull_by_its_silence(
    server: EmbeddedServer, session: Session, short_pulls: None
) -> None:
    await make_consumer(session)
    owner = Owner(10)
    async with pulling(session, owner):
        await eventually(lambda: owner.puller is not None and owner.puller._pulls >= 2, "pulls that go well")
        await freeze(server)
        try:
            await eventually(lambda: owner.broken, "the end", 2)
        finally:
            server.resume()
    assert owner.broken == ["the consumer is silent"]


async def test_an_event_loop_that_stood_still_is_not_the_consumers_silence(session: Session, short_pulls: None) -> None:
    await make_consumer(session)
    owner = Owner(10)
    async with pulling(session, owner) as puller:
        for _ in range(3):
            time.sleep(0.6)  # noqa: ASYNC251
            await asyncio.sleep(0.05)
        pulls = puller._pulls
        await eventually(lambda: puller._pulls > pulls, "the next pull")
    assert not owner.broken


async def test_after_a_restart_of_the_server_a_new_puller_goes_on(server: EmbeddedServer) -> None:
    async with connected(server) as connection:
        await make_consumer(connection.session, ack_policy="explicit", ack_wait=2_000_000_000)
        taken: Counter[int] = Counter()
        pullers: list[Puller] = []
        owner = Owner(100)

        def take(subject: str, reply: str, data: bytes) -> None:
            taken[int(data)] += 1
            connection.session.publish(reply, b"+ACK")

        async def listen(session: Session) -> None:
            pullers.append(
                await Puller(
                    session, API_PREFIX, STREAM, CONSUMER, lambda: owner.capacity, take, owner.broken.append
                ).open()
            )

        await connection.add_listener(listen)
        await fill(connection.session, 10)
        await eventually(lambda: len(taken) == 10, "ten messages")
        await server.kill()
        await server.start()
        await eventually(lambda: len(pullers) == 2, "the next puller")
        began = time.monotonic()
        await fill(connection.session, 10, first=10)
        await eventually(lambda: len(taken) == 20, "ten more")
        assert time.monotonic() - began < 1
        # The first ended with its session: nothing of it is left running.
        assert not owner.broken
        for puller in pullers:
            await puller.close()


async def test_a_drained_puller_hands_over_what_came_and_takes_no_more(session: Session) -> None:
    await make_consumer(session, ack_policy="explicit")
    await fill(session, 500)
    owner = Owner(400)
    async with pulling(session, owner) as puller:
        await eventually(lambda: owner.taken, "the first")
        await puller.drain()
        taken = len(owner.taken)
        assert owner.taken == list(range(taken))
        # What the server counts as delivered may be more: it drops what it sends as it hears of the end.
        assert (await consumer(session))["num_ack_pending"] >= taken
        owner.free(100)
        await session.client.flush()
        assert len(owner.taken) == taken
    assert not owner.broken


async def test_a_closed_puller_delivers_nothing_and_asks_for_nothing(session: Session) -> None:
    await make_consumer(session)
    owner = Owner(10)
    async with pulling(session, owner) as puller:
        await puller.close()
        await fill(session, 5)
        owner.free(100)
        await session.client.flush()
        assert puller._pulls == 1
    assert not owner.taken
    assert not owner.broken
