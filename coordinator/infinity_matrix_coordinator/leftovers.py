"""Leftovers: works that their agent's consumer counts as done and that the queue still holds.

A server that is killed may have written a consumer's acks and not the removal of what they were for; or a work was
given out too often, and nobody heard the server say so. Nobody is given such a work again, and to a sweep it looks as
if it waited. It is taken out; what is open of it is then absent, and is repaired like anything that was lost.
"""

from collections.abc import AsyncIterator

from infinity_matrix_bus.api import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, JetStreamApi, JetStreamError, NoLeader
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.subjects import Subjects

#: Taken out of one agent's queue by one sweep; what is more waits for the next.
LEFTOVERS_A_SWEEP = 256
log = get_logger("infinity_matrix.coordinator")


class Leftovers:
    """The leftovers of all agents. One owner of all looks for them; two do no harm."""

    def __init__(self, api: JetStreamApi, subjects: Subjects) -> None:
        self._api = api
        self._stream = subjects.work_stream

    async def take_out(self) -> int:
        """Takes out what is left over, and answers how much; raises JetStreamError, RequestTimeout, SessionLost."""
        info = await self._api.stream_info(self._stream)
        if info is None or not info["state"]["messages"]:
            return 0
        first = int(info["state"]["first_seq"])
        taken = 0
        try:
            async for consumer in self._api.paged(f"CONSUMER.LIST.{self._stream}", "consumers"):
                # The floor is read before the messages: what lies below it was acked and comes to nobody any more.
                floor = int(consumer["ack_floor"]["stream_seq"])
                if not consumer["num_ack_pending"]:
                    # All that was given out is over. The floor itself is only raised by the next ack.
                    floor = max(floor, int(consumer["delivered"]["stream_seq"]))
                pattern = consumer["config"].get("filter_subject")
                if floor >= first and pattern:
                    taken += await self._take_out_of(str(pattern), first, floor)
        except JetStreamError as error:
            if error.code not in (STREAM_NOT_FOUND, CONSUMER_NOT_FOUND):
                raise
        if taken:
            log.warning("leftovers_taken_out", works=taken)
        return taken

    async def _take_out_of(self, pattern: str, first: int, floor: int) -> int:
        taken = 0
        async for sequence in self._below(pattern, first, floor):
            try:
                await self._api.delete_message(self._stream, sequence)
                taken += 1
            except NoLeader:
                raise
            except JetStreamError as error:
                # Its removal was only late.
                log.debug("leftover_is_gone", sequence=sequence, reason=str(error))
        return taken

    async def _below(self, pattern: str, first: int, floor: int) -> AsyncIterator[int]:
        """The sequences on a pattern from `first` to `floor`, as the stream's leader has them."""
        for _ in range(LEFTOVERS_A_SWEEP):
            message = await self._api.next_message(self._stream, first, pattern)
            if message is None or message.sequence > floor:
                return
            yield message.sequence
            first = message.sequence + 1
