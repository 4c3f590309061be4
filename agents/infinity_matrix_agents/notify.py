"""The built-in agent `im-notify`: tells people by mail, and everything else that has an Apprise URL.

At most one message goes out for each (execution, event, recipient): who sends it has written so in the log before. A
message that cannot be sent never fails the work, or a mail server that is down would change what becomes of a workflow.
"""

import asyncio
import secrets
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from infinity_matrix_actors.definition import NOTIFY_AGENT
from infinity_matrix_actors.errors import Unreachable
from infinity_matrix_actors.fact import NOTIFIED_SIGNAL
from infinity_matrix_bus.api import JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import Undecodable, decode_record, encode
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.publisher import Fate, read_ack
from infinity_matrix_bus.session import NoResponders, RequestTimeout, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_agents.agent import Agent
from infinity_matrix_agents.failure import Failure
from infinity_matrix_agents.mail import Mailer, MailNotConfigured, MailNotSent, MailServer, is_address
from infinity_matrix_agents.work import Work

if TYPE_CHECKING:
    from apprise import Apprise

NOTIFY_CONCURRENCY = 16
#: Of one notification; those beyond are told to have failed.
RECIPIENTS_MAX = 100
BODY_CHARACTERS_MAX = 20_000
CLAIM_TRIES = 3
CLAIM_TIMEOUT_S = 5.0
URL_TIMEOUT_S = 30.0
APPRISE_HINT = "install Apprise: pip install 'infinity-matrix[apprise]'"
log = get_logger("infinity_matrix.agents")


class NotClaimed(Exception):
    """The log did not confirm in time that this message is ours to send, so it is not sent."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told, and of which event."""

    execution: str
    event: str
    title: str
    body: str

    @classmethod
    def of(cls, work: Work) -> "Notice":
        """The notice that a work's config asks for; raises a Failure when it names no event."""
        config = work.config
        event = str(config.get("event") or "")
        if not event:
            raise Failure("InvalidNotice", "the config has no event", retryable=False)
        error = config.get("error")
        error = error if isinstance(error, dict) else {}
        task = str(error.get("task") or event.partition(":")[2])
        what = f"task {task} failed" if task else "failed"
        reason = ": ".join(str(error[key]) for key in ("type", "message") if error.get(key))
        lines = [f"workflow   {work.workflow}", f"execution  {work.execution}", f"event      {event}"]
        lines += [f"task       {task}"] if task else []
        lines += [f"error      {reason}"] if reason else []
        text = str(config.get("message") or "")
        body = "\n".join([*([text, ""] if text else []), *lines, "", f"imx status {work.execution}"])
        title = str(config.get("title") or f"{work.workflow}: {what}")
        return cls(work.execution, event, title, body[:BODY_CHARACTERS_MAX])

    def key(self, recipient: str) -> str:
        """The same for every message about this event to this recipient: 32 hex digits."""
        return blake2b(f"{self.event}\0{recipient}".encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class Report:
    """What became of each recipient. Those that were not told have a reason."""

    sent: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    not_configured: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("sent", "already", "not_configured", "failed")}


def notify_agent(connection: Connection, prefix: str = "im") -> Agent:
    """The agent that tells people; its claims go to the log over `connection`."""
    subjects = Subjects(prefix)

    async def handle(work: Work) -> dict[str, Any]:
        notice = Notice.of(work)
        report = Report()
        addresses, urls = _sorted_out(work.config.get("recipients"), report)
        claims = _Claims(connection, subjects, work)
        if addresses:
            await _mail(addresses, notice, claims, report)
        if urls:
            await _push(urls, notice, claims, report)
        _tell(work, notice, report)
        return report.result()

    return Agent.built_in(NOTIFY_AGENT, handle, concurrency=NOTIFY_CONCURRENCY)


def _sorted_out(recipients: Any, report: Report) -> tuple[list[str], list[str]]:
    """The addresses and the URLs among the recipients, each once; what is neither goes to the report."""
    listed = recipients if isinstance(recipients, list) else [recipients]
    addresses: list[str] = []
    urls: list[str] = []
    for number, recipient in enumerate(dict.fromkeys(map(str, listed))):
        if number >= RECIPIENTS_MAX:
            reason = f"a notification has at most {RECIPIENTS_MAX} recipients"
            report.failed.append({"recipient": recipient, "reason": reason})
        elif "://" in recipient:
            urls.append(recipient)
        elif is_address(recipient):
            addresses.append(recipient)
        else:
            report.failed.append({"recipient": recipient, "reason": "neither an address nor a URL"})
    return addresses, urls


