"""The coordinator process: it shares the shards with its peers, and runs those that are its own.

Everything here belongs to one session. When that is lost, all of it ends and begins again on the next.
"""

import asyncio
import contextlib
import os
import secrets
import socket

from infinity_matrix_actors.errors import InfinityMatrixError, StorageUnavailable, Unreachable
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.api import STREAM_NOT_FOUND, JetStreamError
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.definitions import DefinitionStore
from infinity_matrix_bus.installation import SHARDS_DEFAULT, Installation, install, still_stands
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.publisher import Outbox
from infinity_matrix_bus.session import Endpoint, RequestTimeout, Session, SessionLost
from infinity_matrix_bus.subjects import Subjects

from infinity_matrix_coordinator.agent_consumers import AgentConsumers
from infinity_matrix_coordinator.checkpoints import CHECKPOINT_AFTER_S
from infinity_matrix_coordinator.members import HEARTBEAT_S, Membership, shards_of
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.purging import PURGE_AGE_MIN_S
from infinity_matrix_coordinator.schedules import Schedules
from infinity_matrix_coordinator.service import ApiService
from infinity_matrix_coordinator.shard import Shard
from infinity_matrix_coordinator.standing_service import StandingService
from infinity_matrix_coordinator.sweep import SWEEP_INTERVAL_S
from infinity_matrix_coordinator.triggers import Triggers

RESTART_DELAY_S = 0.2
CONNECTED_WAIT_S = 60.0
MEND_RETRY_S = 5.0
FAILURE_DELAY_S = 2.0
PLANS_MAX = 10_000
log = get_logger("infinity_matrix.coordinator")


