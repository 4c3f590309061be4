"""Contexts of the nats CLI: what one says is used, and what cannot be used is refused rather than passed over."""

import json
from pathlib import Path
from typing import Any

import pytest
from infinity_matrix.nats_context import BadContext, read_context

CERTIFICATES = Path(__file__).parents[1] / "bus" / "tls"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    contexts = tmp_path / "nats" / "context"
    contexts.mkdir(parents=True)
    return contexts


def write(folder: Path, **record: Any) -> None:
    (folder / "here.json").write_text(json.dumps(record))


def test_what_a_context_says_is_used(folder: Path, tmp_path: Path) -> None:
    write(
        folder,
        url="nats://one:4222",
        creds="~/one.creds",
        nkey="~/one.nk",
        user="ada",
        password="own",
        token="",
        inbox_prefix="_INBOX_ada",
        tls_first=True,
        ca=str(CERTIFICATES / "ca.pem"),
        description="of no concern",
    )
    endpoint = read_context("here")
    assert endpoint.url == "nats://one:4222"
    assert endpoint.credentials == str(tmp_path / "one.creds")
    assert endpoint.nkey == str(tmp_path / "one.nk")
    assert (endpoint.user, endpoint.password, endpoint.token) == ("ada", "own", None)
    assert endpoint.inbox_prefix == "_INBOX_ada"
    assert endpoint.tls_first
    assert endpoint.tls is not None


def test_an_empty_context_is_the_server_of_this_machine(folder: Path) -> None:
    write(folder)
    endpoint = read_context("here")
    assert endpoint.url == "nats://127.0.0.1:4222"
    assert endpoint.tls is None
    assert not endpoint.tls_first


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"nsc": "nsc://operator/account/user"}, "export the credentials"),
        ({"creds": "nsc://operator/account/user"}, "export the credentials"),
        ({"user_jwt": "eyJ"}, "creds file"),
        ({"jetstream_domain": "leaf"}, "of that domain"),
        ({"jetstream_api_prefix": "$JS.other.API"}, "without a prefix"),
        ({"socks_proxy": "socks5://proxy:1080"}, "without a proxy"),
        ({"ca": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"cert": str(CERTIFICATES / "server.pem"), "key": str(CERTIFICATES / "stranger.key")}, "certificates cannot"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(folder: Path, record: dict[str, Any], reason: str) -> None:
    write(folder, url="nats://one:4222", **record)
    with pytest.raises(BadContext, match=reason):
        read_context("here")


def test_a_context_that_is_no_object_or_not_there_is_said(folder: Path) -> None:
    with pytest.raises(BadContext, match="there is no"):
        read_context("here")
    (folder / "here.json").write_text("[]")
    with pytest.raises(BadContext, match="no object"):
        read_context("here")
    (folder / "here.json").write_text("{")
    with pytest.raises(BadContext, match="cannot be read"):
        read_context("here")
