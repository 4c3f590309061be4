"""Time, randomness, process ids and unique ids as the production modules see them in a simulated world.

The modules they import are replaced by their names in them, for as long as a world is entered.
"""

import os
import random as real_random
import secrets as real_secrets
import socket as real_socket
import sys
import time as real_time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import ModuleType
from typing import Any

import nats.nuid
import uuid_utils as real_uuid

from .jetstream import EPOCH_S
from .loop import SimulatedLoop


class _Substitute(ModuleType):
    """A module with some names of its own, and those of the real one."""

    def __init__(self, real: ModuleType, **names: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(real.__dict__)
        self.__dict__.update(names)


class _Uuid:
    def __init__(self, hex: str) -> None:
        self.hex = hex


def _substitutes(loop: SimulatedLoop, random: Random) -> dict[ModuleType, ModuleType]:
    def now() -> float:
        return EPOCH_S + loop.now + loop.current.skew_s

    def uuid7() -> _Uuid:
        return _Uuid(f"{int(now() * 1000):012x}7{random.getrandbits(76):019x}")

    return {
        real_time: _Substitute(
            real_time,
            time=now,
            time_ns=lambda: int(now() * 1e9),
            monotonic=lambda: loop.now,
            perf_counter=lambda: loop.now,
            perf_counter_ns=lambda: int(loop.now * 1e9),
        ),
        real_random: _Substitute(
            real_random,
            random=random.random,
            uniform=random.uniform,
            randrange=random.randrange,
            randint=random.randint,
            choice=random.choice,
            shuffle=random.shuffle,
        ),
        real_secrets: _Substitute(
            real_secrets,
            token_hex=lambda size=32: random.randbytes(size).hex(),
            token_bytes=lambda size=32: random.randbytes(size),
            randbelow=random.randrange,
        ),
        os: _Substitute(os, getpid=lambda: loop.current.number),
        real_socket: _Substitute(real_socket, gethostname=lambda: "sim"),
        real_uuid: _Substitute(real_uuid, uuid7=uuid7),
    }


def _modules() -> list[ModuleType]:
    return [
        module
        for name, module in sorted(sys.modules.items())
        if module is not None and (name == "nats" or name.startswith(("infinity_matrix", "nats.")))
    ]


@contextmanager
def entered(loop: SimulatedLoop, random: Random) -> Iterator[None]:
    """Lets the production modules see the simulated world."""
    substitutes = _substitutes(loop, random)
    replaced: list[tuple[ModuleType, str, Any]] = []
    by_id = {id(real): substitute for real, substitute in substitutes.items()}
    for module in _modules():
        for name, value in list(vars(module).items()):
            substitute = by_id.get(id(value))
            if substitute is not None:
                replaced.append((module, name, value))
                setattr(module, name, substitute)
    for name, value in (("token_bytes", random.randbytes), ("randbelow", random.randrange)):
        replaced.append((nats.nuid, name, getattr(nats.nuid, name)))
        setattr(nats.nuid, name, value)
    for module in _modules():
        # Computed when it is imported, from the machine's own name.
        if "HOST" in vars(module) and isinstance(vars(module)["HOST"], str):
            replaced.append((module, "HOST", vars(module)["HOST"]))
            module.HOST = "sim"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, name, value in reversed(replaced):
            setattr(module, name, value)
