"""The disorder of a run: which faults strike when, and that all of them end."""

from collections.abc import Callable
from random import Random

from .loop import Process
from .world import World

#: Callbacks of a process, or operations on streams, after which a fault that waits for work strikes.
FUSE_MAX = 400
#: All that goes wrong in a run, here and as a consequence in the server, the workload and the processes.
KINDS = (
    *("coordinator killed", "agent killed", "coordinator stopped", "agent stopped", "server killed"),
    *("connection broken", "connection silent", "connection slow", "PubAcks lost", "lost PubAck"),
    *("acks lost", "lost ack", "reads lag", "lagging read", "log lags", "redelivered early"),
    "redelivered, count forgotten",
    *(
        "forgotten ack",
        "removal forgotten, ack kept",
        "forgotten Msg-Id",
        "lost derived message",
        "pulls forgotten",
        "consumer deleted",
    ),
    *("work purged", "work stream lost", "status stream lost", "work stream full", "log full", "garbage in the log"),
    *("agent that never asks", "acked too early", "agent dies of its work", "two owners at once", "clock off"),
    *("started twice", "cancel", "clock set"),
)
#: The longest of the faults of a run whose log forgets early, in seconds.
BRIEF_S = 7.0
GARBAGE = (b"", b"{", b'{"v":1}', b"\xff\xfe", b'{"result":', b"[]", b"null")


