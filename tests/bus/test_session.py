"""A session on the real server: what is sent, what is refused before it is sent, and how it ends."""

import asyncio
import contextlib
import secrets
import time
import traceback
from pathlib import Path

import pytest
from bus_world import eventually, freeze, open_sockets
from infinity_matrix_actors.errors import PayloadTooLarge, Unreachable
from infinity_matrix_bus import session as session_module
from infinity_matrix_bus.codec import MESSAGE_BYTES_MAX
from infinity_matrix_bus.direct_client import cancellable
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import (
    Endpoint,
    InvalidSubject,
    NoResponders,
    RequestTimeout,
    Session,
    SessionLost,
)
from nats.errors import FlushTimeoutError

HEADERS = b"NATS/1.0\r\nNats-Msg-Id: a\r\n\r\n"


async def echo(session: Session, subject: str) -> None:
    """Answers each request on the subject with its payload."""
    await session.subscribe(subject, lambda _, reply, data, __: session.publish(reply, data))


def unanswered(session: Session) -> int:
    return len(session._replies)


# Sending.


async def test_a_publish_needs_no_await_and_comes_in_order(session: Session) -> None:
    got: list[bytes] = []
    await session.subscribe("a.*", lambda subject, reply, data, headers: got.append(data))
    for number in range(1000):
        session.publish("a.b", b"%d" % number)
    await eventually(lambda: len(got) == 1000, "a thousand messages")
    assert got == [b"%d" % number for number in range(1000)]


async def test_headers_arrive_as_they_were_given(session: Session) -> None:
    got: list[tuple[bytes, bytes | None]] = []
    await session.subscribe("a", lambda subject, reply, data, headers: got.append((data, headers)))
    session.publish("a", b"body", headers=HEADERS)
    await eventually(lambda: got, "the message")
    assert got == [(b"body", HEADERS)]


async def test_a_request_has_the_reply(session: Session) -> None:
    await echo(session, "echo")
    assert await session.request("echo", b"hello") == b"hello"
    assert await asyncio.gather(*(session.request("echo", b"%d" % n) for n in range(500))) == [
        b"%d" % n for n in range(500)
    ]
    assert unanswered(session) == 0


async def test_a_closed_subscription_hears_nothing(session: Session) -> None:
    got: list[bytes] = []
    subscription = await session.subscribe("a", lambda subject, reply, data, headers: got.append(data))
    await echo(session, "echo")
    await subscription.close()
    await subscription.close()
    session.publish("a", b"")
    await session.request("echo")
    assert not got
    assert subscription.sid not in session.client.direct


@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("headers", [b"", HEADERS], ids=["plain", "headers"])
async def test_payload_and_headers_together_are_measured_before_sending(
    session: Session, beyond: int, headers: bytes
) -> None:
    await echo(session, "echo")
    payload = b"x" * (MESSAGE_BYTES_MAX - len(headers) + beyond)
    if beyond > 0:
        with pytest.raises(PayloadTooLarge):
            session.publish("echo", payload, headers=headers)
        with pytest.raises(PayloadTooLarge):
            await session.request("echo", payload, headers=headers)
        assert unanswered(session) == 0
    else:
        assert await session.request("echo", payload, headers=headers) == payload
    assert await session.request("echo", b"still here") == b"still here"


async def test_a_subject_that_is_too_long_is_refused_before_sending(session: Session) -> None:
    await echo(session, "echo.>")
    longest = "echo." + "x" * 507
    assert await session.request(longest, b"a") == b"a"
    for subject in (longest + "x", "echo." + "é" * 254, "x" * 5000):
        with pytest.raises(PayloadTooLarge, match="the subject"):
            session.publish(subject, b"")
    assert await session.request("echo.a", b"still here") == b"still here"


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n", "a\tb", "a\nb", "a\rb"])
async def test_a_subject_with_white_space_is_refused_before_sending(session: Session, subject: str) -> None:
    got: list[str] = []
    await session.subscribe(">", lambda subject, reply, data, headers: got.append(subject))
    with pytest.raises(InvalidSubject):
        session.publish(subject, b"")
    with pytest.raises(InvalidSubject):
        await session.subscribe(subject, lambda subject, reply, data, headers: None)
    session.publish("end", b"")
    await eventually(lambda: got, "the message that is well-formed")
    assert got == ["end"]


