"""Reads the protocol's two message lines by hand, and leaves every other line to nats-py's own parser.

Messages are all but everything a connection reads. nats-py matches each against regular expressions, deletes it from
the front of a buffer and awaits a coroutine: 3.5 us a message; this takes 1.3 us.
"""

from nats.errors import ProtocolError
from nats.protocol.parser import Parser

_LINE_END = b"\r\n"
_MSG = b"MSG "
_HMSG = b"HMSG "


class DirectParser(Parser):
    """The parser of a `DirectClient`: it calls the client's `receive` for each message."""

    def reset(self) -> None:
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        """Takes in what was read, whatever is split where; raises ProtocolError."""
        buffer = self._rest + data if self._rest else data
        receive = self.nc.receive
        at = 0
        while (line_end := buffer.find(_LINE_END, at)) >= 0:
            body_at = line_end + 2
            is_plain = buffer.startswith(_MSG, at)
            if not is_plain and not buffer.startswith(_HMSG, at):
                await self._parse_line(buffer[at:body_at])
                at = body_at
                continue
            # "MSG <subject> <sid> [reply] <bytes>", "HMSG <subject> <sid> [reply] <header bytes> <all bytes>"
            words = buffer[at:line_end].split()
            try:
                body_end = body_at + int(words[-1])
                headers_end = body_at if is_plain else body_at + int(words[-2])
                if len(buffer) < body_end + 2:
                    break
                has_reply = len(words) == (5 if is_plain else 6)
                sid = int(words[2])
            except (ValueError, IndexError):
                raise ProtocolError("nats: malformed MSG") from None
            at = body_end + 2
            later = receive(
                sid,
                words[1],
                words[3] if has_reply else b"",
                buffer[headers_end:body_end],
                None if is_plain else buffer[body_at:headers_end],
            )
            if later is not None:
                await later
        self._rest = buffer[at:]

    async def _parse_line(self, line: bytes) -> None:
        await super().parse(line)
        if self.buf:
            raise ProtocolError("nats: unknown protocol")
