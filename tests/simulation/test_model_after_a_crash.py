"""What a server that was killed forgets, is among what the model of it forgets: work brought back, ids, counts."""

import asyncio
from random import Random

from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import encode
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session

from .conformance import ACK_SETTLES_S
from .substitutes import entered
from .world import ENDPOINT, World

SECOND_NS = 1_000_000_000
WRITE_ONCE = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}
STREAMS = {"LOG": {}, "WORK": {"retention": "workqueue", "duplicate_window": 120 * SECOND_NS}}
LEASE_NS = SECOND_NS
WORKS = ("acked", "held", "purged", "waiting")
#: From the last word of the server to its death; what is older than about 0.2 s is written.
MOMENTS_S = (0.0, 0.02, 0.1, 0.3, 0.0, 0.05)
SEEDS = 150
DOWN_S = 0.5
Answer = tuple[str, ...]


async def prepare(session: Session) -> None:
    """Publishes one of each, takes and acks, holds, purges; all of it is confirmed by the server."""
    api = JetStreamApi(session)
    for name, config in STREAMS.items():
        base = {"name": name, "subjects": [f"{name}.>"], "storage": "file", "allow_direct": True}
        await api.create_stream({**base, **WRITE_ONCE, **config})
    config = {"ack_policy": "explicit", "filter_subject": "WORK.>", "ack_wait": LEASE_NS, "max_deliver": -1}
    await api.create_consumer("WORK", "workers", config)
    await asyncio.sleep(DOWN_S)
    for work in WORKS:
        assert b'"seq"' in await publish(session, work)
    assert b'"seq"' in await session.request("LOG.fact", b"1", 5.0)
    taken = [await take(session) for _ in range(2)]
    assert [work for work, *_ in taken] == ["acked", "held"]
    await ack(session, taken[0][2])
    assert await api.purge("WORK", "WORK.purged") == 1


async def ack(session: Session, reply: str) -> None:
    session.publish(reply, b"+ACK")
    # The server takes acks in beside all else.
    await asyncio.sleep(ACK_SETTLES_S)


async def publish(session: Session, work: str) -> bytes:
    headers = f"NATS/1.0\r\nNats-Msg-Id: {work}\r\n\r\n".encode()
    return await session.request(f"WORK.{work}", b"1", 5.0, headers)


async def take(session: Session) -> tuple[str, int, str]:
    """The next work, how often it was given out, and where it is acked; empty when none comes within a lease."""
    inbox = session.client.new_inbox()
    first: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    def heard(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        if not first.done():
            first.set_result((subject, reply))

    subscription = await session.subscribe(inbox, heard)
    request = encode({"batch": 1, "expires": 2 * LEASE_NS})
    session.publish("$JS.API.CONSUMER.MSG.NEXT.WORK.workers", request, inbox)
    subject, reply = await asyncio.wait_for(first, 10.0)
    await subscription.close()
    return ("", 0, "") if subject == inbox else (subject.removeprefix("WORK."), int(reply.split(".")[4]), reply)


async def look(session: Session) -> Answer:
    """What is there after the crash: facts, the ids of works, and what is given out, how often before."""
    api = JetStreamApi(session)
    fact = await api.last_message("LOG", "LOG.fact")
    answers = [f"fact {fact is not None and fact.sequence}"]
    there = [work for work in WORKS if await api.last_message("WORK", f"WORK.{work}") is not None]
    answers.append(f"there {there}")
    given = []
    while (work := await take(session))[0]:
        given.append(f"{work[0]} for the {work[1]}. time")
        await ack(session, work[2])
    answers += sorted(given)
    for work in WORKS:
        reply = await publish(session, work)
        answers.append(
            f"{work} again: {'known' if b'duplicate' in reply else 'stored' if b'seq' in reply else 'refused'}"
        )
    return tuple(answers)


async def of_the_server(server: EmbeddedServer, moment_s: float) -> Answer:
    session = await Session.connect(Endpoint(server.connect_url))
    try:
        await prepare(session)
        await asyncio.sleep(moment_s)
        await server.kill()
    finally:
        await session.close()
    await server.start()
    session = await Session.connect(Endpoint(server.connect_url))
    try:
        return await look(session)
    finally:
        for name in STREAMS:
            await JetStreamApi(session).call(f"STREAM.DELETE.{name}")
        await session.close()


def of_the_model(seed: int) -> Answer:
    world = World(seed)
    world.streams.faults.kept_acks = 0.5
    answers: list[Answer] = []

    async def life() -> None:
        session = await Session.connect(ENDPOINT)
        await prepare(session)
        await asyncio.sleep(MOMENTS_S[seed % len(MOMENTS_S)])
        world.crash_server(DOWN_S, Random(seed))
        await asyncio.sleep(2 * DOWN_S)
        answers.append(await look(await Session.connect(ENDPOINT)))

    with entered(world.loop, Random(seed)):
        process = world.start("driver", life)
        world.run(3600.0, lambda: bool(answers) or bool(world.loop.errors))
        world.loop.kill(process)
    assert not world.loop.errors
    return answers[0]


async def test_what_a_killed_server_forgets_the_model_can_forget(server: EmbeddedServer) -> None:
    of_model = {of_the_model(seed) for seed in range(SEEDS)}
    assert len(of_model) == 6
    for moment_s in MOMENTS_S:
        answer = await of_the_server(server, moment_s)
        assert answer in of_model, (moment_s, answer, sorted(of_model))