async def test_published_data_is_taken_by_the_socket(session: Session) -> None:
    for _ in range(40):
        session.publish("a", b"x" * MESSAGE_BYTES_MAX)
    await session.flushed()
    assert session.buffered_bytes == 0


async def test_what_a_frozen_server_does_not_take_is_reported(server: EmbeddedServer, session: Session) -> None:
    await freeze(server)
    try:
        for _ in range(40):
            session.publish("a", b"x" * MESSAGE_BYTES_MAX)
        with pytest.raises(RequestTimeout):
            await session.flushed(0.2)
        assert session.buffered_bytes > 0
    finally:
        server.resume()
    await session.flushed()


# Answers that do not come.


async def test_a_request_that_nobody_hears_fails_at_once(session: Session) -> None:
    began = time.monotonic()
    with pytest.raises(NoResponders, match="nobody answers on nobody"):
        await session.request("nobody", b"")
    assert time.monotonic() - began < 1.0
    assert unanswered(session) == 0


async def test_a_request_without_a_reply_ends_at_its_deadline(session: Session) -> None:
    await session.subscribe("silent", lambda *_: None)
    with pytest.raises(RequestTimeout, match=r"no reply on silent within 0\.1 s"):
        await session.request("silent", timeout_s=0.1)
    assert unanswered(session) == 0


async def test_a_cancelled_request_is_forgotten(session: Session) -> None:
    await session.subscribe("silent", lambda *_: None)
    request = asyncio.create_task(session.request("silent"))
    await eventually(lambda: unanswered(session) == 1, "the request")
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert request.cancelled()
    assert unanswered(session) == 0


async def test_a_request_is_told_when_the_session_is_lost(server: EmbeddedServer, session: Session) -> None:
    await session.subscribe("silent", lambda *_: None)
    request = asyncio.create_task(session.request("silent", timeout_s=60))
    await eventually(lambda: unanswered(session) == 1, "the request")
    await server.kill()
    with pytest.raises(SessionLost):
        await request


# What must not end the read loop.


