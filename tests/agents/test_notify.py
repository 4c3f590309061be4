"""The agent that tells people, against a real SMTP server on loopback and a real HTTP server behind Apprise."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from bench_of_agents import Bench
from infinity_matrix_actors.definition import NOTIFY_AGENT
from infinity_matrix_agents import mail, notify
from infinity_matrix_agents.mail import MailNotConfigured, MailServer, is_address
from infinity_matrix_agents.notify import notify_agent
from infinity_matrix_bus.subjects import shard_of
from smtp_mailbox import AnyPort, Mailbox

TEAM = "ops-team@example.com"
ON_ERROR = {
    "recipients": [TEAM],
    "event": "on_error",
    "error": {"type": "NoStock", "message": "sold out", "task": "load"},
}


@pytest.fixture
async def notifying(bench: Bench) -> Bench:
    await bench.serve(notify_agent(bench.connection))
    return bench


async def test_a_mail_says_what_failed_and_where_to_look(notifying: Bench, mailbox: Mailbox) -> None:
    outcome = await notifying.done(NOTIFY_AGENT, ON_ERROR)
    assert outcome["result"] == {"sent": [TEAM], "already": [], "not_configured": [], "failed": []}
    [mail_] = mailbox.mails
    assert mailbox.recipients == [TEAM]
    assert (mail_["From"], mail_["To"]) == ("workflows@example.com", TEAM)
    assert mail_["Subject"] == "w1: task load failed"
    text = mail_.get_content()
    for part in ("e1", "w1", "load", "NoStock: sold out", "on_error", "imx status e1"):
        assert part in text


async def test_a_title_and_a_message_of_ones_own_are_sent_as_they_are(notifying: Bench, mailbox: Mailbox) -> None:
    config = {**ON_ERROR, "title": "Übel\r\nBcc: all@example.com", "message": "Bitte ansehen: ärgerlich."}
    await notifying.done(NOTIFY_AGENT, config)
    [mail_] = mailbox.mails
    # What was a line break cannot make a header of what follows it.
    assert mail_["Subject"] == "Übel Bcc: all@example.com"
    assert mail_["Bcc"] is None
    assert mail_.get_content().startswith("Bitte ansehen: ärgerlich.")


async def test_an_event_is_told_to_a_recipient_once(notifying: Bench, mailbox: Mailbox) -> None:
    first = await notifying.done(NOTIFY_AGENT, ON_ERROR, task="n1")
    again = await notifying.done(NOTIFY_AGENT, {**ON_ERROR, "recipients": [TEAM, "b@example.com"]}, task="n2")
    other = await notifying.done(NOTIFY_AGENT, {**ON_ERROR, "event": "on_task_failure:load"}, task="n3")
    elsewhere = await notifying.done(NOTIFY_AGENT, ON_ERROR, execution="e2")
    assert first["result"]["sent"] == [TEAM]
    assert (again["result"]["sent"], again["result"]["already"]) == (["b@example.com"], [TEAM])
    assert other["result"]["sent"] == elsewhere["result"]["sent"] == [TEAM]
    assert mailbox.recipients == [TEAM, "b@example.com", TEAM, TEAM]


async def test_of_ten_that_tell_at_once_one_sends(notifying: Bench, mailbox: Mailbox) -> None:
    works = [await notifying.publish(NOTIFY_AGENT, ON_ERROR, task=f"n{number}") for number in range(10)]
    results = [(await notifying.outcome(work))["result"] for work in works]
    assert sum(result["sent"] == [TEAM] for result in results) == 1
    assert sum(result["already"] == [TEAM] for result in results) == 9
    assert mailbox.recipients == [TEAM]


async def test_a_claim_is_a_signal_that_holds_no_address(notifying: Bench, mailbox: Mailbox) -> None:
    stored: list[tuple[str, bytes]] = []
    subscription = await notifying.connection.session.subscribe(
        f"im.fact.{shard_of('e1', notifying.shards)}.e1.signal.im-notified.*",
        lambda subject, reply, data, headers: stored.append((subject, data)),
    )
    await notifying.done(NOTIFY_AGENT, ON_ERROR)
    await subscription.close()
    [(subject, data)] = stored
    assert json.loads(data).keys() == {"event", "by"}
    assert "example" not in subject


async def test_a_recipient_that_is_named_twice_gets_one_mail(notifying: Bench, mailbox: Mailbox) -> None:
    outcome = await notifying.done(NOTIFY_AGENT, {**ON_ERROR, "recipients": [TEAM, TEAM]})
    assert outcome["result"]["sent"] == mailbox.recipients == [TEAM]


async def test_a_refused_recipient_keeps_no_other_from_being_told(notifying: Bench, mailbox: Mailbox) -> None:
    mailbox.refused = {"gone@example.com"}
    config = {**ON_ERROR, "recipients": ["gone@example.com", "nobody", TEAM]}
    result = (await notifying.done(NOTIFY_AGENT, config))["result"]
    assert result["sent"] == [TEAM]
    assert result["failed"] == [
        {"recipient": "nobody", "reason": "neither an address nor a URL"},
        {"recipient": "gone@example.com", "reason": "550 no such mailbox"},
    ]


async def test_more_recipients_than_the_limit_are_told_to_have_failed(
    notifying: Bench, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "RECIPIENTS_MAX", 2)
    everyone = [f"p{number}@example.com" for number in range(3)]
    result = (await notifying.done(NOTIFY_AGENT, {**ON_ERROR, "recipients": everyone}))["result"]
    assert result["sent"] == everyone[:2]
    assert [entry["recipient"] for entry in result["failed"]] == everyone[2:]


async def test_nothing_configured_is_a_status_and_a_log_line_and_no_failure(
    notifying: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IM_SMTP_URL", raising=False)
    seen: dict[str, dict[str, Any]] = {}
    both = asyncio.Event()

    def note(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        seen[subject] = json.loads(data)
        if len(seen) == 2:
            both.set()

    session = notifying.connection.session
    subscriptions = [await session.subscribe(pattern, note) for pattern in ("im.status.>", "im.logs.>")]
    outcome = await notifying.done(NOTIFY_AGENT, ON_ERROR)
    assert "error" not in outcome
    [entry] = outcome["result"]["not_configured"]
    assert entry["recipient"] == TEAM
    assert "IM_SMTP_URL" in entry["reason"]
    async with asyncio.timeout(5.0):
        await both.wait()
    for subscription in subscriptions:
        await subscription.close()
    status, line = seen["im.status.w1.e1.t1.progress.1"], seen["im.logs.w1.e1.t1"]
    assert "IM_SMTP_URL" in status["message"]
    assert (line["event"], line["fields"]["recipient"]) == ("not_configured", TEAM)


async def test_a_server_that_is_down_fails_no_work_and_nobody_is_claimed(
    notifying: Bench, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as down:
        down.setattr(mail, "CONNECT_AGAIN_S", 0.01)
        down.setenv("IM_SMTP_URL", "smtp://127.0.0.1:1")
        result = (await notifying.done(NOTIFY_AGENT, ON_ERROR, task="n1"))["result"]
    [entry] = result["failed"]
    assert entry["recipient"] == TEAM
    assert "127.0.0.1:1" in entry["reason"]
    # So it can be told later.
    assert (await notifying.done(NOTIFY_AGENT, ON_ERROR, task="n2"))["result"]["sent"] == [TEAM]


async def test_a_password_is_used_and_a_wrong_one_is_a_reason(
    notifying: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = Mailbox()

    def check(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword) -> AuthResult:
        return AuthResult(success=data.password == b"s3:cret", handled=False)

    options = {"authenticator": check, "auth_required": True, "auth_require_tls": False}
    controller = AnyPort(mailbox, hostname="127.0.0.1", port=0, **options)
    # aiosmtpd warns of each login without TLS; on loopback that is what is tested.
    with pytest.warns(UserWarning, match="Requiring AUTH"):
        controller.start()
        try:
            address = f"127.0.0.1:{controller.port}"
            monkeypatch.setenv("IM_SMTP_URL", f"smtp://bot%40example.com:wrong@{address}")
            wrong = (await notifying.done(NOTIFY_AGENT, ON_ERROR, task="n1"))["result"]
            monkeypatch.setenv("IM_SMTP_URL", f"smtp://bot%40example.com:s3%3Acret@{address}")
            right = (await notifying.done(NOTIFY_AGENT, ON_ERROR, task="n2"))["result"]
        finally:
            controller.stop()
    assert "535" in wrong["failed"][0]["reason"]
    assert right["sent"] == [TEAM]
    assert mailbox.mails[0]["From"] == "bot@example.com"


async def test_a_config_without_an_event_fails_for_good(notifying: Bench) -> None:
    error = (await notifying.done(NOTIFY_AGENT, {"recipients": [TEAM]}))["error"]
    assert (error["type"], error["retryable"]) == ("InvalidNotice", False)


@pytest.fixture
async def webhook() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that takes what Apprise posts: its Apprise URL, and what it got."""
    posted: list[dict[str, Any]] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split()[0])
        posted.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"json://127.0.0.1:{port}/hook?overflow=split", posted


