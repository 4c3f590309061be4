"""The JetStream API of the server, as far as it is used here: plain requests with JSON, over a session.

Errors keep the server's code: 10059 no such stream, 10014 no such consumer, 10058 stream name in use, 10037 no message.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError, StorageUnavailable

from infinity_matrix_bus.codec import decode_record, encode
from infinity_matrix_bus.session import NoResponders, RequestTimeout, Session, SessionLost

API_PREFIX = "$JS.API"
TIMEOUT_S = 5.0
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
NO_MESSAGE = 10037
NAME_IN_USE = 10058
#: A cluster elects a leader; nothing was done.
TEMPORARILY_UNAVAILABLE = 10008
ELECTION_RETRY_S = 0.25
#: What the server answers to at most in one multi_last; more is error 413.
MULTI_LAST_MAX = 1024
#: A multi_last goes on in a further request beyond this; the server itself would end an answer, as if it were whole,
#: at its `max_pending`, and cut off who is slow to take that much.
PAGE_BYTES = 8 * 1024 * 1024


class JetStreamError(InfinityMatrixError):
    """Raised when the server refuses a JetStream request; `code` is its own err_code."""

    def __init__(self, request: str, code: int, description: str) -> None:
        self.code = code
        self.description = description
        super().__init__(f"{request}: {description} ({code})")


class NoLeader(JetStreamError, StorageUnavailable):
    """Raised when a stream has no leader for now: a cluster elects one within seconds. Try again."""


#: All headers of a message that had none of its own; an eighth of the time that taking any block apart takes.
_STORED_HEADERS = re.compile(
    rb"NATS/1\.0\r\nNats-Stream: [^\r]*\r\nNats-Subject: ([^\r]*)\r\nNats-Sequence: (\d+)\r\n"
    rb"Nats-Time-Stamp: ([^\r]*)\r\nNats-Num-Pending: \d+\r\nNats-Last-Sequence: \d+\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as a stream holds it. `at` is RFC 3339 text, as the server gives it."""

    subject: str
    data: bytes
    sequence: int
    at: str


class JetStreamApi:
    """Requests on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def call(self, request: str, body: Any = None, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """One request, again while a cluster elects a leader; raises JetStreamError, and NoLeader after `timeout_s`.

        Code 503 when the server has no JetStream.
        """
        payload = b"" if body is None else encode(body)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        while True:
            try:
                record = decode_record(await self._session.request(f"{API_PREFIX}.{request}", payload, timeout_s))
            except NoResponders:
                raise JetStreamError(request, 503, "the server has JetStream switched off, or no leader") from None
            error = record.get("error")
            if not error:
                return record
            code, description = int(error.get("err_code", 0)), str(error.get("description", ""))
            if code != TEMPORARILY_UNAVAILABLE:
                raise JetStreamError(request, code, description)
            if loop.time() + ELECTION_RETRY_S > ends_at:
                raise NoLeader(request, code, description)
            await asyncio.sleep(ELECTION_RETRY_S)

    async def create_stream(self, config: dict[str, Any]) -> dict[str, Any]:
        return await self.call(f"STREAM.CREATE.{config['name']}", config)

    async def update_stream(self, config: dict[str, Any]) -> dict[str, Any]:
        return await self.call(f"STREAM.UPDATE.{config['name']}", config)

    async def stream_info(self, stream: str) -> dict[str, Any] | None:
        """The stream's config and state, None when there is no such stream."""
        try:
            return await self.call(f"STREAM.INFO.{stream}")
        except JetStreamError as error:
            if error.code == STREAM_NOT_FOUND:
                return None
            raise

    async def last_sequence(self, stream: str) -> int:
        info = await self.call(f"STREAM.INFO.{stream}")
        return int(info["state"]["last_seq"])

    async def purge(self, stream: str, subject: str) -> int:
        """Deletes the messages on `subject` (wildcards allowed); answers how many."""
        return int((await self.call(f"STREAM.PURGE.{stream}", {"filter": subject})).get("purged", 0))

    async def create_consumer(self, stream: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
        """Creates the consumer, or updates it to this config."""
        body = {"stream_name": stream, "config": {**config, "name": name}}
        return await self.call(f"CONSUMER.CREATE.{stream}.{name}", body)

    async def consumer_info(self, stream: str, name: str) -> dict[str, Any] | None:
        try:
            return await self.call(f"CONSUMER.INFO.{stream}.{name}")
        except JetStreamError as error:
            if error.code == CONSUMER_NOT_FOUND:
                return None
            raise

    async def delete_consumer(self, stream: str, name: str) -> None:
        await self.call(f"CONSUMER.DELETE.{stream}.{name}")

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message on a subject by a leader read: it sees every write confirmed before."""
        return await self._get(stream, {"last_by_subj": subject})

    async def message(self, stream: str, sequence: int) -> StoredMessage | None:
        """The message at that place by a leader read; None when it is gone."""
        return await self._get(stream, {"seq": sequence})

    async def next_message(self, stream: str, sequence: int, pattern: str) -> StoredMessage | None:
        """The first message from a place on that matches, by a leader read; None when there is none."""
        return await self._get(stream, {"seq": sequence, "next_by_subj": pattern})

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Takes one message out; raises JetStreamError when it is gone."""
        await self.call(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})

    async def _get(self, stream: str, which: dict[str, Any]) -> StoredMessage | None:
        try:
            record = await self.call(f"STREAM.MSG.GET.{stream}", which)
        except JetStreamError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        message = record["message"]
        data = base64.b64decode(message.get("data") or "")
        return StoredMessage(message["subject"], data, int(message["seq"]), str(message["time"]))

    async def multi_last(self, stream: str, subjects: list[str]) -> list[StoredMessage] | None:
        """The last message on each subject that matches, in stream order; None when they are more than 1,024.

        A direct get: on a replicated stream a follower may answer that has not seen the latest writes. Raises
        JetStreamError (NoLeader when there is none, or no such stream), RequestTimeout and SessionLost.
        """
        return await _DirectGet(self._session, stream, subjects).read()

    async def paged(self, request: str, key: str) -> AsyncIterator[Any]:
        """All items of a paged listing, e.g. `paged("CONSUMER.LIST.IM_WORK", "consumers")`."""
        offset = 0
        while True:
            record = await self.call(request, {"offset": offset})
            items = record.get(key) or []
            for item in items:
                yield item
            offset += len(items)
            if not items or offset >= int(record.get("total", 0)):
                return


