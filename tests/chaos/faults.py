"""The faults: what each does, for how long, and how it is taken back. Which strikes when follows from the seed."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_bus.api import CONSUMER_NOT_FOUND, JetStreamApi, JetStreamError
from infinity_matrix_bus.session import Endpoint, Session

from .disk import Disk
from .fleet import Fleet, Member
from .proxy import Mode
from .servers import Servers
from .workloads import PLAIN, SDK, SHARDS

GAP_S = (0.3, 2.0)
#: Some begin while another lasts.
OVERLAPPING = 0.35
MEMBERS = ("coordinator", "agent", "plain_agent", "client")
#: So many of a role at most are in a fault's hands at once.
STRUCK_MAX = {"coordinator": 1, "agent": 1, "plain_agent": 1, "client": 1}
ASK_S, ASK_AGAIN_S = 60.0, 0.5
#: After this a cluster is struck although it has not caught up.
WHOLE_S = 30.0
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault that struck; times are seconds since the epoch. Recovery counts from `over_at`.

    That is when it struck a process, for others take over, and when a server is back.
    """

    kind: str
    victim: str
    at: float
    over_at: float


#: Told the victim when recovery begins to count.
Over = Callable[[str], None]
Kind = tuple[str, Callable[[Over], Awaitable[None]]]


