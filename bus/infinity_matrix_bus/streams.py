"""The streams of an installation: their configs, and making them.

The log and everything precious is R3 in a cluster and R1 embedded. Derived streams are persisted asynchronously on R1,
1.4 times the throughput with `sync_interval: always`; a replicated stream refuses that mode and does not need it.
"""

import asyncio
import time
from typing import Any

from infinity_matrix_actors.definition import host_agent

from infinity_matrix_bus.api import NAME_IN_USE, STREAM_NOT_FOUND, JetStreamApi, JetStreamError
from infinity_matrix_bus.subjects import Subjects

_SECOND = 1_000_000_000
_DAY = 86_400 * _SECOND
#: The server's silent default is 1,000 a stream: tails, waits and agents are more.
CONSUMERS_MAX = 100_000
#: Shares of the store's budget; together at most 0.8, because the server reserves what `max_bytes` says.
FACTS_SHARE = 0.35
WORK_SHARE = 0.10
STATUS_SHARE = 0.05
LOGS_SHARE = 0.10
TRIGGERS_SHARE = 0.03
DEAD_SHARE = 0.02
ARTIFACTS_SHARE = 0.15
SHARES = FACTS_SHARE + WORK_SHARE + STATUS_SHARE + LOGS_SHARE + TRIGGERS_SHARE + DEAD_SHARE + ARTIFACTS_SHARE
#: When the account names no limit, and the server has room for it.
BUDGET_DEFAULT_BYTES = 8 * 1024**3
#: An artifact outlives every log that may name it: one that is older than `ARTIFACT_REUSED_S` is stored once more when
#: it is needed again, and what is left of its age then is that of the log.
FACTS_AGE_S = 7 * 86_400
ARTIFACT_REUSED_S = 7 * 86_400
ARTIFACTS_AGE_S = ARTIFACT_REUSED_S + FACTS_AGE_S + 86_400
#: With less than this there is no use in trying.
BUDGET_MIN_BYTES = 64 * 1024**2
#: Reservations tried to find out what there is room for.
PROBES_MAX = 50
#: Tries to make a stream while there is no room for it.
ROOM_TRIES_MAX = 20
ROOM_RETRY_S = 0.05
#: The server's error when streams would reserve more than it may store.
NO_ROOM = 10047
#: What a cluster says of it: the same code stands for peers that are away, only the words tell.
NO_PEERS = 10005
_WITHOUT_ROOM = "insufficient storage"
#: Who asks before running covers what the window does not: DESIGN rule 5 publishes plainly for a quarter of it.
WORK_DUPLICATE_WINDOW_S = 120
TRIGGERS_DUPLICATE_WINDOW_S = 600
ACK_WAIT_S = 30.0
ACK_PENDING_MAX = 20_000
#: After which the consumer of a host that nobody runs is removed.
HOST_IDLE_S = 3600


def stream_configs(subjects: Subjects, shards: int, replicas: int, budget_bytes: int) -> list[dict[str, Any]]:
    """The config of every stream of an installation, as the server's API takes it."""

    def share(part: float) -> int:
        return int(budget_bytes * part)

    base: dict[str, Any] = {
        "storage": "file",
        "num_replicas": replicas,
        "max_consumers": CONSUMERS_MAX,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
    }
    derived = {**base, "persist_mode": "async"} if replicas == 1 else base
    write_once = {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}
    configs: list[dict[str, Any]] = [
        {
            **base,
            **write_once,
            "name": subjects.facts_stream(shard),
            "subjects": [subjects.facts_of_shard(shard)],
            "retention": "limits",
            "max_age": FACTS_AGE_S * _SECOND,
            # 0 would mean 2 minutes, and nobody sends a Msg-Id to the log.
            "duplicate_window": _SECOND // 10,
            "max_bytes": share(FACTS_SHARE / shards),
        }
        for shard in range(shards)
    ]
    configs.append(
        {
            **derived,
            **write_once,
            "name": subjects.work_stream,
            "subjects": [f"{subjects.prefix}.work.>"],
            "retention": "workqueue",
            "duplicate_window": WORK_DUPLICATE_WINDOW_S * _SECOND,
            "max_bytes": share(WORK_SHARE),
        }
    )
    configs.append(_artifacts(subjects, base, share(ARTIFACTS_SHARE)))
    plain = [
        (subjects.status_stream, subjects.all_status, 1, STATUS_SHARE, 0),
        (subjects.logs_stream, subjects.all_logs, 3, LOGS_SHARE, 0),
        (subjects.triggers_stream, subjects.all_triggers, 1, TRIGGERS_SHARE, TRIGGERS_DUPLICATE_WINDOW_S),
        (subjects.dead_stream, subjects.all_dead, 30, DEAD_SHARE, 0),
    ]
    for name, subject, days, part, window_s in plain:
        config: dict[str, Any] = {
            **derived,
            "name": name,
            "subjects": [subject],
            "retention": "limits",
            "discard": "old",
            "max_age": days * _DAY,
            "max_bytes": share(part),
        }
        if window_s:
            config["duplicate_window"] = window_s * _SECOND
            # An event is not derived from anything: it is kept like the log.
            config.pop("persist_mode", None)
        if name == subjects.dead_stream:
            # Who discards a letter puts an empty one in its place, so that no coordinator publishes it again.
            config["max_msgs_per_subject"] = 1
        configs.append(config)
    return configs


