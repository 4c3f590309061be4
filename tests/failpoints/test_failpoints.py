"""Every failpoint, one by one: a process is killed there, another takes over, and nothing is lost or done again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from infinity_matrix_bus import failpoint, streams
from infinity_matrix_bus.direct_client import DirectClient
from infinity_matrix_bus.failpoint import NAMES, VARIABLE, BadFailpoint, Failpoint
from infinity_matrix_bus.server import EmbeddedServer

from .workload import say
from .worlds import Fate, World, Zygote, run

#: Worlds at once: most of the time of each is spent waiting for leases and members to expire.
WORLDS_AT_ONCE = 40
#: What is passed only by who makes the installation.
INSTALLING = ("account", "installation", "stream.create", "head.kv")
#: A pause that others notice: longer than a lease, than a member's key and than the sweep.
PAUSE_S = 7.0
PAUSED = (
    *[("coordinator", name) for name in ("send.work.before", "send.tombstone.after", "send.purge.after")],
    *[("coordinator", name) for name in ("reply.read.work", "send.fact.finished.before", "send.checkpoint.before")],
    *[("agent", name) for name in ("send.fact.outcome.before", "send.ack.before", "reply.ask", "take.work.before")],
)


@pytest.fixture
def zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zygote]:
    # There are many installations on one server.
    monkeypatch.setattr(streams, "BUDGET_DEFAULT_BYTES", streams.BUDGET_MIN_BYTES)
    zygote = Zygote()
    try:
        yield zygote
    finally:
        zygote.close()


async def fates(server: EmbeddedServer, folder: Path, zygote: Zygote, points: list[tuple[str, str]]) -> list[Fate]:
    """Runs a world for each (role, failpoint with its number and action)."""
    room = asyncio.Semaphore(WORLDS_AT_ONCE)

    async def one(number: int, role: str, point: str) -> Fate:
        async with room:
            own = folder / f"world-{number}"
            own.mkdir()
            world = World(server.connect_url, own, zygote, f"w{number}")
            try:
                kind = point.partition(":")[0].partition(".")[2].removesuffix(".before").removesuffix(".after")
                fate = await run(world, role, point, is_installed=kind not in INSTALLING)
                if fate.problems or not fate.struck:
                    say(f"{role} at {point}\n{world.logs()}")
                return fate
            except TimeoutError:
                say(f"{role} at {point}\n{world.logs()}")
                return Fate(point, role, False, ["what was to be done was not done in time"])
            finally:
                world.close()

    return await asyncio.gather(*(one(number, *point) for number, point in enumerate(points)))


def check(found: list[Fate], count: int) -> None:
    assert len(found) == count
    assert [f"{fate.role} never came to {fate.point}" for fate in found if not fate.struck] == []
    assert [f"{fate.role} at {fate.point}: {fate.problems[:3]}" for fate in found if fate.problems] == []


@pytest.mark.timeout(400)
@pytest.mark.parametrize("role", ["coordinator", "agent"])
async def test_a_process_killed_at_any_failpoint_is_replaced_and_nothing_is_lost_or_done_again(
    role: str, server: EmbeddedServer, tmp_path: Path, zygote: Zygote
) -> None:
    points = [(role, f"{name}:1:kill") for name, who in NAMES.items() if role in who]
    check(await fates(server, tmp_path, zygote, points), len(points))


@pytest.mark.timeout(200)
async def test_a_process_that_stands_still_at_a_failpoint_disturbs_nobody_when_it_goes_on(
    server: EmbeddedServer, tmp_path: Path, zygote: Zygote
) -> None:
    points = [(role, f"{name}:1:pause={PAUSE_S:g}") for role, name in PAUSED]
    check(await fates(server, tmp_path, zygote, points), len(points))


def test_without_the_variable_the_hot_path_has_nothing_of_them_in_it() -> None:
    assert not failpoint.is_armed()
    assert DirectClient.write.__qualname__ == "DirectClient.write"
    assert DirectClient.receive.__qualname__ == "DirectClient.receive"
    assert failpoint.sending(DirectClient.write) is DirectClient.write
    assert failpoint.receiving(DirectClient.receive) is DirectClient.receive


def test_a_failpoint_is_read_from_the_variable() -> None:
    assert failpoint.parse("send.work.before:3:kill") == Failpoint("send.work.before", 3, True)
    assert failpoint.parse("reply.purge:1:pause") == Failpoint("reply.purge", 1, False)
    assert failpoint.parse("take.fact.after:1:pause=2.5") == Failpoint("take.fact.after", 1, False, 2.5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nowhere:1:kill", "there is no failpoint 'nowhere'"),
        ("send.work.before", "which time it is passed"),
        ("send.work.before:0:kill", "which time it is passed"),
        ("send.work.before:1:explode", "kill, pause or pause=SECONDS, not 'explode'"),
        ("send.work.before:1:kill=2", "not 'kill=2'"),
        ("send.work.before:1:pause=-1", "not 'pause=-1'"),
        ("send.work.before:1:pause=soon", "not 'pause=soon'"),
    ],
)
def test_a_failpoint_that_cannot_be_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BadFailpoint, match=complaint):
        failpoint.parse(text)


def test_a_process_with_a_wrong_variable_says_so_and_ends() -> None:
    ended = command("nowhere:1:kill", "import infinity_matrix_bus.failpoint")
    assert ended.returncode == 1
    assert ended.stderr.startswith("IM_FAILPOINT=nowhere:1:kill: there is no failpoint 'nowhere'")
    assert "Traceback" not in ended.stderr


async def test_the_variable_alone_kills_any_program_at_its_place(server: EmbeddedServer) -> None:
    program = (
        "import asyncio; from infinity_matrix_bus.session import Endpoint;"
        "from infinity_matrix_coordinator.process import Coordinator;"
        f"asyncio.run(Coordinator(Endpoint({server.connect_url!r})).start())"
    )
    ended = await asyncio.to_thread(command, "reply.stream.create:2:kill", program)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def command(point: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, VARIABLE: point}
    arguments = [sys.executable, "-c", program]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
