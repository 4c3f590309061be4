"""Forks: a new execution that begins in the middle of an earlier one, with what was changed.

No fact is copied: the new `started` carries the earlier results as its seed, and its cause names where they are from.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from infinity_matrix_actors.definition import WorkflowDefinition
from infinity_matrix_actors.errors import (
    ExecutionExists,
    InvalidDefinition,
    PayloadTooLarge,
    UnknownTask,
    WorkflowPaused,
)
from infinity_matrix_actors.names import NAME
from infinity_matrix_actors.plain import plain
from infinity_matrix_actors.plan import Plan
from infinity_matrix_actors.state import TaskState
from infinity_matrix_actors.suggestion import did_you_mean
from infinity_matrix_bus.artifacts import OFFLOAD_BYTES, is_reference
from infinity_matrix_bus.codec import encode

from infinity_matrix_coordinator.execution_actor import ExecutionActor
from infinity_matrix_coordinator.operations import Operations, new_execution_id
from infinity_matrix_coordinator.saga import Saga

#: Forks of one execution that are named after it; further ones have an id of their own.
NAMED_FORKS_MAX = 100
#: The results a fork brings along, large ones as references; with its input it fits a message then.
SEED_BYTES_MAX = OFFLOAD_BYTES
#: Smaller results are not stored on their own: a reference would hardly save anything.
SEED_PART_BYTES = 512
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be different in a fork."""

    #: `{"input": value}` replaces the input; empty keeps it.
    input: dict[str, Any] = field(default_factory=dict)
    #: Results that tasks before the fork are taken to have had, by task id.
    results: dict[str, Any] = field(default_factory=dict)
    #: Keys of tasks' configs, by task id.
    config: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Mapping[str, Any] | None) -> "Changes":
        """The changes that `{"input": .., "results": {..}, "config": {..}}` stands for; raises InvalidDefinition."""
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise InvalidDefinition("it is no object", where="changes", hint="it has input, results and config")
        for key in value:
            if key not in ("input", "results", "config"):
                hint = did_you_mean(str(key), ("input", "results", "config")) or "it has input, results and config"
                raise InvalidDefinition(f"there is no {key!r}", where="changes", hint=hint)
        results, config = ({} if value.get(key) is None else value[key] for key in ("results", "config"))
        if not isinstance(results, Mapping):
            raise InvalidDefinition("it is no object", where="changes.results", hint="results by task id")
        if not isinstance(config, Mapping) or not all(isinstance(keys, Mapping) for keys in config.values()):
            raise InvalidDefinition("it is no object of objects", where="changes.config", hint="configs by task id")
        return cls(
            {"input": value["input"]} if "input" in value else {},
            {str(task): result for task, result in results.items()},
            {str(task): dict(keys) for task, keys in config.items()},
        )