class _DirectGet:
    """One multi_last: pages of many messages on one inbox, each page ended by a status."""

    def __init__(self, session: Session, stream: str, subjects: list[str]) -> None:
        self._session = session
        self._subject = f"{API_PREFIX}.DIRECT.GET.{stream}"
        self._subjects = subjects
        self._messages: list[StoredMessage] = []
        self._loop = asyncio.get_running_loop()
        self._status: asyncio.Future[bytes] = self._loop.create_future()

    async def read(self) -> list[StoredMessage] | None:
        if not self._subjects:
            return []
        request: dict[str, Any] = {"multi_last": self._subjects, "max_bytes": PAGE_BYTES}
        while True:
            code, _, fields = _read_status(await self._page(request))
            if code == 413:
                return None
            if code == 404 or int(fields.get("nats-num-pending", 0)) == 0:
                return self._messages
            # All pages show the stream as it was at the first.
            request["seq"] = int(fields["nats-last-sequence"]) + 1
            request["up_to_seq"] = int(fields["nats-upto-sequence"])

    async def _page(self, request: dict[str, Any]) -> bytes:
        """Takes one page of messages; answers the status that ended it."""
        self._status = self._loop.create_future()
        token = self._session.request_many_with(self._subject, encode(request), self._receive)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                headers = await self._status
        except TimeoutError:
            raise RequestTimeout(f"no answer on {self._subject} within {TIMEOUT_S:g} s") from None
        finally:
            self._session.forget(token)
        if not headers:
            raise SessionLost("the connection was lost during a read")
        code, description, _ = _read_status(headers)
        if code == 503:
            raise NoLeader(self._subject, code, "no such stream, or it has no leader")
        if code not in (204, 404, 413):
            raise JetStreamError(self._subject, code, description)
        return headers

    def _receive(self, data: bytes | None, headers: bytes | None) -> None:
        if self._status.done():
            return
        if data is None or headers is None:
            self._status.set_result(b"")
        elif headers.startswith(b"NATS/1.0 "):
            self._status.set_result(headers)
        else:
            self._messages.append(_read_stored(data, headers))


def _read_stored(data: bytes, headers: bytes) -> StoredMessage:
    """A message of a direct get; what the server says of it stands in its headers, after the message's own."""
    usual = _STORED_HEADERS.fullmatch(headers)
    if usual is not None:
        return StoredMessage(usual[1].decode(), data, int(usual[2]), usual[3].decode())
    fields = parse_headers(headers)
    return StoredMessage(fields["nats-subject"], data, int(fields["nats-sequence"]), fields.get("nats-time-stamp", ""))


def _read_status(headers: bytes) -> tuple[int, str, dict[str, str]]:
    """(code, description, fields) of a status."""
    line = headers.partition(b"\r\n")[0].decode(errors="replace")
    _, code, *description = line.split(" ", 2)
    return int(code), " ".join(description), parse_headers(headers)


def parse_headers(block: bytes) -> dict[str, str]:
    """A header block as a dict with lower-case names."""
    fields: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        key, separator, value = line.partition(b":")
        if separator:
            fields[key.strip().lower().decode(errors="replace")] = value.strip().decode(errors="replace")
    return fields
