"""The built-in agent `im-bridge`: any NATS request/reply responder, or micro service, does the work of a task.

The work's JSON is the request, the reply is the result. A service knows nothing of this system, so this agent gives the
outcome, keeps the lease and reads the service's errors for it.
"""

import asyncio
from typing import Any

from infinity_matrix_actors.definition import BRIDGE_AGENT
from infinity_matrix_actors.errors import PayloadTooLarge
from infinity_matrix_bus.api import parse_headers
from infinity_matrix_bus.codec import Undecodable, decode, encode, json_size
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.session import NO_RESPONDERS, Session, SessionLost
from infinity_matrix_bus.subjects import SUBJECT_BYTES_MAX

from infinity_matrix_agents.agent import Agent
from infinity_matrix_agents.failure import Failure
from infinity_matrix_agents.work import Work

#: Requests under way at once in one process.
BRIDGE_CONCURRENCY = 256
#: Of a task without a timeout of its own.
REPLY_TIMEOUT_S = 30.0
#: With a timeout of its own the coordinator closes the attempt, and knows then that the service may have done it. Only
#: if nobody does that is the request given up here.
CLOSING_S = 5.0
ERROR_BODY_MAX = 1000
_LARGE = ("input", "config", "upstream", "compensates", "cause")
#: What a JSON text begins with; anything else is the text itself.
_JSON_BEGINS = b'{["-0123456789tfn \t\r\n'


class InvalidService(ValueError):
    """The subject of a service is none that may be asked."""


def bridge_agent(connection: Connection, prefix: str = "im") -> Agent:
    """The agent that asks services over `connection`; nothing below `prefix` is a service."""

    async def handle(work: Work) -> Any:
        service = work.record.get("service")
        try:
            subject = check_service(service, prefix)
        except InvalidService as error:
            raise Failure("InvalidService", str(error), retryable=False) from None
        limit_s = REPLY_TIMEOUT_S if work.timeout is None else work.timeout + CLOSING_S
        try:
            session = connection.session
            data, headers = await _ask(session, subject, _request(work, session.max_payload_bytes), limit_s)
        except SessionLost:
            raise Failure("SessionLost", f"the connection broke; whether {subject} was asked is unknown") from None
        except PayloadTooLarge as error:
            raise Failure("PayloadTooLarge", str(error), retryable=False) from None
        if headers.startswith(NO_RESPONDERS):
            raise Failure("NoResponders", f"nobody answers on {subject}: start the service")
        _raise_error(subject, parse_headers(headers) if headers else {}, data)
        return read_reply(data)

    return Agent.built_in(BRIDGE_AGENT, handle, concurrency=BRIDGE_CONCURRENCY)


def _request(work: Work, bytes_max: int) -> bytes:
    """The work with values where references to artifacts stood, as a service need not know them, if they fit a message.

    What does not fit is left as it came: most services look at little of what they are given.
    """
    values = {key: getattr(work, key) for key in _LARGE if key in work.record}
    try:
        return encode({**work.record, **values}, "the work", bytes_max)
    except PayloadTooLarge:
        record = work.record
    for key, value in values.items():
        larger = {**record, key: value}
        if json_size(larger) <= bytes_max:
            record = larger
    return encode(record, "the work", bytes_max)


def check_service(subject: object, prefix: str = "im") -> str:
    """Answers `subject` when a task may ask there; raises InvalidService for what is none, or the system's own."""
    if not isinstance(subject, str) or not subject:
        raise InvalidService("the service has no subject: write the agent as service:<subject>")
    if len(subject) > SUBJECT_BYTES_MAX or not all("!" <= letter <= "~" for letter in subject):
        raise InvalidService(
            f"service:{subject} is no subject: at most {SUBJECT_BYTES_MAX} characters of ASCII without white space"
        )
    tokens = subject.split(".")
    if any(token in ("", "*", ">") for token in tokens):
        raise InvalidService(f"service:{subject} is not one subject: no empty token, no wildcard")
    if subject.startswith(("$", "_INBOX.")) or f"{subject}.".startswith(f"{prefix}."):
        raise InvalidService(f"service:{subject} is a subject of the system itself")
    return subject


def read_reply(data: bytes) -> Any:
    """The value of a reply: of its JSON, else its text; None for an empty one."""
    if not data:
        return None
    if data[0] in _JSON_BEGINS:
        try:
            return decode(data)
        except Undecodable:
            pass
    return data.decode(errors="replace")


def _raise_error(subject: str, headers: dict[str, str], data: bytes) -> None:
    """Raises the failure that a micro service says there is: of 4xx nothing is gained by asking again."""
    text, code = headers.get("nats-service-error", ""), headers.get("nats-service-error-code", "")
    if not text and not code:
        return
    body = data.decode(errors="replace")[:ERROR_BODY_MAX]
    message = ": ".join(part for part in (f"{subject} answered {code}".rstrip(), text, body) if part)
    raise Failure("ServiceError", message, retryable=not (len(code) == 3 and code.startswith("4")))


async def _ask(session: Session, subject: str, payload: bytes, limit_s: float) -> tuple[bytes, bytes]:
    """The reply to a request and its headers; raises SessionLost, PayloadTooLarge, and a Failure after `limit_s`."""
    future: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()

    def settle(data: bytes | None, headers: bytes | None) -> None:
        if future.done():
            return
        if data is None:
            future.set_exception(SessionLost("the connection was lost while waiting for a reply"))
        else:
            future.set_result((data, headers or b""))

    token = session.request_with(subject, payload, settle)
    try:
        async with asyncio.timeout(limit_s):
            return await future
    except TimeoutError:
        # A subject that this process may not publish to is told apart from the request, and in lower case.
        hint = f": {session.last_error}" if subject.lower() in session.last_error else ""
        raise Failure("NoReply", f"no reply on {subject} within {limit_s:g} s{hint}") from None
    finally:
        session.forget(token)