class Faults:
    """Strikes one fault after another until told to stop; afterwards nothing is left of them."""

    def __init__(
        self,
        fleet: Fleet,
        servers: Servers,
        disks: list[Disk],
        randomness: random.Random,
        only: str,
        on_over: Callable[[Strike], None],
    ) -> None:
        self._fleet = fleet
        self._servers = servers
        self._disks = disks
        self._randomness = randomness
        self._only = only
        self._on_over = on_over
        #: Servers are struck one at a time.
        self._servers_free = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()
        self.strikes: list[Strike] = []
        #: When each began: what an execution must have been open at.
        self.began: list[float] = []
        self.failures: list[str] = []
        self._bag: list[Kind] = []

    def _kinds(self) -> list[Kind]:
        kinds: list[Kind] = [
            ("server killed", lambda over: self._server(self._servers.kill, over)),
            ("server stopped", lambda over: self._server(self._servers.stop, over)),
            ("server frozen", self._server_frozen),
            ("consumer deleted", self._consumer_deleted),
            ("work purged", self._work_purged),
        ]
        if all(disk.is_own for disk in self._disks):
            kinds.append(("disk full", self._disk_full))
        if self._servers.is_divisible:
            kinds += [("server cut off", self._server_cut_off), ("leader killed", self._leader_killed)]
        for role in MEMBERS:
            kinds.append((f"{role} killed", lambda over, role=role: self._member(role, self._killed, over)))  # type: ignore[misc]
            if role != "client":
                kinds.append((f"{role} frozen", lambda over, role=role: self._member(role, self._frozen, over)))  # type: ignore[misc]
                kinds.append((f"{role} stopped", lambda over, role=role: self._member(role, self._stopped, over)))  # type: ignore[misc]
        for mode in Mode:
            if mode is not Mode.CLEAN:
                kinds.append((f"network {mode}", lambda over, mode=mode: self._network(mode, over)))  # type: ignore[misc]
        return [(name, strike) for name, strike in kinds if name.startswith(self._only)]

    async def run(self, until: float) -> None:
        """Strikes until `until` (monotonic), and returns when all is taken back."""
        while time.monotonic() < until:
            await asyncio.sleep(self._randomness.uniform(*GAP_S))
            if not self._bag:
                # Every kind once, in an order of their own, and then again.
                self._bag = self._kinds()
                self._randomness.shuffle(self._bag)
            kind, strike = self._bag.pop()
            task = asyncio.create_task(self._strike(kind, strike))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            if self._randomness.random() > OVERLAPPING:
                await asyncio.wait([task])
        if self._running:
            await asyncio.wait(self._running)

    async def _strike(self, kind: str, strike: Callable[[Over], Awaitable[None]]) -> None:
        at = time.time()

        def over(victim: str) -> None:
            struck = Strike(kind, victim, at, time.time())
            self.strikes.append(struck)
            self._on_over(struck)

        try:
            await strike(over)
        except Exception as error:  # noqa: BLE001 - a fault that cannot be struck or taken back is a finding
            self.failures.append(f"{kind}: {type(error).__name__}: {error}")

    # Servers.

    @asynccontextmanager
    async def _whole_servers(self) -> AsyncIterator[None]:
        """The servers, once none is struck or has still to catch up: two of three gone is another promise."""
        async with self._servers_free:
            if self._servers.count > 1:
                with suppress(TimeoutError):
                    async with asyncio.timeout(WHOLE_S):
                        while not await self._call(_is_whole):  # noqa: ASYNC110
                            await asyncio.sleep(ASK_AGAIN_S)
            self.began.append(time.time())
            yield

    async def _server(self, end: Callable[[int], Awaitable[None]], over: Over, number: int | None = None) -> None:
        async with self._whole_servers():
            number = self._randomness.randrange(self._servers.count) if number is None else number
            await end(number)
            await asyncio.sleep(self._randomness.uniform(0.0, 2.0))
            await self._servers.start(number)
            over(f"server-{number}")

    async def _server_frozen(self, over: Over) -> None:
        async with self._whole_servers():
            number = self._randomness.randrange(self._servers.count)
            self._servers.pause(number)
            await asyncio.sleep(self._randomness.uniform(0.5, 8.0))
            self._servers.resume(number)
            over(f"server-{number}")

    async def _server_cut_off(self, over: Over) -> None:
        """The others go on; who is connected to this one finds out by itself."""
        async with self._whole_servers():
            number = self._randomness.randrange(self._servers.count)
            self._servers.cut_off(number)
            await asyncio.sleep(self._randomness.uniform(3.0, 10.0))
            self._servers.join(number)
            over(f"server-{number}")

    async def _leader_killed(self, over: Over) -> None:
        stream = f"IM_FACTS_{self._randomness.randrange(SHARDS)}"
        info = await self._call(lambda api: api.stream_info(stream))
        leader = ((info or {}).get("cluster") or {}).get("leader") or "node-0"
        await self._server(self._servers.kill, over, int(leader.rpartition("-")[2]))

    async def _disk_full(self, over: Over) -> None:
        """After it there is room again, and the server is restarted: until then it refuses all writes."""
        async with self._whole_servers():
            number = self._randomness.randrange(self._servers.count)
            try:
                self._disks[number].fill()
                await asyncio.sleep(self._randomness.uniform(0.5, 3.0))
            finally:
                self._disks[number].empty()
            await self._servers.kill(number)
            await self._servers.start(number)
            over(f"disk-{number}")

    # Streams.

    async def _consumer_deleted(self, over: Over) -> None:
        agent = self._randomness.choice([SDK, PLAIN])
        self.began.append(time.time())

        async def delete(api: JetStreamApi) -> None:
            try:
                await api.delete_consumer("IM_WORK", agent)
            except JetStreamError as error:
                # Asked for twice, because the first answer was lost.
                if error.code != CONSUMER_NOT_FOUND:
                    raise

        await self._call(delete)
        over(agent)

    async def _work_purged(self, over: Over) -> None:
        self.began.append(time.time())
        await self._call(lambda api: api.purge("IM_WORK", "im.work.>"))
        over("IM_WORK")

    async def _call(self, call: Callable[[JetStreamApi], Awaitable[Answer]]) -> Answer:
        """Asks a server until there is an answer: a cluster may have no leader for some seconds."""
        async with asyncio.timeout(ASK_S):
            while True:
                try:
                    session = await Session.connect(Endpoint(self._servers.url))
                    try:
                        return await call(JetStreamApi(session))
                    finally:
                        await session.close()
                except InfinityMatrixError:
                    await asyncio.sleep(ASK_AGAIN_S)

    # Members.

    async def _member(self, role: str, strike: Callable[[Member, Over], Awaitable[None]], over: Over) -> None:
        members = self._fleet.of(role)
        free = [member for member in members if not member.is_struck]
        if not free or len(members) - len(free) >= STRUCK_MAX[role]:
            return
        member = self._randomness.choice(free)
        member.is_struck = True
        self.began.append(time.time())
        try:
            await strike(member, over)
        finally:
            member.is_struck = False

    async def _killed(self, member: Member, over: Over) -> None:
        member.send(signal.SIGKILL)
        over(member.name)
        await asyncio.sleep(self._randomness.uniform(0.0, 3.0))
        member.start()

    async def _stopped(self, member: Member, over: Over) -> None:
        member.send(signal.SIGTERM)
        over(member.name)
        if not await member.ended():
            self.failures.append(f"{member.name} did not end when it was told to")
            member.send(signal.SIGKILL)
            await member.ended()
        member.start()

    async def _frozen(self, member: Member, over: Over) -> None:
        member.send(signal.SIGSTOP)
        over(member.name)
        try:
            await asyncio.sleep(self._randomness.uniform(1.0, 12.0))
        finally:
            member.send(signal.SIGCONT)

    async def _network(self, mode: Mode, over: Over) -> None:
        free = [member for member in self._fleet.members if not member.is_struck]
        if not free:
            return
        member = self._randomness.choice(free)
        member.is_struck = True
        self.began.append(time.time())
        member.strike(mode, self._randomness)
        over(member.name)
        try:
            await asyncio.sleep(self._randomness.uniform(1.0, 8.0))
        finally:
            member.heal()
            member.is_struck = False


async def _is_whole(api: JetStreamApi) -> bool:
    """Whether every stream has a leader, and replicas that have all of it."""
    record = await api.call("STREAM.LIST")
    clusters = [stream["cluster"] for stream in record["streams"]]
    replicas = [replica for cluster in clusters for replica in cluster.get("replicas") or ()]
    return (
        not record.get("missing")
        and all(cluster.get("leader") for cluster in clusters)
        and len(replicas) == 2 * len(clusters)
        and all(replica.get("current") and not replica.get("offline") for replica in replicas)
    )