async def test_a_callback_that_raises_is_logged_and_the_next_message_comes(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []

    def fail_once(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        got.append(data)
        if len(got) == 1:
            raise RuntimeError("a fault of its owner")

    await session.subscribe("a", fail_once)
    session.publish("a", b"1")
    session.publish("a", b"2")
    await eventually(lambda: len(got) == 2, "the second message")
    assert "a fault of its owner" in caplog.text
    assert session.client.is_sound


async def test_a_pong_after_a_flush_gave_up_does_no_harm(server: EmbeddedServer, session: Session) -> None:
    await echo(session, "echo")
    await freeze(server)
    with pytest.raises(FlushTimeoutError):
        await session.client.flush(timeout=0.1)  # type: ignore[arg-type]
    server.resume()
    assert await session.request("echo", b"a") == b"a"
    await session.client.flush()
    assert session.client.is_sound


# The end.


async def test_closing_leaves_no_task_and_no_socket(server: EmbeddedServer) -> None:
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    session = await Session.connect(Endpoint(server.connect_url))
    await session.subscribe("a", lambda *_: None)
    assert open_sockets() == sockets + 1
    await session.close()
    await session.close()
    assert asyncio.all_tasks() == tasks
    assert open_sockets() == sockets


async def test_what_was_published_before_closing_arrives(server: EmbeddedServer, session: Session) -> None:
    got: list[bytes] = []
    await session.subscribe("a", lambda subject, reply, data, headers: got.append(data))
    await session.flushed()
    await session.client.flush()
    other = await Session.connect(Endpoint(server.connect_url))
    for _ in range(20):
        other.publish("a", b"x" * MESSAGE_BYTES_MAX)
    await other.close()
    await eventually(lambda: len(got) == 20, "everything")


async def test_a_closed_session_takes_nothing(server: EmbeddedServer) -> None:
    session = await Session.connect(Endpoint(server.connect_url))
    await session.close()
    with pytest.raises(SessionLost):
        session.publish("a", b"")
    with pytest.raises(SessionLost):
        await session.request("a")
    with pytest.raises(SessionLost):
        await session.subscribe("a", lambda *_: None)
    with pytest.raises(SessionLost):
        await session.flushed()


async def test_everyone_is_told_of_the_loss_once_even_if_one_raises(server: EmbeddedServer) -> None:
    session = await Session.connect(Endpoint(server.connect_url))
    await session.subscribe("silent", lambda *_: None)
    told: list[str] = []

    def tell(name: str) -> None:
        told.append(name)
        if name in ("reply 1", "hook 1"):
            raise RuntimeError("a fault of its owner")

    for number in (1, 2, 3):
        session.request_with("silent", b"", lambda data, headers, number=number: tell(f"reply {number}"))  # type: ignore[misc]
        session.when_lost(lambda number=number: tell(f"hook {number}"))  # type: ignore[misc]
    await server.kill()
    await asyncio.wait_for(session.lost.wait(), 5)
    await session.close()
    assert told == ["reply 1", "reply 2", "reply 3", "hook 1", "hook 2", "hook 3"]
    session.when_lost(lambda: tell("late"))
    assert told[-1] == "late"


async def test_a_killed_server_is_noticed_at_once(server: EmbeddedServer, session: Session) -> None:
    await server.kill()
    await asyncio.wait_for(session.lost.wait(), 1)


async def test_writing_into_a_broken_connection_is_silent(server: EmbeddedServer, session: Session) -> None:
    await server.kill()
    while not session.is_lost:
        session.publish("a", b"x" * 1000)
        await asyncio.sleep(0)
    for _ in range(20):
        session.client.write(b"PING\r\n")


async def test_a_frozen_server_is_noticed_and_left_behind(server: EmbeddedServer) -> None:
    sockets = open_sockets()
    tasks = asyncio.all_tasks()
    session = await Session.connect(Endpoint(server.connect_url))
    await freeze(server)
    try:
        began = time.monotonic()
        for _ in range(40):
            # More than the socket takes: nothing may wait for it to be taken.
            session.publish("a", b"x" * MESSAGE_BYTES_MAX)
        await asyncio.wait_for(session.lost.wait(), 10)
        assert time.monotonic() - began > 1
        began = time.monotonic()
        await session.close()
        assert time.monotonic() - began < 1
        assert asyncio.all_tasks() == tasks
        assert open_sockets() == sockets
    finally:
        server.resume()


async def test_closing_a_session_to_a_frozen_server_does_not_wait_for_it(server: EmbeddedServer) -> None:
    sockets = open_sockets()
    tasks = asyncio.all_tasks()
    session = await Session.connect(Endpoint(server.connect_url))
    await freeze(server)
    try:
        for _ in range(40):
            session.publish("a", b"x" * MESSAGE_BYTES_MAX)
        await asyncio.wait_for(session.close(), 4)
        assert asyncio.all_tasks() == tasks
        assert open_sockets() == sockets
    finally:
        server.resume()


@pytest.mark.parametrize("loop", ["_reading_task", "_ping_interval_task"])
async def test_the_watchdog_ends_a_session_whose_client_is_half_dead(session: Session, loop: str) -> None:
    getattr(session.client, loop).cancel()
    await asyncio.wait_for(session.lost.wait(), 3)
    assert session.client.is_connected is False or "read loop" in session.last_error


async def test_the_servers_complaint_is_the_reason(session: Session) -> None:
    session.client.write(b"NONSENSE\r\n")
    await asyncio.wait_for(session.lost.wait(), 3)
    assert "unknown protocol operation" in session.last_error.lower()


# Connecting.


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def test_a_wrong_token_is_told_clearly_and_not_shown(server: EmbeddedServer) -> None:
    sockets = open_sockets()
    secret = secrets.token_hex(8)
    endpoint = Endpoint(server.url.replace("//", f"//{secret}@"))
    with pytest.raises(Unreachable, match=r"the server refused the credentials \(authorization violation\)") as caught:
        await Session.connect(endpoint)
    for text in (shown(caught.value), repr(endpoint), caught.value.url):
        assert secret not in text
        assert server.url in text
    endpoint = Endpoint(server.url, user="me", password=secret)
    with pytest.raises(Unreachable, match="refused") as caught:
        await Session.connect(endpoint)
    assert secret not in shown(caught.value) + repr(endpoint)
    assert open_sockets() == sockets


async def test_no_part_of_a_strange_url_is_shown() -> None:
    secret = secrets.token_hex(8)
    with pytest.raises(Unreachable, match="invalid connect url") as caught:
        await Session.connect(Endpoint(f"nats://me:{secret}/{secret}@127.0.0.1:4222"))
    assert secret not in shown(caught.value)


async def test_every_url_of_a_list_is_shown_without_its_secret() -> None:
    assert Endpoint("nats://a@h:1,nats://b:c@h:2,d@h:3").shown_url == "nats://h:1,nats://h:2,h:3"


async def test_nobody_listening_is_told_at_once(server: EmbeddedServer) -> None:
    await server.stop()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="Connect call failed"):
        await Session.connect(Endpoint(server.connect_url))
    assert time.monotonic() - began < 1.0


async def test_the_server_that_answers_is_found_among_several(server: EmbeddedServer, tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "other", sync="lazy", token=server.token) as other:
        await other.stop()
        for _ in range(4):
            session = await Session.connect(Endpoint(f"{other.connect_url},{server.connect_url}"))
            await session.close()


async def test_another_server_is_found_beside_one_that_takes_connections_and_says_nothing(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EmbeddedServer(tmp_path / "other", sync="lazy", token=server.token) as other:
        sockets = open_sockets()
        await freeze(other)
        try:
            # The last is tried first then.
            monkeypatch.setattr(session_module.random, "shuffle", lambda servers: None)
            monkeypatch.setattr(session_module, "SERVER_TIMEOUT_S", 0.3)
            session = await Session.connect(Endpoint(f"{server.connect_url},{other.connect_url}"))
            assert session.client.is_connected
            await session.close()
        finally:
            other.resume()
        assert open_sockets() == sockets


async def test_a_server_that_says_nothing_is_unreachable_in_time(server: EmbeddedServer) -> None:
    sockets = open_sockets()
    await freeze(server)
    try:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="says nothing"):
            await Session.connect(Endpoint(server.connect_url))
        assert time.monotonic() - began < 6.0
    finally:
        server.resume()
    assert open_sockets() == sockets


async def test_a_cancelled_connect_leaves_nothing(server: EmbeddedServer) -> None:
    sockets, tasks = open_sockets(), asyncio.all_tasks()
    await freeze(server)
    try:
        connecting = asyncio.create_task(Session.connect(Endpoint(server.connect_url)))
        await eventually(lambda: open_sockets() > sockets, "the socket")
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
    finally:
        server.resume()
    assert connecting.cancelled()
    assert asyncio.all_tasks() == tasks
    assert open_sockets() == sockets


async def test_a_credentials_file_without_credentials_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    file = tmp_path / "some.creds"
    for text in ("", "-----BEGIN USER NKEY SEED-----\nS\n", "-----BEGIN NATS USER JWT-----\ne\n"):
        file.write_text(text)
        with pytest.raises(Unreachable, match="no credentials file"):
            await Session.connect(Endpoint(server.url, credentials=str(file)))
    with pytest.raises(Unreachable, match="No such file"):
        await Session.connect(Endpoint(server.url, credentials=str(tmp_path / "none")))


async def test_a_websocket_url_is_refused_with_a_hint() -> None:
    with pytest.raises(Unreachable, match="use nats://"):
        await Session.connect(Endpoint("ws://127.0.0.1:1"))


async def test_a_cancellation_that_the_work_swallows_still_ends_who_waits_for_it() -> None:
    begun = asyncio.Event()

    async def swallows() -> str:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "as if nothing had been"

    waiting = asyncio.create_task(cancellable(swallows()))
    await begun.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def test_a_request_of_nats_py_that_is_cancelled_as_its_reply_comes_is_cancelled(session: Session) -> None:
    info = session.client.jetstream().account_info
    swallowed = 0
    for turns in range(120):
        asking = asyncio.create_task(info())
        for _ in range(turns % 40):
            await asyncio.sleep(0)
        if not asking.done():
            asking.cancel()
            await asyncio.wait([asking])
            swallowed += not asking.cancelled()
    assert swallowed == 0
