"""The verbs of the API on dead letters: the JSON of a request in, the JSON of its answer out."""

from dataclasses import asdict
from typing import Any

from infinity_matrix_coordinator.dead_operations import DeadLetter, DeadOperations
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.requests import Verb, limit, optional_text, reason, taking, text

#: Letters in an answer of `dead.list`, unless the request says otherwise.
LIST_LIMIT = 100


class DeadVerbs:
    """The verbs by name, on one installation."""

    def __init__(self, operations: Operations) -> None:
        self._dead = DeadOperations(operations)

    def verbs(self) -> dict[str, Verb]:
        return {
            "dead.list": taking(self._list, "agent", "limit"),
            "dead.show": taking(self._show, "id"),
            "dead.replay": taking(self._replay, "id", "reason"),
            "dead.discard": taking(self._discard, "id", "reason"),
        }

    async def _list(self, body: dict[str, Any]) -> Any:
        """Without the works, which may be large: `dead.show` has them."""
        found = await self._dead.letters(optional_text(body, "agent"))
        return [_without_work(letter) for letter in found[: limit(body, LIST_LIMIT)]]

    async def _show(self, body: dict[str, Any]) -> Any:
        return [asdict(letter) for letter in await self._dead.find(text(body, "id"))]

    async def _replay(self, body: dict[str, Any]) -> Any:
        letters = await self._dead.replay(text(body, "id"), reason(body))
        return [letter.id for letter in letters]

    async def _discard(self, body: dict[str, Any]) -> Any:
        return [letter.id for letter in await self._dead.discard(text(body, "id"))]


def _without_work(letter: DeadLetter) -> dict[str, Any]:
    record = asdict(letter)
    del record["work"]
    return record
