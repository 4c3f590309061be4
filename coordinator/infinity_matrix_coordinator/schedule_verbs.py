"""The verbs of the API on schedules, `im.api.schedule.<verb>`: the JSON of a request in, the JSON of its answer out."""

from dataclasses import asdict
from typing import Any

from infinity_matrix_actors.schedule import Overlap, instant, new_schedule

from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.requests import BadRequest, Verb, flag, limit, optional_text, reason, taking, text
from infinity_matrix_coordinator.schedule_operations import UPCOMING_DEFAULT, ScheduleOperations

#: What `schedule.create` takes beside the workflow and the name.
CREATE_FIELDS = (
    *("cron", "run_at", "timezone", "overlap", "catch_up", "jitter"),
    *("start", "end", "limit", "input", "priority", "paused"),
)


class ScheduleVerbs:
    """The verbs by name, on one installation."""

    def __init__(self, operations: Operations) -> None:
        self._schedules = ScheduleOperations(operations)

    def verbs(self) -> dict[str, Verb]:
        """Each takes the object of a request, and raises InfinityMatrixError for one it refuses."""
        return {
            "schedule.create": taking(self.create, "name", "workflow", *CREATE_FIELDS),
            "schedule.list": taking(self.list, "workflow", "limit"),
            "schedule.show": taking(self.show, "name", "limit"),
            "schedule.pause": taking(self.pause, "name", "reason"),
            "schedule.resume": taking(self.resume, "name"),
            "schedule.trigger": taking(self.trigger, "name", "overlap", "id"),
            "schedule.backfill": taking(self.backfill, "name", "from", "to", "overlap", "id"),
            "schedule.delete": taking(self.delete, "name"),
        }

    async def create(self, body: dict[str, Any]) -> Any:
        name, workflow = text(body, "name"), text(body, "workflow")
        is_paused = flag(body, "paused")
        given = {key: body[key] for key in CREATE_FIELDS if key in body and key != "paused"}
        return asdict(await self._schedules.create(new_schedule(name, workflow, **given), is_paused=is_paused))

    async def list(self, body: dict[str, Any]) -> Any:
        found = await self._schedules.list(optional_text(body, "workflow"), limit(body, 1))
        return [asdict(view) for view in found]

    async def show(self, body: dict[str, Any]) -> Any:
        return asdict(await self._schedules.show(text(body, "name"), limit(body, UPCOMING_DEFAULT)))

    async def pause(self, body: dict[str, Any]) -> Any:
        name = text(body, "name")
        await self._schedules.pause(name, reason(body))
        return {"name": name}

    async def resume(self, body: dict[str, Any]) -> Any:
        name = text(body, "name")
        await self._schedules.resume(name)
        return {"name": name}

    async def trigger(self, body: dict[str, Any]) -> Any:
        name = text(body, "name")
        execution = await self._schedules.trigger(name, _overlap(body), optional_text(body, "id"))
        return {"name": name, "execution": execution}

    async def backfill(self, body: dict[str, Any]) -> Any:
        name = text(body, "name")
        zone = (await self._schedules.show(name, 1)).timezone
        begin, end = (instant(text(body, key), zone, key) for key in ("from", "to"))
        executions = await self._schedules.backfill(name, begin, end, _overlap(body), optional_text(body, "id"))
        return {"name": name, "executions": executions}

    async def delete(self, body: dict[str, Any]) -> Any:
        name = text(body, "name")
        await self._schedules.delete(name)
        return {"name": name}


def _overlap(body: dict[str, Any]) -> Overlap | None:
    value = optional_text(body, "overlap")
    if value is not None and value not in tuple(Overlap):
        raise BadRequest(f"overlap must be one of {', '.join(Overlap)}")
    return None if value is None else Overlap(value)
