"""The wire of the bare limit: streams, subjects and payloads exactly as the engine has them.

Written out a second time on purpose, without the engine's own modules: the limit must not get slower or faster
because the engine's code does.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any
from zlib import crc32

from nats.aio.client import Client
from pydantic_core import from_json, to_json

from bench.workloads import AGENT, CONFIG, SHARDS, TASK_TIMEOUT_S

SECRET = b"the secret of an installation, 32"[:32]
DEFINITION_HASH = hashlib.sha256(b"a definition").hexdigest()
SECOND_NS = 1_000_000_000
MAX_CONSUMERS = 10_000
MAX_BYTES = 4 << 30
API_TIMEOUT_S = 10.0
ACK_PENDING_MAX = 20_000
TERMINAL_STATUS = "im.status.*.*._.completed"
WRITE_ONCE = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}


def shard_of(execution: str) -> int:
    """Answer the number of the log an execution's facts stand in."""
    return crc32(execution.encode()) % SHARDS


def capability(subject: str) -> str:
    """Answer the 16 hex digits that only a coordinator can compute for a subject."""
    return hashlib.blake2b(subject.encode(), key=SECRET, digest_size=8).hexdigest()


def fact(shard: int, execution: str, rest: str) -> str:
    """Answer the subject of a fact without a capability."""
    return f"im.fact.{shard}.{execution}.{rest}"


def capped(subject: str) -> str:
    """Answer the subject with its capability."""
    return f"{subject}.{capability(subject)}"


def started(workflow: str, value: dict[str, Any]) -> bytes:
    """Answer the fact that starts an execution."""
    cause = {"kind": "client"}
    return to_json(
        {"v": 1, "workflow": workflow, "definition": DEFINITION_HASH, "decide": 1, "input": value, "cause": cause}
    )


def work(
    shard: int, execution: str, workflow: str, task: str, value: Any, upstream: dict[str, Any], ready_at: datetime
) -> bytes:
    """Answer one attempt to do, as an agent gets it."""
    return to_json(
        {
            "v": 1,
            "execution": execution,
            "workflow": workflow,
            "task": task,
            "attempt": 1,
            "agent": AGENT,
            "input": value,
            "config": CONFIG,
            "upstream": upstream,
            "reply_to": capped(fact(shard, execution, f"outcome.{AGENT}.{task}.1")),
            "taken_to": capped(fact(shard, execution, f"taken.{AGENT}.{task}.1")),
            "idempotency_key": f"{execution}/{task}",
            "timeout": TASK_TIMEOUT_S,
            "ready_at": ready_at,
            "deadline": ready_at + timedelta(seconds=TASK_TIMEOUT_S),
        }
    )


def finished(outputs: dict[str, Any], started_at: datetime, at: datetime) -> bytes:
    """Answer the terminal record of an execution."""
    return to_json(
        {"v": 1, "state": "completed", "result": outputs, "compensations": [], "started_at": started_at, "at": at}
    )


def status(execution: str, workflow: str, task: str | None, state: str, progress: float, at: datetime) -> bytes:
    """Answer one transition, about 200 bytes, for people and tails."""
    return to_json(
        {
            "v": 1,
            "execution": execution,
            "workflow": workflow,
            "task": task,
            "state": state,
            "attempt": None if task is None else 1,
            "progress": progress,
            "at": at,
            "agent": None if task is None else AGENT,
        }
    )


async def request(connection: Client, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask the JetStream API and answer its reply; raises RuntimeError when it refuses."""
    reply = await connection.request(f"$JS.API.{verb}", to_json(body), timeout=API_TIMEOUT_S)
    answer: dict[str, Any] = from_json(reply.data)
    if "error" in answer:
        raise RuntimeError(f"{verb}: {answer['error']}")
    return answer


async def create_streams(connection: Client) -> None:
    """Create the log, the work and the status streams, and the agent's durable consumer.

    By raw requests: the client's StreamConfig does not know `persist_mode`.
    """
    common = {"storage": "file", "num_replicas": 1, "max_bytes": MAX_BYTES, "max_consumers": MAX_CONSUMERS}
    for shard in range(SHARDS):
        await _create_stream(
            connection,
            {
                **common,
                **WRITE_ONCE,
                "name": f"IM_FACTS_{shard}",
                "subjects": [f"im.fact.{shard}.>"],
                "retention": "limits",
                "max_age": 7 * 86_400 * SECOND_NS,
                "duplicate_window": SECOND_NS // 10,
                "allow_direct": True,
            },
        )
    await _create_stream(
        connection,
        {
            **common,
            **WRITE_ONCE,
            "name": "IM_WORK",
            "subjects": ["im.work.>"],
            "retention": "workqueue",
            "duplicate_window": 120 * SECOND_NS,
            "allow_direct": True,
            "persist_mode": "async",
        },
    )
    await _create_stream(
        connection,
        {
            **common,
            "name": "IM_STATUS",
            "subjects": ["im.status.>"],
            "retention": "limits",
            "discard": "old",
            "max_age": 86_400 * SECOND_NS,
            "persist_mode": "async",
        },
    )
    await _create_consumer(
        connection,
        "IM_WORK",
        {
            "durable_name": AGENT,
            "filter_subject": f"im.work.{AGENT}.>",
            "ack_policy": "explicit",
            "ack_wait": 30 * SECOND_NS,
            "max_deliver": -1,
            "max_ack_pending": ACK_PENDING_MAX,
        },
    )


async def create_log_reader(connection: Client, shard: int) -> str:
    """Create the ephemeral consumer that reads a whole log in order without acks, and answer its name."""
    config = {"ack_policy": "none", "deliver_policy": "all", "mem_storage": True, "inactive_threshold": 60 * SECOND_NS}
    return await _create_consumer(connection, f"IM_FACTS_{shard}", config)


async def _create_stream(connection: Client, config: dict[str, Any]) -> None:
    answer = await request(connection, f"STREAM.CREATE.{config['name']}", config)
    # An old server ignores fields it does not know; the limit would then be that of other streams than the engine's.
    missing = {key for key, value in config.items() if answer["config"].get(key) != value}
    if missing:
        raise RuntimeError(f"{config['name']}: the server did not take {sorted(missing)}")


async def _create_consumer(connection: Client, stream: str, config: dict[str, Any]) -> str:
    durable = config.get("durable_name")
    verb = f"CONSUMER.DURABLE.CREATE.{stream}.{durable}" if durable else f"CONSUMER.CREATE.{stream}"
    answer = await request(connection, verb, {"stream_name": stream, "config": config})
    return str(answer["name"])