class Coordinator:
    """One coordinator. `start` returns when its shards are live; `stop` ends it in order.

    `owns_all` runs every shard whatever the others do: wasteful and harmless, for tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        prefix: str = "im",
        shards: int = SHARDS_DEFAULT,
        owns_all: bool = False,
        sweep_interval_s: float = SWEEP_INTERVAL_S,
        checkpoint_after_s: float = CHECKPOINT_AFTER_S,
        purge_age_min_s: float = PURGE_AGE_MIN_S,
    ) -> None:
        self.instance = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(3)}".replace("_", "-")
        self._connection = Connection(endpoint)
        self._prefix = prefix
        self._shards_wanted = shards
        self._owns_all = owns_all
        self._sweep_interval_s = sweep_interval_s
        self._checkpoint_after_s = checkpoint_after_s
        self._purge_age_min_s = purge_age_min_s
        self._plans: dict[str, Plan] = {}
        self._outbox: Outbox | None = None
        self._serving: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.shards: dict[int, Shard] = {}
        self.installation: Installation | None = None
        self._consumers: AgentConsumers | None = None
        self._interruption = ""
        self._membership: Membership | None = None
        self._members: set[str] = {self.instance}
        self._schedules: Schedules | None = None

    async def start(self, timeout_s: float = 30.0) -> "Coordinator":
        """Connects, installs what is missing and takes its shards; raises Unreachable, StorageUnavailable."""
        await self._connection.open()
        self._outbox = Outbox(self._connection)
        await self._connection.add_listener(self._outbox.on_session)
        self._serving = asyncio.create_task(self._serve(), name="coordinator")
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait([ready, self._serving], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._serving.done():
                self._serving.result()
            if self.installation is None:
                await self.stop()
                raise StorageUnavailable(self._interruption or f"nothing was installed within {timeout_s:g} s")
        finally:
            ready.cancel()
        return self

    async def stop(self) -> None:
        """Leaves the members and ends; what is under way is derived again by the next owner."""
        serving, self._serving = self._serving, None
        if self._membership is not None:
            # A session that is lost may have a successor already that has not been served yet.
            with contextlib.suppress(SessionLost):
                self._membership.leave()
        if self._outbox is not None and self._connection.is_connected:
            await self._outbox.drained(1.0)
        if serving is not None:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        if self._outbox is not None:
            self._outbox.close()
        await self._connection.close()

    async def run(self) -> None:
        """Runs until cancelled."""
        assert self._serving is not None
        await self._serving

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def prefix(self) -> str:
        return self._prefix

    @property
    def open_executions(self) -> int:
        """Executions that are not finished on the shards of this process."""
        return sum(len(shard.mailbox.executions) + len(shard.mailbox.parked) for shard in self.shards.values())

    @property
    def armed_schedules(self) -> int:
        """Schedules of the installation with something to come."""
        return 0 if self._schedules is None else self._schedules.armed

    @property
    def is_live(self) -> bool:
        return bool(self.shards) and all(shard.is_live for shard in self.shards.values())

    async def _serve(self) -> None:
        while True:
            session = await self._connected()
            try:
                await self._serve_session(session)
            except InfinityMatrixError as error:
                self._interruption = str(error)
                log.warning("coordinator_interrupted", reason=self._interruption)
                await asyncio.sleep(RESTART_DELAY_S if session.is_lost else FAILURE_DELAY_S)
            except Exception:
                # Everything here is derived again on the next turn; a coordinator that ends helps nobody.
                log.exception("coordinator_failed")
                await asyncio.sleep(FAILURE_DELAY_S)

    async def _connected(self) -> Session:
        while True:
            try:
                return await self._connection.connected(CONNECTED_WAIT_S)
            except Unreachable:
                log.debug("still_not_connected")

    async def _serve_session(self, session: Session) -> None:
        assert self._outbox is not None
        installation = self.installation
        is_known = installation is not None and await still_stands(session, installation)
        if installation is None or not is_known:
            self.installation = installation = await install(session, self._prefix, self._shards_wanted)
        self._consumers = AgentConsumers(session, installation)
        subjects = installation.subjects()
        operations = await Operations(self._connection, installation).open()
        service = ApiService(session, operations, subjects, self.instance)
        standing = StandingService(session, subjects, self.instance, lambda: self.shards)
        self._membership = Membership(session, subjects, self.instance)
        self._membership.heartbeat()
        running: dict[int, asyncio.Task[None]] = {}
        self._schedules = Schedules(
            session,
            subjects,
            installation.shards,
            self.instance,
            lambda: {self.instance} if self._owns_all else self._members,
        )
        others = [
            asyncio.create_task(self._serve_triggers(session, installation), name="triggers"),
            asyncio.create_task(self._schedules.run(), name="schedules"),
        ]
        if is_known:
            others.append(asyncio.create_task(self._mend(session), name="mend"))
        try:
            await service.open()
            await standing.open()
            while not session.is_lost:
                await self._share(session, subjects, installation, running)
                for task in others:
                    if task.done():
                        task.result()
                await self._pause(session)
        finally:
            for task in [*running.values(), *others]:
                task.cancel()
            await asyncio.gather(*running.values(), *others, return_exceptions=True)
            self.shards.clear()
            await service.close()
            await standing.close()
            operations.close()

    async def _serve_triggers(self, session: Session, installation: Installation) -> None:
        """Serves events; while a cluster has no leader for them they wait, and hold up no execution."""
        assert self._outbox is not None
        subjects = installation.subjects()
        while not session.is_lost:
            triggers = Triggers(
                session, subjects, installation.shards, self._outbox, lambda digest: self._load_plan(session, digest)
            )
            try:
                await triggers.run()
            except InfinityMatrixError as error:
                if not session.is_lost:
                    log.warning("triggers_interrupted", reason=str(error))
                    if isinstance(error, JetStreamError) and error.code == STREAM_NOT_FOUND:
                        await self._mend(session)
                    else:
                        await asyncio.sleep(FAILURE_DELAY_S)

    async def _mend(self, session: Session) -> None:
        """Makes what is missing of an installation that is known, and holds up nobody: a cluster that elects its
        leaders can do without what is made here."""
        while not session.is_lost:
            try:
                await install(session, self._prefix, self._shards_wanted)
                # What was gone may have been restored, and the logs with it.
                for shard in list(self.shards.values()):
                    await shard.look_at_log()
                return
            except InfinityMatrixError as error:
                log.warning("installation_not_mended", reason=str(error))
                await asyncio.sleep(MEND_RETRY_S)

    async def _share(
        self, session: Session, subjects: Subjects, installation: Installation, running: dict[int, asyncio.Task[None]]
    ) -> None:
        """Starts and stops shards, so that this process runs what is its own now."""
        assert self._membership is not None
        self._membership.heartbeat()
        members = {self.instance}
        if not self._owns_all:
            try:
                members = self._members = await self._membership.members()
            except (JetStreamError, RequestTimeout) as error:
                # Nobody's shards change hands because a question was not answered.
                log.info("members_not_read", reason=str(error))
                members = self._members
        mine = shards_of(self.instance, members, installation.shards)
        for number in list(running):
            if number not in mine or running[number].done():
                task = running.pop(number)
                self.shards.pop(number, None)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                log.info("shard_released", shard=number, instance=self.instance)
        for number in mine - running.keys():
            log.info("shard_taken", shard=number, instance=self.instance)
            running[number] = asyncio.create_task(
                self._run_shard(session, subjects, installation, number), name=f"shard-{number}"
            )
        # Who has no shard is ready too, and stands by.
        if len(self.shards) == len(mine) and all(shard.is_live for shard in self.shards.values()):
            self._ready.set()

    async def _run_shard(self, session: Session, subjects: Subjects, installation: Installation, number: int) -> None:
        assert self._outbox is not None
        assert self._consumers is not None
        artifacts = ArtifactStore(self._session_now, subjects)
        shard = Shard(
            session,
            subjects,
            number,
            installation.shards,
            self._outbox,
            self._plans,
            self._load_plan,
            self._consumers.mend,
            artifacts,
            instance=self.instance,
            sweep_interval_s=self._sweep_interval_s,
            checkpoint_after_s=self._checkpoint_after_s,
            purge_age_min_s=self._purge_age_min_s,
        )
        try:
            self.shards[number] = shard
            await shard.run()
        except InfinityMatrixError as error:
            log.warning("shard_stopped", shard=number, reason=str(error))

    async def _session_now(self) -> Session:
        return self._connection.session

    async def _pause(self, session: Session) -> None:
        """Until the next look at the members; shorter while shards are on their way to the head."""
        interval_s = HEARTBEAT_S if self._ready.is_set() else 0.02
        try:
            async with asyncio.timeout(interval_s):
                await session.lost.wait()
        except TimeoutError:
            return

    async def _load_plan(self, session: Session, digest: str) -> Plan | None:
        """A definition's plan, once its agents' consumers are there; None while it is not readable."""
        plan = self._plans.get(digest)
        if plan is None:
            assert self.installation is not None
            subjects = self.installation.subjects()
            try:
                definition = await DefinitionStore(session, subjects).load(digest)
                if definition is None:
                    return None
                plan = Plan.of(definition, digest)
            except (InfinityMatrixError, ValueError, KeyError, TypeError) as error:
                log.error("definition_unreadable", definition=digest, reason=str(error))
                return None
            self._plans[digest] = plan
            if len(self._plans) > PLANS_MAX:
                self._plans.pop(next(iter(self._plans)))
        assert self._consumers is not None
        await self._consumers.ensure(plan.agents)
        return plan
