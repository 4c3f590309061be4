"""Contexts of the nats CLI (ADR-21): `$XDG_CONFIG_HOME/nats/context/<name>.json`."""

import json
import os
import ssl
from pathlib import Path
from typing import Any

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.session import Endpoint


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
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadContext(name, f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise BadContext(name, f"{path} cannot be read: {error}") from error
    if record.get("nsc") or str(record.get("creds", "")).startswith("nsc://"):
        raise BadContext(name, "credentials in an nsc store are not supported; export them to a .creds file")

    def text(key: str) -> str | None:
        value = record.get(key)
        return value if isinstance(value, str) and value else None

    return Endpoint(
        text("url") or "nats://127.0.0.1:4222",
        credentials=text("creds"),
        tls=_tls(record) if text("cert") or text("ca") else None,
        user=text("user"),
        password=text("password"),
        token=text("token"),
        inbox_prefix=text("inbox_prefix") or "_INBOX",
    )


def _tls(record: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=record.get("ca") or None)
    if record.get("cert"):
        context.load_cert_chain(record["cert"], record.get("key") or None)
    return context
