"""`im.api.<verb>` with plain JSON from plain nats-py, and what it answers to bad requests."""

import json
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from nats.aio.client import Client as Nats
from plain import ask, connected


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("echo", concurrency=64)

    @agent.handler
    async def handle(work: Work) -> Any:
        work.log.info("asked")
        return work.config.get("result", work.input)

    async with infinity_matrix.local(agents=[agent], sync="lazy") as client:
        yield client


@pytest.fixture
async def plain(im: Client) -> AsyncIterator[Nats]:
    async with connected(im.url) as client:
        yield client


def document(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "tasks": [{"id": "only", "agent": "echo", **fields}]}


async def ended(plain: Nats, execution: str) -> dict[str, Any]:
    """The status of an execution once it has ended."""
    status: dict[str, Any] = {}

    async def has_ended() -> bool:
        status.update((await ask(plain, "status", execution=execution))["ok"])
        return status["state"] != "running"

    await until(has_ended, 10.0, "the end of the execution")
    return status


async def test_a_workflow_is_deployed_started_and_read_with_json_alone(plain: Nats) -> None:
    deployed = (await ask(plain, "deploy", **document("by-api")))["ok"]
    assert deployed["workflow"] == "by-api"
    execution = (await ask(plain, "start", workflow="by-api", input={"n": 1}))["ok"]["execution"]
    status = await ended(plain, execution)
    assert (status["state"], status["definition"], status["progress"]) == ("completed", deployed["definition"], 100.0)
    assert status["tasks"]["only"]["result"] == {"n": 1}
    listed = (await ask(plain, "list", workflow="by-api"))["ok"]
    assert [(one["execution_id"], one["state"]) for one in listed] == [(execution, "completed")]
    assert (await ask(plain, "list", state="running"))["ok"] == []
    history = (await ask(plain, "history", execution=execution))["ok"]
    assert [fact["kind"] for fact in history] == ["started", "outcome", "finished"]
    assert [fact["sequence"] for fact in history] == sorted(fact["sequence"] for fact in history)


async def test_figures_log_lines_and_artifacts_are_read_with_json_alone(plain: Nats) -> None:
    await ask(plain, "deploy", **document("read"))
    large = {"text": "x" * 300_000}
    execution = (await ask(plain, "start", workflow="read", input=large))["ok"]["execution"]
    await ended(plain, execution)
    metrics = (await ask(plain, "metrics", execution=execution))["ok"]
    assert (metrics["completed"], metrics["tasks"]["only"]["attempts"]) == (1, 1)
    lines: list[Any] = []

    async def has_lines() -> bool:
        lines[:] = (await ask(plain, "logs", execution=execution, task="only", limit=1))["ok"]
        return bool(lines)

    await until(has_lines, 10.0, "the log line")
    assert [(line["task_id"], line["level"], line["event"]) for line in lines] == [("only", "info", "asked")]
    named = (await ask(plain, "artifacts", execution=execution))["ok"]
    assert [artifact["of"] for artifact in named] == ["input", "result of only"]


async def test_an_event_starts_nothing_any_more_once_a_workflow_is_undeployed(plain: Nats) -> None:
    await ask(plain, "deploy", **document("armed"), triggers=[{"event": "armed"}])
    assert (await ask(plain, "workflow.versions", workflow="armed"))["ok"][0]["is_armed"]
    assert (await ask(plain, "undeploy", workflow="armed"))["ok"] == {"workflow": "armed"}
    assert not (await ask(plain, "workflow.versions", workflow="armed"))["ok"][0]["is_armed"]


async def test_starting_over_the_wire_is_idempotent(plain: Nats) -> None:
    await ask(plain, "deploy", **document("by-id"))
    for _ in range(2):
        assert await ask(plain, "start", workflow="by-id", execution="order-1", input=1) == {
            "ok": {"execution": "order-1"}
        }
    reply = await ask(plain, "start", workflow="by-id", execution="order-1", input=2)
    assert reply["error"]["type"] == "ExecutionExists"


async def test_an_execution_is_cancelled_over_the_wire(plain: Nats) -> None:
    await ask(plain, "deploy", **document("to-cancel", agent="nobody"))
    waiting = {"name": "to-cancel", "grace": 0, "tasks": [{"id": "only", "agent": "nobody"}]}
    await ask(plain, "deploy", **waiting)
    execution = (await ask(plain, "start", workflow="to-cancel"))["ok"]["execution"]
    assert await ask(plain, "cancel", execution=execution, reason="enough") == {"ok": {"execution": execution}}
    status = await ended(plain, execution)
    assert (status["state"], status["error"]["message"]) == ("cancelled", "enough")


