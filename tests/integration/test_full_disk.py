"""A full disk: what is not on it is not told to be, and after room is made and the server restarted all goes on."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import World, all_finished, say
from history import lines_of
from infinity_matrix import StorageUnavailable
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_bus.server import EmbeddedServer

DISK_MIB = 48
LEFT_BYTES = 512 * 1024
FILLER = "x" * 20_000


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own; skips the test where nothing may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"there is no mount here: {error}")
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
async def on_small_disk(tmp_path: Path) -> AsyncIterator[World]:
    """A world whose server has a small disk of its own; what is started is not on it."""
    with small_disk(tmp_path / "disk") as disk:
        async with EmbeddedServer(disk / "store", max_file_store_bytes=1024**3) as server:
            world = World(server, tmp_path)
            try:
                yield world
            finally:
                world.close()
                say(world.logs())


async def test_a_full_disk_refuses_what_it_cannot_keep_and_recovers(on_small_disk: World) -> None:
    world = on_small_disk
    await world.coordinator()
    await world.agent("worker")
    async with world.client() as client:
        workflow = Workflow("disk", tasks=[Task("a", "worker")])
        await client.deploy(workflow.definition())
        confirmed = [await client.start("disk")]
        await all_finished(client, confirmed, 20.0)
        store = world.server.store
        ballast = store.parent / "ballast"
        state = os.statvfs(store)
        ballast.write_bytes(b"\0" * (state.f_bavail * state.f_frsize - LEFT_BYTES))
        with pytest.raises(StorageUnavailable, match="confirmed no write"):
            for _ in range(1000):
                confirmed.append(await client.start("disk", {"filler": FILLER}))
        say(f"{len(confirmed)} starts were confirmed before the disk was full")
        # The documented action.
        ballast.unlink()
        await world.server.stop()
        await world.server.start()
        states = await all_finished(client, confirmed, 60.0)
        assert set(states.values()) == {"completed"}
        assert (await client.execute("disk", timeout=30.0)).status == "completed"
        # What was refused is either unknown, or whole: it was tried again while anybody could.
        await asyncio.sleep(1.0)
        assert {one.state for one in await client.list()} == {"completed"}
        begun = [(line.execution, line.attempt) for line in lines_of(world.journal) if line.event == "began"]
        assert len(begun) == len(set(begun))
