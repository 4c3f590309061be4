"""The installation: what every part of one system must agree on, made once and read by all.

The number of shards, the bytes its streams share, the version and the prefix, and the secret of the capabilities,
which only coordinators read.
"""

import asyncio
import os
import secrets
from dataclasses import dataclass, field
from hashlib import blake2b

from infinity_matrix_actors.errors import NotInstalled, StorageUnavailable
from nats.errors import Error as NatsError
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import NotFoundError as JsNotFoundError
from nats.js.kv import KeyValue

from infinity_matrix_bus.api import NAME_IN_USE, STREAM_NOT_FOUND, JetStreamApi, JetStreamError
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.streams import fitting_budget, make_streams, stream_configs
from infinity_matrix_bus.subjects import Subjects

SHARDS_DEFAULT = 4
SHARDS_MAX = 1024
INSTALLATION_VERSION = "1"
SECRET_BYTES = 32
#: What keyed BLAKE2b takes; a longer IM_SECRET is hashed.
SECRET_BYTES_MAX = 64
TIMEOUT_S = 5.0
MEMBER_TTL_S = 5.0
DEFINITION_BYTES_MAX = 512 * 1024
_BUCKETS = ("definitions", "schedules", "checkpoints")


@dataclass(frozen=True, slots=True)
class Installation:
    """What was agreed when the installation was made. `secret` is empty for who may not know it."""

    prefix: str
    shards: int
    secret: bytes = field(default=b"", repr=False)

    def subjects(self) -> Subjects:
        return Subjects(self.prefix, self.secret)


async def bucket(session: Session, name: str) -> KeyValue:
    """A key-value bucket by its whole name; raises nats' BucketNotFoundError."""
    return await session.client.jetstream(timeout=TIMEOUT_S).key_value(name)


async def install(session: Session, prefix: str = "im", shards: int = SHARDS_DEFAULT) -> Installation:
    """Makes what is missing of an installation and answers it; two who install at once agree.

    `shards` counts only for the first. Raises ValueError for a number of shards out of 1..1024, and StorageUnavailable
    when a log is gone that was there: an empty one in its place would be taken for the truth.
    """
    if not 1 <= shards <= SHARDS_MAX:
        raise ValueError(f"shards is {shards}, it must be 1 to {SHARDS_MAX}")
    subjects = Subjects(prefix)
    replicas = _replicas(session)
    try:
        store = await _make_write_once_bucket(session, subjects.bucket("installation"), replicas)
        shards = int(await _agree(session, store, "shards", str(shards)))
        secret = await _agree(session, store, "secret", secrets.token_hex(SECRET_BYTES))
        await _agree(session, store, "version", INSTALLATION_VERSION)
        await _agree(session, store, "prefix", prefix)
        for name in _BUCKETS:
            await _make_bucket(session, subjects.bucket(name), replicas)
        await _make_bucket(session, subjects.bucket("members"), replicas, ttl_s=MEMBER_TTL_S)
        budget = await _stored(session, store._name, "budget")
        if budget is None:
            budget = str(await fitting_budget(JetStreamApi(session), subjects, replicas))
            budget = await _agree(session, store, "budget", budget)
        if await _stored(session, store._name, "installed") is not None:
            await _check_logs(JetStreamApi(session), subjects, shards)
        await make_streams(JetStreamApi(session), stream_configs(subjects, shards, replicas, int(budget)), subjects)
        await _agree(session, store, "installed", INSTALLATION_VERSION)
    except NatsError as error:
        raise StorageUnavailable(f"the installation could not be made: {error}") from error
    return Installation(prefix, shards, _secret(secret))


async def still_stands(session: Session, installation: Installation) -> bool:
    """Whether what was agreed is there as it was; raises NoLeader, RequestTimeout, SessionLost.

    In a cluster it needs the leader of one stream, where `install` needs those of all.
    """
    name = Subjects(installation.prefix).bucket("installation")
    keys = ("installed", "shards", "secret")
    try:
        installed, shards, secret = await asyncio.gather(*(_stored(session, name, key) for key in keys))
    except JetStreamError as error:
        if error.code == STREAM_NOT_FOUND:
            return False
        raise
    is_there = installed is not None and shards is not None and secret is not None
    return is_there and int(shards or 0) == installation.shards and _secret(secret or "") == installation.secret