@pytest.mark.parametrize(
    ("verb", "body", "type"),
    [
        ("start", {"workflow": "never"}, "UnknownWorkflow"),
        ("start", {}, "BadRequest"),
        ("start", {"workflow": 7}, "BadRequest"),
        ("status", {"execution": "never"}, "UnknownExecution"),
        ("status", {"execution": "*"}, "UnknownExecution"),
        ("status", {"execution": ["x"]}, "BadRequest"),
        ("cancel", {"execution": "never"}, "UnknownExecution"),
        ("history", {}, "BadRequest"),
        ("metrics", {"execution": "nobody"}, "UnknownExecution"),
        ("logs", {"execution": "nobody"}, "UnknownExecution"),
        ("artifacts", {"execution": "nobody"}, "UnknownExecution"),
        ("undeploy", {"workflow": "nobody"}, "UnknownWorkflow"),
        ("attempt", {"execution": "x", "task": "a b", "agent": "c", "attempt": 1}, "BadRequest"),
        ("attempt", {"execution": "x", "task": "a", "agent": "c", "attempt": "1"}, "BadRequest"),
        ("list", {"limit": "all"}, "BadRequest"),
        ("deploy", {"name": "no tasks"}, "InvalidDefinition"),
        ("deploy", {"name": "x", "tasks": [{"id": "a", "agent": "b", "depends_on": ["a"]}]}, "InvalidDefinition"),
        ("deploy", {"name": "x", "tasks": [{"id": "a", "agent": "b", "unknown": 1}]}, "InvalidDefinition"),
    ],
)
async def test_a_bad_request_is_answered_with_its_error(plain: Nats, verb: str, body: Any, type: str) -> None:
    reply = await ask(plain, verb, **body)
    assert reply.keys() == {"error"}
    assert reply["error"].keys() == {"type", "message"}
    assert reply["error"]["type"] == type, reply


@pytest.mark.parametrize("payload", [b"no json", b"[1]", b'"text"', b"\xff\x00", b"{", b"[" * 5000])
async def test_what_is_no_json_object_is_answered_too(plain: Nats, payload: bytes) -> None:
    reply = json.loads((await plain.request("im.api.status", payload, timeout=5)).data)
    assert reply["error"]["type"] == "BadRequest"


async def test_an_answer_above_the_limit_is_an_error_and_not_silence(plain: Nats) -> None:
    # Each small enough to stand in its fact, and not in the object store.
    part = "x" * (200 * 1024)
    tasks = [{"id": name, "agent": "echo", "config": {"result": part}} for name in ("a", "b", "c")]
    await ask(plain, "deploy", name="large", tasks=tasks)
    execution = (await ask(plain, "start", workflow="large"))["ok"]["execution"]

    async def is_too_large() -> bool:
        reply = await ask(plain, "status", execution=execution)
        return bool(reply.get("error", {}).get("type") == "PayloadTooLarge")

    await until(is_too_large, 10.0)


async def test_the_service_can_be_found_by_any_nats_client(plain: Nats) -> None:
    reply = json.loads((await plain.request("$SRV.INFO.im-api", b"", timeout=5)).data)
    subjects = {endpoint["subject"] for endpoint in reply["endpoints"]}
    assert {"im.api.start", "im.api.status", "im.api.deploy", "im.api.attempt"} <= subjects
    assert reply["metadata"]["prefix"] == "im"
    assert "instance" in (await ask(plain, "ping"))["ok"]


async def test_transitions_are_json_for_whoever_subscribes(plain: Nats, im: Client) -> None:
    subscription = await plain.subscribe("im.status.>")
    await plain.flush()
    await ask(plain, "deploy", **document("watched"))
    execution = (await ask(plain, "start", workflow="watched", input="x"))["ok"]["execution"]
    seen = []
    while not seen or seen[-1][1]["task"] is not None or seen[-1][1]["status"] != "completed":
        message = await subscription.next_msg(timeout=5)
        seen.append((message.subject, json.loads(message.data)))
    base = f"im.status.watched.{execution}"
    assert [subject for subject, _ in seen] == [
        f"{base}._.running", f"{base}.only.queued.1", f"{base}.only.completed.1", f"{base}._.completed",
    ]  # fmt: skip
    for _, status in seen:
        assert status["v"] == 1
        assert status["at"].endswith("Z")
        assert (status["workflow"], status["execution"]) == ("watched", execution)
    # And for whoever comes later, for a day.
    later = await plain.jetstream().pull_subscribe(f"{base}.>", stream="IM_STATUS")
    stored = await later.fetch(10, timeout=2)
    assert [message.subject for message in stored] == [subject for subject, _ in seen]
