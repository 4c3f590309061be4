"""The servers of a run: one, or three that replicate all, each in a network namespace where that is permitted."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.server_binary import find_server

from .fleet import die_with_parent

CLUSTER = "chaos"
READY_S = 30.0
#: Two runs at once have networks of their own.
NETWORK = f"10.213.{os.getpid() % 254 + 1}"


class Servers(Protocol):
    """What faults may do to the servers, by their number."""

    token: str
    count: int
    #: Whether one can be cut off from the others.
    is_divisible: bool

    @property
    def targets(self) -> list[tuple[str, int]]: ...
    @property
    def url(self) -> str: ...
    async def open(self) -> None: ...
    async def kill(self, number: int) -> None: ...
    async def stop(self, number: int) -> None: ...
    async def start(self, number: int) -> None: ...
    def pause(self, number: int) -> None: ...
    def resume(self, number: int) -> None: ...
    def cut_off(self, number: int) -> None: ...
    def join(self, number: int) -> None: ...
    async def close(self) -> None: ...


class OneServer:
    """The embedded server, as users have it."""

    count = 1
    is_divisible = False

    def __init__(self, store: Path) -> None:
        self._server = EmbeddedServer(store, start_deadline_s=READY_S)
        self.token = self._server.token

    @property
    def targets(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", int(self._server.url.rpartition(":")[2]))]

    @property
    def url(self) -> str:
        return self._server.connect_url

    async def open(self) -> None:
        await self._server.start()

    async def kill(self, number: int) -> None:
        await self._server.kill()

    async def stop(self, number: int) -> None:
        await self._server.stop()

    async def start(self, number: int) -> None:
        await self._server.start()

    def pause(self, number: int) -> None:
        self._server.pause()

    def resume(self, number: int) -> None:
        self._server.resume()

    def cut_off(self, number: int) -> None:
        raise NotImplementedError

    def join(self, number: int) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self._server.stop()


@dataclass(slots=True)
class _Node:
    number: int
    host: str
    port: int
    route_port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


class ThreeServers:
    """A cluster in which every stream has three replicas. `cut_off` takes a node's network away, not its life."""

    count = 3

    def __init__(self, stores: list[Path]) -> None:
        self.token = secrets.token_urlsafe(16)
        self._binary = str(find_server().path)
        self._name = f"imx{os.getpid() % 100_000}"
        self.is_divisible = self._make_network()
        self._nodes: list[_Node] = []
        for number in range(self.count):
            host = f"{NETWORK}.{number + 2}" if self.is_divisible else "127.0.0.1"
            port, route_port = (4222, 6222) if self.is_divisible else (_free_port(), _free_port())
            self._nodes.append(_Node(number, host, port, route_port, stores[number]))

    @property
    def targets(self) -> list[tuple[str, int]]:
        return [(node.host, node.port) for node in self._nodes]

    @property
    def url(self) -> str:
        return ",".join(f"nats://{self.token}@{node.host}:{node.port}" for node in self._nodes)

    async def open(self) -> None:
        await asyncio.gather(*(self.start(node.number) for node in self._nodes))

    async def start(self, number: int) -> None:
        node = self._nodes[number]
        if node.runs:
            return
        node.folder.mkdir(parents=True, exist_ok=True)
        config = node.folder / "server.conf"
        config.write_text(json.dumps(self._config(node), indent=2))
        inside = ["ip", "netns", "exec", f"{self._name}n{number}"] if self.is_divisible else []
        with (node.folder / "output.log").open("ab") as output:
            node.process = subprocess.Popen(  # noqa: ASYNC220
                [*inside, self._binary, "-c", str(config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )
        async with asyncio.timeout(READY_S):
            while not await _listens(node):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def kill(self, number: int) -> None:
        await self._end(number, signal.SIGKILL)

    async def stop(self, number: int) -> None:
        await self._end(number, signal.SIGTERM)

    async def _end(self, number: int, how: signal.Signals) -> None:
        process = self._nodes[number].process
        if process is not None:
            process.send_signal(how)
            try:
                await asyncio.to_thread(process.wait, 10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    def pause(self, number: int) -> None:
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        self._signal(number, signal.SIGCONT)

    def _signal(self, number: int, which: signal.Signals) -> None:
        process = self._nodes[number].process
        if process is not None and process.poll() is None:
            process.send_signal(which)

    def cut_off(self, number: int) -> None:
        _ip("link", "set", f"{self._name}h{number}", "down")

    def join(self, number: int) -> None:
        _ip("link", "set", f"{self._name}h{number}", "up")

    async def close(self) -> None:
        for node in self._nodes:
            if node.process is not None:
                node.process.kill()
                node.process.wait()
        if self.is_divisible:
            for number in range(self.count):
                _ip("netns", "del", f"{self._name}n{number}")
            _ip("link", "del", f"{self._name}b")

    def _make_network(self) -> bool:
        """A bridge, and a namespace for each node with a cable to it; false where that is not permitted."""
        name = self._name
        steps = [("link", "add", f"{name}b", "type", "bridge"), ("addr", "add", f"{NETWORK}.1/24", "dev", f"{name}b")]
        steps.append(("link", "set", f"{name}b", "up"))
        for number in range(self.count):
            space, here, there = f"{name}n{number}", f"{name}h{number}", f"{name}c{number}"
            inside = ("netns", "exec", space, "ip")
            steps += [
                ("netns", "add", space),
                ("link", "add", here, "type", "veth", "peer", "name", there),
                ("link", "set", there, "netns", space),
                ("link", "set", here, "master", f"{name}b"),
                ("link", "set", here, "up"),
                (*inside, "addr", "add", f"{NETWORK}.{number + 2}/24", "dev", there),
                (*inside, "link", "set", there, "up"),
                (*inside, "link", "set", "lo", "up"),
            ]
        return all(_ip(*step) for step in steps)

    def _config(self, node: _Node) -> dict[str, Any]:
        routes = [f"nats-route://{other.host}:{other.route_port}" for other in self._nodes if other is not node]
        return {
            "server_name": f"node-{node.number}",
            "listen": f"{node.host}:{node.port}",
            "log_file": str(node.folder / "server.log"),
            "max_payload": 1024 * 1024,
            "ping_interval": "2s",
            "ping_max": 2,
            "authorization": {"token": self.token},
            "jetstream": {
                "store_dir": str(node.folder / "jetstream"),
                "sync_interval": "always",
                "max_file_store": 4 * 1024**3,
                "max_memory_store": 64 * 1024**2,
                "limits": {"default_max_consumers": 10_000},
            },
            # Clients are told of no other address: they would go around their proxies.
            "cluster": {
                "name": CLUSTER,
                "listen": f"{node.host}:{node.route_port}",
                "routes": routes,
                "no_advertise": True,
            },
        }


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _listens(node: _Node) -> bool:
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(node.host, node.port)
            line = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return line.startswith(b"INFO ") and b'"jetstream":true' in line