def _artifacts(subjects: Subjects, base: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """An object-store bucket. Full, it refuses: its oldest are named by a log that is still there."""
    return {
        **base,
        "name": subjects.artifacts_stream,
        "subjects": [subjects.artifact_chunks(">"), subjects.artifact_meta(">")],
        "retention": "limits",
        "discard": "new",
        "max_age": ARTIFACTS_AGE_S * _SECOND,
        "max_bytes": max_bytes,
    }


async def make_streams(api: JetStreamApi, configs: list[dict[str, Any]], subjects: Subjects) -> None:
    """Makes the streams that are not there; one that is there is left as its operator set it."""
    for config in configs:
        if config["name"] == subjects.triggers_stream:
            # Execution ids follow from the numbers of events: what comes after a stream that was lost must not have
            # theirs again. There are less than a million events a second.
            config = {**config, "first_seq": int(time.time() * 1_000_000)}
        await _make_stream(api, config)


async def _make_stream(api: JetStreamApi, config: dict[str, Any]) -> None:
    for attempt in range(1, ROOM_TRIES_MAX + 1):
        try:
            await api.create_stream(config)
            return
        except JetStreamError as error:
            if error.code == NAME_IN_USE:
                return
            if not _is_no_room(error) or attempt == ROOM_TRIES_MAX:
                raise
        # The room is looked at before the name; and another who installs at this moment holds some with its probe.
        if await api.stream_info(config["name"]) is not None:
            return
        await asyncio.sleep(ROOM_RETRY_S)


async def fitting_budget(api: JetStreamApi, subjects: Subjects, replicas: int) -> int:
    """What the streams of an installation may share, in bytes: as much as there is room for now."""
    budget = await budget_bytes(api)
    # A server does not tell what it may store when the account has no limit; it tells when a reservation is too much.
    probe = subjects.bucket("probe")
    config = {"name": probe, "subjects": [f"{subjects.prefix}.probe"], "storage": "file", "num_replicas": replicas}
    for _ in range(PROBES_MAX):
        if budget <= BUDGET_MIN_BYTES:
            break
        try:
            await api.create_stream({**config, "max_bytes": int(budget * SHARES)})
        except JetStreamError as error:
            if _is_no_room(error):
                budget //= 2
            elif error.code == NAME_IN_USE:
                # Another installs at this moment, or broke off while it did.
                await _delete_stream(api, probe)
            else:
                raise
        else:
            await _delete_stream(api, probe)
            break
    return budget


def _is_no_room(error: JetStreamError) -> bool:
    """Whether a stream was refused because it reserves more than there is."""
    return error.code == NO_ROOM or (error.code == NO_PEERS and _WITHOUT_ROOM in error.description)


async def budget_bytes(api: JetStreamApi) -> int:
    """What the account may store, in bytes."""
    limits = (await api.call("INFO")).get("limits", {})
    storage = int(limits.get("max_storage", -1))
    return storage if storage > 0 else BUDGET_DEFAULT_BYTES


async def _delete_stream(api: JetStreamApi, name: str) -> None:
    try:
        await api.call(f"STREAM.DELETE.{name}")
    except JetStreamError as error:
        # Another who installs at this moment was quicker.
        if error.code != STREAM_NOT_FOUND:
            raise


def agent_consumer(subjects: Subjects, agent: str) -> dict[str, Any]:
    """The durable consumer of an agent; the coordinator makes it, and corrects one that an agent made."""
    config: dict[str, Any] = {
        "durable_name": agent,
        "filter_subject": subjects.work_of_agent(agent),
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT_S * _SECOND),
        "max_deliver": -1,
        "max_ack_pending": ACK_PENDING_MAX,
        "max_waiting": 8192,
        "deliver_policy": "all",
    }
    if agent.startswith(host_agent("")):
        # There is one for each definition that asks its host. The work stays in the stream, and a host makes it again.
        config["inactive_threshold"] = HOST_IDLE_S * _SECOND
    return config
