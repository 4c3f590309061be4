"""The parser reads what nats-py's own reads, however the bytes are split."""

import random
from typing import Any

import pytest
from infinity_matrix_bus.direct_parser import DirectParser
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

HEADERS = b"NATS/1.0\r\nName: value\r\n\r\n"
LINES = (
    b"PING\r\n",
    b"PONG\r\n",
    b"+OK\r\n",
    b"-ERR 'Some Complaint'\r\n",
    b'INFO {"max_payload":1}\r\n',
    b"PING \r\n",
)


class Client:
    """What a parser calls, written down."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def receive(self, *message: Any) -> None:
        self.heard.append(message)

    async def _process_msg(self, *message: Any) -> None:
        self.heard.append(message)

    async def _process_ping(self) -> None:
        self.heard.append(("ping",))

    async def _process_pong(self) -> None:
        self.heard.append(("pong",))

    async def _process_err(self, error: str) -> None:
        self.heard.append(("error", error))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.heard.append(("info", info))


def conversation(chance: random.Random) -> bytes:
    wire = b""
    for _ in range(chance.randint(1, 12)):
        body = chance.randbytes(chance.choice([0, 1, 5, 200, 40_000]))
        if chance.random() < 0.3:
            body = b"MSG a 1 2\r\n" + body + b"\r\nPING\r\n"
        reply = chance.choice([b"", b"reply.to "])
        match chance.randint(0, 2):
            case 0:
                wire += b"MSG a.subject 12 %s%d\r\n%s\r\n" % (reply, len(body), body)
            case 1:
                size = len(HEADERS) + len(body)
                wire += b"HMSG a.subject 12 %s%d %d\r\n%s%s\r\n" % (reply, len(HEADERS), size, HEADERS, body)
            case _:
                wire += chance.choice(LINES)
    return wire


@pytest.mark.parametrize("seed", range(100))
async def test_both_parsers_hear_the_same_however_it_is_split(seed: int) -> None:
    chance = random.Random(seed)
    wire = conversation(chance)
    expected, client = Client(), Client()
    theirs, ours = Parser(expected), DirectParser(client)
    at = 0
    while at < len(wire):
        size = chance.choice([1, 2, 3, 7, 50, 1_000, 100_000])
        await theirs.parse(wire[at : at + size])
        await ours.parse(wire[at : at + size])
        assert client.heard == expected.heard
        at += size
    assert client.heard


@pytest.mark.parametrize(
    "line", [b"MSG a b 1\r\n\r\n\r\n", b"MSG a 1 x\r\n", b"MSG\r\n", b"HMSG 1\r\n", b"NONSENSE\r\n"]
)
async def test_what_is_no_protocol_ends_the_connection(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        await DirectParser(Client()).parse(line)