#: Apprise imports what Python 3.13 has no more.
of_apprise = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


@of_apprise
async def test_a_url_is_told_by_apprise_once(notifying: Bench, webhook: tuple[str, list[dict[str, Any]]]) -> None:
    url, posted = webhook
    config = {**ON_ERROR, "recipients": [url], "title": "load failed"}
    first = await notifying.done(NOTIFY_AGENT, config, task="n1")
    again = await notifying.done(NOTIFY_AGENT, config, task="n2")
    assert first["result"]["sent"] == [url]
    assert again["result"]["already"] == [url]
    [message] = posted
    assert message["title"] == "load failed"
    assert "NoStock: sold out" in message["message"]


@of_apprise
async def test_a_url_that_apprise_does_not_know_and_a_service_that_is_down_are_reasons(notifying: Bench) -> None:
    config = {**ON_ERROR, "recipients": ["nosuch://x", "json://127.0.0.1:1"]}
    result = (await notifying.done(NOTIFY_AGENT, config))["result"]
    assert [entry["recipient"] for entry in result["failed"]] == config["recipients"]


async def test_without_apprise_the_result_says_what_to_install(
    notifying: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    result = (await notifying.done(NOTIFY_AGENT, {**ON_ERROR, "recipients": ["slack://token"]}))["result"]
    assert result["not_configured"] == [{"recipient": "slack://token", "reason": notify.APPRISE_HINT}]


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls", "must_encrypt"),
    [
        ("smtp://mail.example.com", "mail.example.com", 25, False, None),
        ("smtp://bot:pa55@mail.example.com", "mail.example.com", 587, False, True),
        ("smtp://bot:pa55@localhost:2525", "localhost", 2525, False, None),
        ("smtps://bot:pa55@mail.example.com", "mail.example.com", 465, True, False),
    ],
)
def test_a_server_is_named_by_a_url(
    monkeypatch: pytest.MonkeyPatch, url: str, host: str, port: int, is_tls: bool, must_encrypt: bool | None
) -> None:
    monkeypatch.setenv("IM_SMTP_URL", url)
    server = MailServer.of_environment()
    assert (server.host, server.port, server.is_tls, server.must_encrypt) == (host, port, is_tls, must_encrypt)
    assert "pa55" not in repr(server)


@pytest.mark.parametrize("url", ["mail.example.com", "http://mail.example.com", "smtp://", "smtp://host:port"])
def test_what_is_no_url_of_a_server_is_not_configured(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("IM_SMTP_URL", url)
    with pytest.raises(MailNotConfigured, match="IM_SMTP_URL"):
        MailServer.of_environment()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(TEAM, True), ("a+b@x", True), ("a@b@c", False), ("a b@c", False), ("a@b\nBcc: c@d", False), ("<a@b>", False)],
)
def test_an_address_is_told_from_what_is_none(text: str, expected: bool) -> None:
    assert is_address(text) is expected