class Forks:
    """The forks of one installation."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def fork(
        self,
        execution: str,
        from_task: str | None = None,
        changes: Mapping[str, Any] | None = None,
        execution_id: str | None = None,
    ) -> str:
        """Starts a fork that does `from_task` and all after it again; answers its id. None: everything is done again.

        Raises UnknownExecution, UnknownTask, InvalidDefinition for changes that cannot be, WorkflowPaused,
        ExecutionExists for an `execution_id` that is there and is not this fork, PayloadTooLarge when the results it
        brings along do not fit, and what `Operations.start` raises.
        """
        changed = Changes.read(changes)
        actor = await self._operations.fold(execution)
        if (await self._operations.deployment_of(actor.started.workflow)).is_paused:
            raise WorkflowPaused(actor.started.workflow)
        seed = await self._fitting(seed_of(actor, from_task, changed.results))
        digest = actor.started.definition
        if changed.config:
            # Documents are for pydantic, which takes half of what a client's import does.
            from infinity_matrix_actors.document import checked

            digest = await self._operations.store(checked(with_config(actor.plan.definition, changed.config)))
        cause = {"fork": {"execution": actor.id, "from_task": from_task}}
        input = changed.input.get("input", actor.started.input)

        async def start(id: str) -> str:
            return await self._operations.start(
                actor.started.workflow, digest, input, id, cause, priority=actor.started.priority, seed=seed
            )

        if execution_id is not None:
            return await start(execution_id)
        for number in range(1, NAMED_FORKS_MAX + 1):
            id = f"{actor.id}-f{number}"
            if not NAME.fullmatch(id):
                break
            if await self._operations.started_of(id) is None:
                try:
                    return await start(id)
                except ExecutionExists:
                    # Another fork was started at the same moment.
                    continue
        return await start(new_execution_id())

    async def _fitting(self, seed: dict[str, Any]) -> dict[str, Any]:
        """The seed with references in place of its largest results, as many as it takes to fit."""
        sizes = {task: len(encode(result, f"the result of {task!r}", _UNBOUNDED)) for task, result in seed.items()}
        total = sum(sizes.values()) + sum(len(task) + 4 for task in seed)
        fitted = dict(seed)
        for task in sorted(sizes, key=lambda task: sizes[task], reverse=True):
            if total <= SEED_BYTES_MAX or sizes[task] < SEED_PART_BYTES:
                break
            if not is_reference(fitted[task]):
                fitted[task] = await self._operations.artifacts.put_json(seed[task], f"the result of {task!r}")
                total += len(encode(fitted[task])) - sizes[task]
        if total > SEED_BYTES_MAX:
            raise PayloadTooLarge("what the fork brings along", total, SEED_BYTES_MAX)
        return fitted

    async def of(self, execution: str) -> list[str]:
        """The forks that are named after an execution, oldest first."""
        found: list[str] = []
        for number in range(1, NAMED_FORKS_MAX + 1):
            id = f"{execution}-f{number}"
            started = await self._operations.started_of(id) if NAME.fullmatch(id) else None
            if started is None:
                break
            origin = started.cause.get("fork")
            if isinstance(origin, dict) and origin.get("execution") == execution:
                found.append(id)
        return found


def seed_of(actor: ExecutionActor, from_task: str | None, results: Mapping[str, Any]) -> dict[str, Any]:
    """The results a fork brings along: of what completed and is not done again, and those given in their place.

    What was undone is done again, with all after it: its result stands for nothing any more.
    """
    plan = actor.plan
    if from_task is not None and (not isinstance(from_task, str) or from_task not in plan.nodes):
        raise UnknownTask(plan.definition.name, from_task, ", ".join(plan.nodes))
    for name in results:
        if name not in plan.nodes:
            raise UnknownTask(plan.definition.name, name, ", ".join(plan.nodes))
    chosen = _with_all_after(plan, {from_task}) if from_task is not None else set()
    if lost := chosen & results.keys():
        hint = "fork from a task after it"
        raise InvalidDefinition(f"the task {min(lost)!r} is done again", where="changes.results", hint=hint)
    undone = {name.partition("~")[0] for name in _undone(actor)} - results.keys()
    again = set(plan.nodes) if from_task is None else chosen | _with_all_after(plan, undone)
    seed = {
        name: task.result
        for name, task in actor.tasks.items()
        if name in plan.nodes and name not in again and task.state is TaskState.COMPLETED
    }
    return {**seed, **results}


def _undone(actor: ExecutionActor) -> set[str]:
    """The tasks that were undone, may have been, or will be: nothing is left of them for a fork to build on."""
    saga = actor.saga
    if saga is not None:
        tried = {saga.forward_of[undo] for undo in saga.failed if undo in saga.forward_of}
        return set(saga.forward_of.values()) - (tried - saga.maybe_undone(actor.tasks))
    if actor.stopped_at is None:
        return set()
    # It is being wound up; what completed until then will be undone.
    return set(Saga(actor.plan, actor.tasks).forward_of.values())


def with_config(definition: WorkflowDefinition, config: Mapping[str, Mapping[str, Any]]) -> WorkflowDefinition:
    """The definition with these keys of its tasks' configs in place of what they were."""
    known = {task.id for task in (*definition.tasks, *definition.on_failure)}
    for name in config:
        if name not in known:
            raise UnknownTask(definition.name, name, ", ".join(sorted(known)))
    changed = {name: plain(dict(keys), f"changes.config.{name}") for name, keys in config.items()}
    return replace(
        definition,
        tasks=tuple(
            replace(task, config={**task.config, **changed[task.id]}) if task.id in changed else task
            for task in definition.tasks
        ),
        on_failure=tuple(
            replace(task, config={**task.config, **changed[task.id]}) if task.id in changed else task
            for task in definition.on_failure
        ),
    )


def _with_all_after(plan: Plan, tasks: Set[str]) -> set[str]:
    """These tasks and all that come after them, directly or not."""
    found = set(tasks)
    stack = list(tasks)
    while stack:
        for name in plan.nodes[stack.pop()].subscribers:
            if name not in found:
                found.add(name)
                stack.append(name)
    return found
