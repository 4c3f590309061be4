"""Versions: the definitions a workflow's name has stood for, what runs on each, and what differs between two.

An execution keeps the definition it was started with, so several versions run side by side.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from infinity_matrix_actors.definition import TaskDefinition, WorkflowDefinition
from infinity_matrix_actors.errors import StorageUnavailable, UnknownVersion, UnknownWorkflow
from infinity_matrix_bus.definitions import DefinitionStore, Deployment, Version

from infinity_matrix_coordinator.listing import Selection
from infinity_matrix_coordinator.operations import Operations

#: The word for the version that is deployed.
DEPLOYED = "deployed"
#: A hash may be named by so many of its first digits or more; what is shorter is only a version's own word.
HASH_DIGITS_MIN = 4
_TASK_DEFAULTS = {name: value for name, value in asdict(TaskDefinition("")).items() if name != "id"}


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """One version of a workflow; `stored_at` is in seconds since the epoch, `open` the executions that run on it."""

    workflow: str
    version: str
    definition: str
    stored_at: float
    is_deployed: bool
    #: Events start it.
    is_armed: bool
    #: Nothing starts the workflow, whatever its version.
    is_paused: bool
    open: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs at one place of two definitions, such as `tasks.load.timeout`; None where there is nothing."""

    path: str
    before: Any
    after: Any


class Versions:
    """The versions of the workflows of one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def summaries(self, workflow: str | None = None) -> list[VersionSummary]:
        """All versions by workflow, the newest first; raises UnknownWorkflow."""
        store = await self._store()
        deployed = {each.workflow: each for each in await store.deployments() if workflow in (None, each.workflow)}
        versions = await store.versions(workflow)
        if workflow is not None and workflow not in deployed:
            raise UnknownWorkflow(workflow)
        running = Counter(
            (each.workflow, each.definition)
            for each in await self._operations.select(Selection(workflow))
            if each.is_open
        )
        found = [
            _summary(each, deployed[each.workflow], running[(each.workflow, each.definition)])
            for each in versions
            if each.workflow in deployed
        ]
        found.sort(key=lambda each: (each.workflow, -each.stored_at))
        return found

    async def find(self, workflow: str, version: str) -> WorkflowDefinition:
        """The definition a version names: its own word, the beginning of its hash, or `deployed`.

        Raises UnknownWorkflow, and UnknownVersion for a word that names none or several.
        """
        store = await self._store()
        deployment = await store.deployment(workflow)
        if deployment is None:
            raise UnknownWorkflow(workflow)
        digest = deployment.definition
        if version != DEPLOYED:
            known = await store.versions(workflow)
            found = [each for each in known if each.version == version] or [
                each for each in known if len(version) >= HASH_DIGITS_MIN and each.definition.startswith(version)
            ]
            if len(found) != 1:
                raise UnknownVersion(workflow, version, [f"{each.version} {each.definition[:12]}" for each in known])
            digest = found[0].definition
        definition = await store.load(digest)
        if definition is None:
            raise StorageUnavailable(f"the definition {digest[:16]} is not stored")
        return definition

    async def diff(self, workflow: str, before: str, after: str) -> list[Difference]:
        """What differs between two versions; raises as `find` does."""
        return differences(await self.find(workflow, before), await self.find(workflow, after))

    async def _store(self) -> DefinitionStore:
        return DefinitionStore(await self._operations.session(), self._operations.subjects)


def differences(before: WorkflowDefinition, after: WorkflowDefinition) -> list[Difference]:
    """What differs between two definitions, place by place; tasks are told apart by their ids, not their order."""
    return list(_walk("", _keyed(before), _keyed(after)))


def _summary(version: Version, deployment: Deployment, running: int) -> VersionSummary:
    is_deployed = deployment.definition == version.definition
    return VersionSummary(
        version.workflow,
        version.version,
        version.definition,
        version.stored_at,
        is_deployed,
        is_deployed and deployment.is_armed,
        deployment.is_paused,
        running,
    )


def _keyed(definition: WorkflowDefinition) -> dict[str, Any]:
    record = asdict(definition)
    for key in ("tasks", "on_failure"):
        record[key] = {
            task["id"]: {name: value for name, value in task.items() if name != "id"} for task in record[key]
        }
    return record


def _walk(path: str, before: Any, after: Any) -> Iterator[Difference]:
    if before == after:
        return
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        yield Difference(path, _plain(before), _plain(after))
        return
    for key in {**before, **after}:
        yield from _walk(f"{path}.{key}" if path else str(key), before.get(key), after.get(key))


def _plain(value: Any) -> Any:
    """A value as it is told; of a whole task without its defaults, which would hide what it is."""
    if isinstance(value, Mapping) and value.keys() >= _TASK_DEFAULTS.keys():
        return {name: item for name, item in value.items() if item != _TASK_DEFAULTS[name]}
    return value