async def _check_logs(api: JetStreamApi, subjects: Subjects, shards: int) -> None:
    there = {name async for name in api.paged("STREAM.NAMES", "streams")}
    gone = [name for name in map(subjects.facts_stream, range(shards)) if name not in there]
    if gone:
        raise StorageUnavailable(f"the log {', '.join(gone)} is gone; restore it from a backup")


async def mend_derived_streams(session: Session, installation: Installation) -> None:
    """Makes the derived streams that are gone; never the log, in whose place nothing may be made."""
    subjects = installation.subjects()
    api = JetStreamApi(session)
    budget = await _stored(session, subjects.bucket("installation"), "budget")
    if budget is None:
        raise NotInstalled(session.endpoint.shown_url, installation.prefix)
    configs = stream_configs(subjects, installation.shards, _replicas(session), int(budget))
    logs = {subjects.facts_stream(shard) for shard in range(installation.shards)}
    await make_streams(api, [config for config in configs if config["name"] not in logs], subjects)


def _replicas(session: Session) -> int:
    return 3 if session.client._server_info.get("cluster") else 1


async def read_installation(session: Session, prefix: str = "im", *, with_secret: bool = False) -> Installation:
    """The installation at this server; raises NotInstalled."""
    try:
        store = await bucket(session, Subjects(prefix).bucket("installation"))
        shards = await store.get("shards")
        secret = (await store.get("secret")).value if with_secret else None
    except (BucketNotFoundError, KeyNotFoundError, JsNotFoundError):
        raise NotInstalled(session.endpoint.shown_url, prefix) from None
    except NatsError as error:
        raise StorageUnavailable(f"the installation could not be read: {error}") from error
    assert shards.value is not None
    return Installation(prefix, int(shards.value), _secret(secret.decode()) if secret is not None else b"")


def _secret(stored: str) -> bytes:
    override = os.environ.get("IM_SECRET", "").encode()
    if len(override) > SECRET_BYTES_MAX:
        override = blake2b(override).digest()
    try:
        return override or bytes.fromhex(stored)
    except ValueError:
        raise StorageUnavailable(
            "the secret of the installation is no hexadecimal number: somebody wrote over it"
        ) from None


async def _make_bucket(session: Session, name: str, replicas: int, ttl_s: float | None = None) -> KeyValue:
    js = session.client.jetstream(timeout=TIMEOUT_S)
    try:
        return await js.key_value(name)
    except (BucketNotFoundError, JsNotFoundError):
        config = KeyValueConfig(
            bucket=name, history=1, storage=StorageType.FILE, replicas=replicas, ttl=ttl_s, direct=True
        )
        try:
            return await js.create_key_value(config)
        except NatsError:
            # Another coordinator was quicker.
            return await js.key_value(name)


async def _make_write_once_bucket(session: Session, name: str, replicas: int) -> KeyValue:
    """A bucket whose keys keep their first value, whoever writes: with another secret every fact would be a forgery."""
    config = {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "discard": "new",
        "discard_new_per_subject": True,
        "deny_delete": True,
        "allow_rollup_hdrs": False,
        "allow_direct": True,
    }
    try:
        await JetStreamApi(session).create_stream(config)
    except JetStreamError as error:
        # It is there: as it is now, or with the config of an earlier version.
        if error.code != NAME_IN_USE:
            raise
    return await bucket(session, name)


async def _agree(session: Session, store: KeyValue, key: str, value: str) -> str:
    """The value of a key that is made once: ours if we are first."""
    try:
        await store.create(key, value.encode())
    except (KeyWrongLastSequenceError, KeyNotFoundError):
        stored = await _stored(session, store._name, key)
        if stored is None:
            raise StorageUnavailable(f"{key} of the installation was neither written nor found") from None
        return stored
    return value


async def _stored(session: Session, bucket_name: str, key: str) -> str | None:
    # Not by the bucket: in a cluster a follower may answer that has not seen another's write.
    stored = await JetStreamApi(session).last_message(f"KV_{bucket_name}", f"$KV.{bucket_name}.{key}")
    return None if stored is None else stored.data.decode()
