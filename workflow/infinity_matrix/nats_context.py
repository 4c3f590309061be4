"""Contexts of the nats CLI (ADR-21): `$XDG_CONFIG_HOME/nats/context/<name>.json`."""

import json
import os
import ssl
from pathlib import Path
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.session import Endpoint

#: What a context may say that would be wrong to pass over.
_UNSUPPORTED = {
    "nsc": "export the credentials to a .creds file",
    "user_jwt": "put it into a .creds file, with its seed",
    "user_seed": "put it into a .creds file, with its JWT",
    "jetstream_domain": "connect to a server of that domain",
    "jetstream_api_prefix": "import the API without a prefix",
    "socks_proxy": "connect without a proxy",
    "windows_cert_store": "export the certificate to a file",
}


class BadContext(InfinityMatrixError):
    """Raised when a nats CLI context cannot be used. Correct or name another one."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"nats context {name!r}: {reason}")


def context_folder() -> Path:
    """Where the nats CLI keeps its contexts."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "nats" / "context"


def read_context(name: str) -> Endpoint:
    """The endpoint a context names; raises BadContext."""
    path = context_folder() / f"{name}.json"
    try:
        record: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadContext(name, f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise BadContext(name, f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise BadContext(name, f"{path} holds no object")
    for key, instead in _UNSUPPORTED.items():
        if record.get(key):
            raise BadContext(name, f"{key} is not supported; {instead}")

    def text(key: str) -> str | None:
        value = record.get(key)
        return value if isinstance(value, str) and value else None

    def file(key: str) -> str | None:
        named = text(key)
        return None if named is None else str(Path(named).expanduser())

    if (text("creds") or "").startswith("nsc://"):
        raise BadContext(name, f"credentials in an nsc store are not supported; {_UNSUPPORTED['nsc']}")
    return Endpoint(
        text("url") or "nats://127.0.0.1:4222",
        credentials=file("creds"),
        tls=_tls(name, file("ca"), file("cert"), file("key")),
        user=text("user"),
        password=text("password"),
        token=text("token"),
        nkey=file("nkey"),
        inbox_prefix=text("inbox_prefix") or "_INBOX",
        tls_first=record.get("tls_first") is True,
    )


def _tls(name: str, ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if ca is None and certificate is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(path for path in (ca, certificate, key) if path is not None)
        raise BadContext(name, f"its certificates cannot be used ({named}): {error}") from error
    return context
