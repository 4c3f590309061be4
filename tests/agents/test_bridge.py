"""The bridge against real services: bare responders and NATS micro services."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import nats.micro
import pytest
from bench_of_agents import Bench
from infinity_matrix_actors.definition import BRIDGE_AGENT
from infinity_matrix_agents import bridge
from infinity_matrix_agents.bridge import InvalidService, bridge_agent, check_service, read_reply
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.micro.request import Request, ServiceError

SUBJECT = "prices.lookup"


@pytest.fixture
async def services(bench: Bench) -> AsyncIterator[Nats]:
    """A client that offers services; the bridge is served."""
    await bench.serve(bridge_agent(bench.connection))
    client = await nats.connect(bench.url)
    try:
        yield client
    finally:
        await client.close()


async def answer(services: Nats, reply: Callable[[Msg], Awaitable[None]], subject: str = SUBJECT) -> None:
    await services.subscribe(subject, cb=reply)
    await services.flush()


async def test_a_responder_is_given_the_work_and_its_json_is_the_result(bench: Bench, services: Nats) -> None:
    seen: list[Any] = []

    async def reply(message: Msg) -> None:
        seen.append(json.loads(message.data))
        await message.respond(b'{"price": 12.5}')

    await answer(services, reply)
    work = await bench.publish(BRIDGE_AGENT, {"item": "tea"}, service=SUBJECT, input={"shop": 7})
    outcome = await bench.outcome(work)
    assert outcome["result"] == {"price": 12.5}
    assert seen == [work]


async def test_a_reply_that_is_no_json_is_the_text(bench: Bench, services: Nats) -> None:
    async def reply(message: Msg) -> None:
        await message.respond("it is 12,50 €".encode())

    await answer(services, reply)
    assert (await bench.done(BRIDGE_AGENT, service=SUBJECT))["result"] == "it is 12,50 €"


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", None),
        (b"true", True),
        (b" 3", 3),
        (b'"x"', "x"),
        (b"true or false", "true or false"),
        (b"[1, 2", "[1, 2"),
        (b"1e999", "1e999"),
        (b"NaN", "NaN"),
        # One letter is also a number in msgpack.
        (b"h", "h"),
        (b"\xff\xfe", "��"),
    ],
)
def test_a_reply_is_read_as_json_or_else_as_text(data: bytes, value: Any) -> None:
    assert read_reply(data) == value


async def test_a_micro_service_is_called_as_it_is(bench: Bench, services: Nats) -> None:
    async def handle(request: Request) -> None:
        work = json.loads(request.data)
        await request.respond(json.dumps({"doubled": work["config"]["n"] * 2}).encode())

    service = await nats.micro.add_service(services, name="doubler", version="1.0.0")
    await service.add_endpoint(name="double", subject="math.double", handler=handle)
    await services.flush()
    assert (await bench.done(BRIDGE_AGENT, {"n": 21}, service="math.double"))["result"] == {"doubled": 42}
    await service.stop()


@pytest.mark.parametrize(
    ("code", "is_retryable"), [("404", False), ("400", False), ("503", True), ("4", True), ("", True)]
)
async def test_a_service_error_is_a_failure_that_may_be_retried_unless_it_is_4xx(
    bench: Bench, services: Nats, code: str, is_retryable: bool
) -> None:
    async def reply(message: Msg) -> None:
        headers = {"Nats-Service-Error": "no such item", "Nats-Service-Error-Code": code}
        await services.publish(message.reply, b"tea", headers=headers)

    await answer(services, reply)
    error = (await bench.done(BRIDGE_AGENT, service=SUBJECT))["error"]
    assert error == {
        "type": "ServiceError",
        "message": f"{SUBJECT} answered {code}".rstrip() + ": no such item: tea",
        "retryable": is_retryable,
    }


async def test_what_a_micro_service_raises_is_a_failure(bench: Bench, services: Nats) -> None:
    async def handle(request: Request) -> None:
        raise ServiceError("409", "taken already")

    service = await nats.micro.add_service(services, name="booking", version="1.0.0")
    await service.add_endpoint(name="book", handler=handle)
    await services.flush()
    error = (await bench.done(BRIDGE_AGENT, service="book"))["error"]
    assert (error["type"], error["retryable"]) == ("ServiceError", False)
    assert "409" in error["message"]
    assert "taken already" in error["message"]
    await service.stop()


async def test_without_a_service_the_attempt_fails_at_once_and_may_be_retried(bench: Bench, services: Nats) -> None:
    began = time.monotonic()
    error = (await bench.done(BRIDGE_AGENT, service="nobody.here"))["error"]
    assert (error["type"], error["retryable"]) == ("NoResponders", True)
    assert "nobody.here" in error["message"]
    assert time.monotonic() - began < 5.0


async def test_a_service_that_says_nothing_is_waited_for_no_longer_than_the_timeout(
    bench: Bench, services: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def reply(message: Msg) -> None:
        asked.set()

    await answer(services, reply)
    # No coordinator knows this execution, so none closes the attempt; here the bridge gives up by itself.
    monkeypatch.setattr(bridge, "CLOSING_S", 0.1)
    began = time.monotonic()
    error = (await bench.done(BRIDGE_AGENT, service=SUBJECT, timeout=0.3))["error"]
    assert asked.is_set()
    assert (error["type"], error["retryable"]) == ("NoReply", True)
    assert 0.4 <= time.monotonic() - began < 5.0


async def test_without_a_timeout_a_reply_has_half_a_minute(
    bench: Bench, services: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reply(message: Msg) -> None:
        return

    await answer(services, reply)
    assert bridge.REPLY_TIMEOUT_S == 30.0
    monkeypatch.setattr(bridge, "REPLY_TIMEOUT_S", 0.2)
    error = (await bench.done(BRIDGE_AGENT, service=SUBJECT))["error"]
    assert error["type"] == "NoReply"
    assert "0.2 s" in error["message"]


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.STREAM.DELETE.IM_WORK",
        "$SYS.REQ.SERVER.PING",
        "$KV.IM_INSTALLATION.secret",
        "im.api.cancel",
        "im",
        "_INBOX.abc.1",
        "a b",
        "a.*",
        "a.>",
        "a..b",
        ".a",
        "a.",
        "",
        None,
        7,
        "a\r\nPUB b 0",
        "é",
        "a" * 513,
    ],
)
def test_a_subject_that_is_none_or_the_systems_own_is_refused(subject: Any) -> None:
    with pytest.raises(InvalidService):
        check_service(subject)


@pytest.mark.parametrize("subject", ["prices", "prices.lookup-v2", "immense.x", "im2.api", "a.$b"])
def test_any_other_subject_is_a_service(subject: str) -> None:
    assert check_service(subject) == subject


async def test_a_subject_of_the_system_is_not_asked_and_not_retried(bench: Bench, services: Nats) -> None:
    error = (await bench.done(BRIDGE_AGENT, service="$JS.API.INFO"))["error"]
    assert (error["type"], error["retryable"]) == ("InvalidService", False)


async def test_many_services_are_asked_at_once(bench: Bench, services: Nats) -> None:
    count = 40
    waiting: list[Msg] = []
    everyone = asyncio.Event()

    async def reply(message: Msg) -> None:
        waiting.append(message)
        if len(waiting) == count:
            everyone.set()

    await answer(services, reply)
    works = [await bench.publish(BRIDGE_AGENT, service=SUBJECT, task=f"t{number}") for number in range(count)]
    async with asyncio.timeout(10.0):
        await everyone.wait()
    for message in waiting:
        await message.respond(json.dumps(json.loads(message.data)["task"]).encode())
    assert [(await bench.outcome(work))["result"] for work in works] == [f"t{number}" for number in range(count)]
