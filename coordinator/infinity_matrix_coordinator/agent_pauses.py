"""Pausing an agent's name: its consumer gives out no work until a time, whoever asks, and keeps what was given out.

What waits goes on waiting, its `queue_timeout` with it. The server keeps the pause: it needs no coordinator, outlives
restarts, and agents written without this project obey it as well.
"""

import time
from typing import Any

from infinity_matrix_actors.errors import UnknownAgent
from infinity_matrix_actors.names import check_name
from infinity_matrix_bus.api import CONSUMER_NOT_FOUND, JetStreamApi, JetStreamError
from infinity_matrix_bus.codec import parse_rfc3339, rfc3339
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects

#: As long as a pause that is given no end.
PAUSE_MAX_S = 100 * 365 * 86_400.0


async def pause_agent(session: Session, subjects: Subjects, agent: str, for_s: float | None = None) -> float | None:
    """Pauses an agent for `for_s` seconds, or until it is resumed; answers until when, None when that is open.

    A pause takes the place of an earlier one. Raises UnknownAgent, InvalidName, JetStreamError, RequestTimeout.
    """
    if for_s is not None and not 0 < for_s <= PAUSE_MAX_S:
        raise ValueError(f"an agent is paused for more than 0 and at most {PAUSE_MAX_S:g} s, not {for_s!r}")
    until = rfc3339(time.time() + (PAUSE_MAX_S if for_s is None else for_s))
    return paused_until(await _call(session, subjects, agent, {"pause_until": until}))


async def resume_agent(session: Session, subjects: Subjects, agent: str) -> None:
    """Lets an agent have work again; nothing happens to one that is not paused. Raises as `pause_agent` does."""
    await _call(session, subjects, agent, {})


async def _call(session: Session, subjects: Subjects, agent: str, body: dict[str, Any]) -> dict[str, Any]:
    request = f"CONSUMER.PAUSE.{subjects.work_stream}.{check_name('agent', agent)}"
    try:
        answer = await JetStreamApi(session).call(request, body)
    except JetStreamError as error:
        if error.code == CONSUMER_NOT_FOUND:
            raise UnknownAgent(agent) from None
        raise
    # As in the consumer's own record.
    return {"paused": answer.get("paused"), "config": {"pause_until": answer.get("pause_until")}}


def is_paused(consumer: dict[str, Any]) -> bool:
    """Whether an agent is paused, by its consumer's record."""
    return consumer.get("paused") is True


def paused_until(consumer: dict[str, Any]) -> float | None:
    """When the pause of a paused agent ends, in seconds since the epoch; None when that is open."""
    until = parse_rfc3339(consumer["config"].get("pause_until"))
    far = time.time() + PAUSE_MAX_S / 2
    return None if until is None or until > far else until
