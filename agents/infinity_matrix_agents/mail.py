"""Mail by SMTP: one server, named by `IM_SMTP_URL`, and one connection for the mails of one notification.

aiosmtplib is imported when the first mail goes out: most installations send none, and it takes 60 ms.
"""

import asyncio
import os
import re
import socket
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

if TYPE_CHECKING:
    import aiosmtplib

URL_VARIABLE = "IM_SMTP_URL"
SENDER_VARIABLE = "IM_SMTP_FROM"
#: Of one step of the conversation with the server.
SMTP_TIMEOUT_S = 15.0
#: A connection that cannot be made has certainly sent nothing.
CONNECT_TRIES = 3
CONNECT_AGAIN_S = 1.0
SUBJECT_LINE_MAX = 200
_ADDRESS = re.compile(r"[^\s@<>(),;:\"\\]+@[^\s@<>(),;:\"\\]+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class MailNotConfigured(Exception):
    """No mail can go out from this process: its environment names no server."""


class MailNotSent(Exception):
    """The server took the mail not, or nobody knows."""


def is_address(text: str) -> bool:
    """Whether mail may go to `text`."""
    return _ADDRESS.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail goes out, and from whom."""

    host: str
    port: int
    sender: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    is_tls: bool = False

    @classmethod
    def of_environment(cls) -> "MailServer":
        """Raises MailNotConfigured when `IM_SMTP_URL` is missing or no such URL."""
        url = os.environ.get(URL_VARIABLE, "")
        if not url:
            raise MailNotConfigured(f"set {URL_VARIABLE}, as in smtp://user:password@host:587")
        try:
            parts = urlsplit(url)
            port, host = parts.port or _default_port(parts), parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in ("smtp", "smtps"):
            raise MailNotConfigured(f"{URL_VARIABLE} is not of the form smtp[s]://[user:password@]host[:port]")
        user = unquote(parts.username) if parts.username else None
        sender = os.environ.get(SENDER_VARIABLE) or (user if user and is_address(user) else "")
        return cls(
            host=host,
            port=port,
            sender=sender or f"infinity-matrix@{socket.gethostname()}",
            user=user,
            password=unquote(parts.password) if parts.password else None,
            is_tls=parts.scheme == "smtps",
        )

    @property
    def must_encrypt(self) -> bool | None:
        """Whether STARTTLS is demanded: a password goes to no other machine in the clear. None is: where offered."""
        if self.is_tls:
            return False
        return True if self.password and self.host not in _LOOPBACK else None


def _default_port(parts: SplitResult) -> int:
    if parts.scheme == "smtps":
        return 465
    return 587 if parts.username else 25


class Mailer:
    """Sends mails over one connection, made again when it broke. `close` it at the end."""

    def __init__(self, server: MailServer) -> None:
        self._server = server
        self._client: aiosmtplib.SMTP | None = None

    async def ready(self) -> None:
        """Connects if need be; raises MailNotSent when the server cannot be reached or refuses the login."""
        import aiosmtplib

        if self._client is not None and self._client.is_connected:
            return
        server = self._server
        for tries_left in reversed(range(CONNECT_TRIES)):
            client = aiosmtplib.SMTP(
                hostname=server.host,
                port=server.port,
                username=server.user,
                password=server.password,
                use_tls=server.is_tls,
                start_tls=server.must_encrypt,
                timeout=SMTP_TIMEOUT_S,
            )
            try:
                await client.connect()
            except (aiosmtplib.SMTPAuthenticationError, aiosmtplib.SMTPNotSupported, ValueError) as error:
                client.close()
                raise MailNotSent(f"{server.host}:{server.port}: {_reason(error)}") from error
            except (aiosmtplib.SMTPException, OSError) as error:
                client.close()
                if not tries_left:
                    raise MailNotSent(f"{server.host}:{server.port}: {_reason(error)}") from error
                await asyncio.sleep(CONNECT_AGAIN_S)
            else:
                self._client = client
                return

    async def send(self, recipient: str, title: str, body: str, message_id: str) -> None:
        """Sends one mail; raises MailNotSent. `ready` goes before it."""
        import aiosmtplib

        assert self._client is not None, "be ready first"
        mail = EmailMessage()
        mail["Subject"] = " ".join(title.split())[:SUBJECT_LINE_MAX]
        mail["From"] = self._server.sender
        mail["To"] = recipient
        mail["Date"] = formatdate(usegmt=True)
        mail["Message-ID"] = message_id
        # So that nobody's holiday answers to it.
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(body)
        try:
            await self._client.send_message(mail)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise MailNotSent(_reason(error)) from error

    async def close(self) -> None:
        """Says goodbye; does nothing when there is no connection."""
        import aiosmtplib

        client, self._client = self._client, None
        if client is None or not client.is_connected:
            return
        try:
            await client.quit()
        except (aiosmtplib.SMTPException, OSError):
            client.close()


def _reason(error: Exception) -> str:
    import aiosmtplib

    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        error = error.recipients[0]
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return f"{error.code} {error.message}"
    return str(error) or type(error).__name__