class Disorder:
    """Strikes a world with faults for a while; `coordinators` and `agents` answer who lives now."""

    def __init__(
        self,
        world: World,
        coordinators: Callable[[], list[Process]],
        agents: Callable[[], list[Process]],
        *,
        is_brief: bool = False,
    ) -> None:
        self._world = world
        #: Nothing is away for as long as a log with a short age keeps what is written meanwhile.
        self._longest_s = BRIEF_S if is_brief else float("inf")
        self._random = Random(f"disorder/{world.seed}")
        self._coordinators = coordinators
        self._agents = agents
        self._kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "coordinator killed": (4, lambda: self._kill(coordinators())),
            "agent killed": (2, lambda: self._kill(agents())),
            "coordinator stopped": (3, lambda: self._stop(coordinators())),
            "agent stopped": (2, lambda: self._stop(agents())),
            "server killed": (4, self._crash_server),
            "connection broken": (2, self._break),
            "connection silent": (1, self._silence),
            "connection slow": (3, self._slow),
            "PubAcks lost": (2, lambda: self._for_a_while("lost_replies", self._random.choice((0.05, 0.3, 0.8)))),
            "acks lost": (2, lambda: self._for_a_while("lost_acks", self._random.choice((0.1, 0.5, 1.0)))),
            "reads lag": (2, lambda: self._for_a_while("read_lag_ns", self._random.choice((1e7, 2e8, 2e9)))),
            "log lags": (4, self._hold),
            "redelivered early": (3, self._redeliver),
            "pulls forgotten": (2, self._forget_pulls),
            "work purged": (2, lambda: self._lose("work purged", "IM_WORK", entirely=False)),
            "work stream lost": (1, lambda: self._lose("work stream lost", "IM_WORK", entirely=True)),
            "status stream lost": (1, lambda: self._lose("status stream lost", "IM_STATUS", entirely=True)),
            "consumer deleted": (2, self._delete_consumer),
            "work stream full": (2, lambda: self._fill("IM_WORK")),
            "log full": (3, lambda: self._fill("IM_FACTS_")),
            "garbage in the log": (1, self._garbage),
        }

    def arm(self, from_s: float, to_s: float, count: int) -> None:
        """Lets so many faults strike between these times."""
        kinds = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        # Few kinds a run, often: some holes need the same fault twice.
        chosen = self._random.choices(kinds, weights, k=self._random.choice((1, 2, 3, 6)))
        for _ in range(count):
            kind = self._random.choice(chosen)
            at_s = self._random.uniform(from_s, to_s)
            self._world.loop.post(self._world.server_process, at_s, self._strike, kind)
        # Drawn apart: what strikes the older seeds stays as it was.
        clocks = Random(f"clocks/{self._world.seed}")
        for _ in range(clocks.choice((0, 0, 0, 2))):
            step_s = clocks.choice((-86_400.0, -30.0, 30.0, 86_400.0))
            self._world.loop.post(self._world.server_process, clocks.uniform(from_s, to_s), self._set_clock, step_s)

    def _strike(self, kind: str) -> None:
        self._kinds[kind][1]()
        self._world.server.flush()

    def _count(self, kind: str) -> None:
        self._world.faults.count(kind)

    # Processes.

    def _kill(self, processes: list[Process]) -> None:
        if not processes:
            return
        process = self._random.choice(processes)
        kind = "coordinator killed" if process in self._coordinators() else "agent killed"

        def kill() -> None:
            if process.is_alive:
                self._count(kind)
                self._world.loop.kill(process)

        self._soon(process, kill)

    def _stop(self, processes: list[Process]) -> None:
        if not processes:
            return
        process = self._random.choice(processes)
        kind = "coordinator stopped" if process in self._coordinators() else "agent stopped"
        for_s = min(self._longest_s, self._random.choice((0.2, 2.0, 7.0, 35.0, 50.0)))

        def stop() -> None:
            if process.is_alive and not process.is_stopped:
                self._count(kind)
                self._world.loop.stop_process(process, for_s)

        self._soon(process, stop)

    def _set_clock(self, step_s: float) -> None:
        """As somebody may set the clock of a machine, or a time server does: all its processes see it at once."""
        for process in (*self._coordinators(), *self._agents()):
            self._count("clock set")
            process.skew_s += step_s

    def _soon(self, process: Process, fault: Callable[[], None]) -> None:
        """After some callbacks of the process: at an await in the middle of its work."""
        loop, server_process = self._world.loop, self._world.server_process
        process.fuse = self._random.randrange(1, FUSE_MAX)

        def burn() -> None:
            loop.post(server_process, loop.now, fault)

        process.on_fuse = burn

    # The server and the network.

    def _crash_server(self) -> None:
        down_s = self._random.choice((0.02, 0.3, 2.0, 8.0))

        def crash() -> None:
            if self._world.server.is_up:
                self._count("server killed")
                self._world.crash_server(down_s)

        self._world.on_server_fuse = crash
        self._world.server_fuse = self._random.randrange(1, 60)

    def _break(self) -> None:
        links = list(self._world.network.links)
        if links:
            self._count("connection broken")
            self._random.choice(links).close_from_server()

    def _silence(self) -> None:
        links = [link for link in self._world.network.links if not link.is_silent]
        if links:
            self._count("connection silent")
            self._random.choice(links).silence()

    def _slow(self) -> None:
        links = list(self._world.network.links)
        if links:
            self._count("connection slow")
            link = self._random.choice(links)
            link.slow(self._random.choice((0.03, 0.3, 1.0, 2.5)), self._random.uniform(1.0, 15.0))

    # The streams.

    def _for_a_while(self, name: str, value: float) -> None:
        faults = self._world.faults
        self._count({"lost_replies": "PubAcks lost", "lost_acks": "acks lost", "read_lag_ns": "reads lag"}[name])
        setattr(faults, name, value)
        over_s = self._world.loop.now + self._random.uniform(0.5, 8.0)
        self._world.loop.post(self._world.server_process, over_s, setattr, faults, name, 0)

    def _lose(self, kind: str, stream: str, *, entirely: bool) -> None:
        self._count(kind)
        self._world.streams.lose(stream, entirely=entirely)

    def _hold(self) -> None:
        """Readers of the log are behind, while all else is answered at once."""
        streams = self._world.streams
        for_s = self._random.choice((0.05, 0.5, 3.0, 6.0, 35.0))
        if self._random.random() < 0.03:
            for_s = 140.0
        for_s = min(self._longest_s, for_s)
        for name in streams.streams:
            if name.startswith("IM_FACTS_"):
                self._count("log lags")
                streams.faults.held_until_ns[name] = streams.now_ns() + round(for_s * 1e9)

    def _redeliver(self) -> None:
        for consumer in self._world.streams.consumers.values():
            for sequence in list(consumer.pending):
                if self._random.random() < 0.7:
                    self._count("redelivered early")
                    consumer.redeliver(sequence)

    def _forget_pulls(self) -> None:
        """As when the leader of a consumer changes."""
        consumers = list(self._world.streams.consumers.values())
        if consumers:
            self._count("pulls forgotten")
            self._random.choice(consumers).change_leader()

    def _delete_consumer(self) -> None:
        consumers = list(self._world.streams.consumers.values())
        if consumers:
            self._count("consumer deleted")
            self._world.streams.drop_consumer(self._random.choice(consumers))

    def _fill(self, name: str) -> None:
        for stream in self._world.streams.streams.values():
            if stream.name.startswith(name) and not stream.is_full:
                self._count("work stream full" if name == "IM_WORK" else "log full")
                stream.is_full = True
                over_s = self._world.loop.now + self._random.choice((0.2, 2.0, 8.0))
                self._world.loop.post(self._world.server_process, over_s, setattr, stream, "is_full", False)

    def _garbage(self) -> None:
        """Facts by someone who knows no capability, of executions that are there."""
        streams = [one for one in self._world.streams.streams.values() if one.name.startswith("IM_FACTS_")]
        started = [subject for one in streams for subject in one.by_subject if subject.endswith(".started")]
        if not started:
            return
        subject = self._random.choice(started).removesuffix(".started")
        for tail in ("outcome.agent-a.t0.1.0000000000000000", "finished.1.0000000000000000", "due.t0.2.0", "x"):
            self._count("garbage in the log")
            data = self._random.choice((*GARBAGE, b'{"result":1}'))
            self._world.server.publish(f"{subject}.{tail}", "", b"", data)

    def end(self) -> None:
        """All faults are over."""
        faults = self._world.faults
        faults.lost_replies = faults.lost_acks = 0.0
        faults.read_lag_ns = 0
        faults.held_until_ns.clear()
        for stream in self._world.streams.streams.values():
            stream.is_full = False
        self._world.server_fuse = 0