async def _mail(addresses: list[str], notice: Notice, claims: "_Claims", report: Report) -> None:
    try:
        mailer = Mailer(MailServer.of_environment())
    except MailNotConfigured as problem:
        report.not_configured += [{"recipient": address, "reason": str(problem)} for address in addresses]
        return
    try:
        for number, address in enumerate(addresses):
            try:
                # Connected before it is claimed: while the server is down, nobody has sent it.
                await mailer.ready()
            except MailNotSent as problem:
                report.failed += [{"recipient": left, "reason": str(problem)} for left in addresses[number:]]
                return
            try:
                if await claims.is_mine(notice, address):
                    message_id = f"<{notice.execution}.{notice.key(address)}@infinity-matrix>"
                    await mailer.send(address, notice.title, notice.body, message_id)
                    report.sent.append(address)
                else:
                    report.already.append(address)
            except (MailNotSent, NotClaimed) as problem:
                report.failed.append({"recipient": address, "reason": str(problem)})
    finally:
        await mailer.close()


async def _push(urls: list[str], notice: Notice, claims: "_Claims", report: Report) -> None:
    for url in urls:
        try:
            # In a thread: the first time Apprise imports all it can talk to, and others work in this process.
            service = await asyncio.to_thread(_service, url)
            if service is None:
                report.failed.append({"recipient": url, "reason": "Apprise knows no such URL"})
            elif not await claims.is_mine(notice, url):
                report.already.append(url)
            elif await _pushed(service, notice):
                report.sent.append(url)
            else:
                reason = "the service did not take it; the logger 'apprise' says why"
                report.failed.append({"recipient": url, "reason": reason})
        except ImportError:
            report.not_configured.append({"recipient": url, "reason": APPRISE_HINT})
        except NotClaimed as problem:
            report.failed.append({"recipient": url, "reason": str(problem)})
        except TimeoutError:
            report.failed.append({"recipient": url, "reason": f"no answer within {URL_TIMEOUT_S:g} s"})
        except Exception as error:
            # Of the many services that Apprise knows: none may keep the others from being told.
            log.exception("service_failed", execution=notice.execution)
            report.failed.append({"recipient": url, "reason": f"{type(error).__name__}: {error}"})


def _service(url: str) -> "Apprise | None":
    """What Apprise makes of a URL; None when it knows no such one. Raises ImportError without Apprise."""
    from apprise import Apprise

    service = Apprise()
    return service if service.add(url) else None


async def _pushed(service: "Apprise", notice: Notice) -> bool:
    async with asyncio.timeout(URL_TIMEOUT_S):
        return bool(await service.async_notify(title=notice.title, body=notice.body))


def _tell(work: Work, notice: Notice, report: Report) -> None:
    """Log lines, and a status event when somebody was not told. Of a URL the scheme only: the rest may be a secret."""
    for event, entries in (("not_configured", report.not_configured), ("not_sent", report.failed)):
        for entry in entries:
            scheme, separator, _ = entry["recipient"].partition("://")
            shown = f"{scheme}://..." if separator else scheme
            work.log.warning(event, about=notice.event, recipient=shown, reason=entry["reason"], title=notice.title)
    untold = len(report.not_configured) + len(report.failed)
    if untold:
        reason = (report.not_configured + report.failed)[0]["reason"]
        work.report_progress(100, f"{untold} of the recipients of {notice.event} not told: {reason}")


class _Claims:
    """Who may send a message: whoever wrote its claim, which the log takes once."""

    def __init__(self, connection: Connection, subjects: Subjects, work: Work) -> None:
        self._connection = connection
        self._subjects = subjects
        fact = subjects.parse_fact(work.record["reply_to"])
        if fact is None:
            raise Failure("InvalidWork", "reply_to is no subject of an outcome", retryable=False)
        self._shard = fact.shard
        self._execution = work.execution

    async def is_mine(self, notice: Notice, recipient: str) -> bool:
        """Whether this call has to send the message; False when somebody did. Raises NotClaimed."""
        subject = self._subjects.signal(self._shard, self._execution, NOTIFIED_SIGNAL, notice.key(recipient))
        token = secrets.token_hex(8)
        payload = encode({"event": notice.event, "by": token})
        reason = ""
        for _ in range(CLAIM_TRIES):
            try:
                session = await self._connection.connected(CLAIM_TIMEOUT_S)
                ack = read_ack(await session.request(subject, payload, CLAIM_TIMEOUT_S), None)
                if ack.fate is Fate.STORED:
                    return True
                if ack.fate is Fate.TAKEN:
                    return await self._by(subject) == token
                reason = ack.reason
            except (SessionLost, RequestTimeout, NoResponders, Unreachable, JetStreamError) as error:
                # It may have been stored; then the next try finds its own token there.
                reason = str(error)
        raise NotClaimed(f"the log did not confirm that nobody else sends it: {reason}")

    async def _by(self, subject: str) -> str:
        stream = self._subjects.facts_stream(self._shard)
        stored = await JetStreamApi(self._connection.session).last_message(stream, subject)
        try:
            return str(decode_record(stored.data).get("by")) if stored is not None else ""
        except Undecodable:
            return ""
