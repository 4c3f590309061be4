"""The consumers that agents take their work from: made when a definition names an agent, and again when they are gone.

One that is there already is corrected: an agent without a library may have made it with other limits. A lease that an
operator shortened stays: nothing here needs a long one, but a longer one would outlast what waits for its end.
"""

import asyncio
from collections.abc import Iterable

from infinity_matrix_bus.api import JetStreamApi, JetStreamError
from infinity_matrix_bus.installation import Installation, mend_derived_streams
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.streams import agent_consumer

log = get_logger("infinity_matrix.coordinator")


class AgentConsumers:
    """The consumers one coordinator has seen to, on one session."""

    def __init__(self, session: Session, installation: Installation) -> None:
        self._session = session
        self._installation = installation
        self._subjects = installation.subjects()
        self._api = JetStreamApi(session)
        self._made: set[str] = set()
        #: All shards may load definitions of one agent at once: one of them makes its consumer, the others wait.
        self._making = asyncio.Lock()

    async def ensure(self, agents: Iterable[str]) -> None:
        """Makes or corrects those not seen to on this session; raises RequestTimeout, SessionLost."""
        for agent in agents:
            if agent not in self._made:
                async with self._making:
                    if agent not in self._made:
                        await self._make(agent)

    async def mend(self, agents: Iterable[str]) -> None:
        """Makes those again that are gone: deleted by an operator, or lost with their stream; raises as `ensure`."""
        stream = self._subjects.work_stream
        # Also where nobody waits for an agent: what is closed is purged from it before anything follows.
        if await self._api.stream_info(stream) is None:
            log.warning("work_stream_missing", stream=stream)
            await mend_derived_streams(self._session, self._installation)
        for agent in agents:
            if await self._api.consumer_info(stream, agent) is None:
                log.warning("consumer_missing", agent=agent)
                await self._make(agent)

    async def _make(self, agent: str) -> None:
        stream, wanted = self._subjects.work_stream, agent_consumer(self._subjects, agent)
        try:
            info = await self._api.consumer_info(stream, agent)
            if info is not None:
                known = info["config"]
                wanted["ack_wait"] = min(wanted["ack_wait"], int(known.get("ack_wait") or wanted["ack_wait"]))
                # The one limit that the server does not let anybody change; asked to, it would change nothing.
                wanted["max_waiting"] = known.get("max_waiting", wanted["max_waiting"])
            await self._api.create_consumer(stream, agent, wanted)
            self._made.add(agent)
        except JetStreamError as error:
            log.error("consumer_not_made", agent=agent, reason=str(error))
