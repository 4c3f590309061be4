"""Where to connect and as whom, and how that may be shown."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """Where to connect and as whom. `url` may be several, separated by commas."""

    url: str
    name: str = "infinity-matrix"
    credentials: str | None = None
    tls: ssl.SSLContext | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    #: A file with the seed of an nkey.
    nkey: str | None = None
    inbox_prefix: str = "_INBOX"
    #: The server begins with the TLS handshake, and says who it is after that.
    tls_first: bool = False

    def __repr__(self) -> str:
        return f"Endpoint({self.shown_url!r}, name={self.name!r})"

    @property
    def shown_url(self) -> str:
        """The URL as it may be shown: without user, password or token."""
        return ",".join(_without_secret(url) for url in self.url.split(","))

    def wants_tls(self, server: str) -> bool:
        """Whether nothing may be said to this server in the clear."""
        return self.tls is not None or self.tls_first or server.startswith("tls://")

    def options(self) -> dict[str, Any]:
        """What nats-py's connect takes; raises OSError or ValueError for what it would hang or stumble on."""
        if self.url.startswith(("ws://", "wss://")):
            raise ValueError("websocket URLs are not supported, use nats:// or tls://")
        options: dict[str, Any] = {"servers": self.url.split(","), "name": self.name, "inbox_prefix": self.inbox_prefix}
        if self.credentials is not None:
            options["user_credentials"] = _checked_credentials(self.credentials)
        if self.nkey is not None:
            options["nkeys_seed"] = str(Path(self.nkey).expanduser())
        if self.tls is not None:
            options["tls"] = self.tls
        if self.tls_first:
            options["tls_handshake_first"] = True
        for key in ("user", "password", "token"):
            if getattr(self, key) is not None:
                options[key] = getattr(self, key)
        return options


def _checked_credentials(name: str) -> str:
    """The path of a credentials file. In one without these lines nats-py would look for them for ever."""
    path = Path(name).expanduser()
    text = path.read_bytes()
    if b"BEGIN NATS USER JWT" not in text or b"BEGIN USER NKEY SEED" not in text:
        raise ValueError(f"{path} is no credentials file: it has no user JWT or no seed")
    return str(path)


def _without_secret(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url.rpartition("@")[2]
