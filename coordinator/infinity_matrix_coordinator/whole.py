"""Results and statuses as a caller gets them: whole, with values in the place of references."""

from collections.abc import Sequence
from dataclasses import replace

from infinity_matrix_actors.errors import ArtifactMissing
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.references import has_references, resolved

from infinity_matrix_coordinator.approvals import Approval
from infinity_matrix_coordinator.views import ExecutionResult, ExecutionStatus, TaskStatus


async def whole_result(result: ExecutionResult, store: ArtifactStore) -> ExecutionResult:
    """A result with its large outputs; raises ArtifactMissing, StorageUnavailable."""
    outputs = await resolved(result.outputs, store)
    return result if outputs is result.outputs else replace(result, outputs=outputs)


async def whole_status(status: ExecutionStatus, store: ArtifactStore) -> ExecutionStatus:
    """A status with its large results; a reference stays where there is nothing to read. Raises StorageUnavailable."""
    large = [task for task in status.tasks.values() if has_references(task.result)]
    if not large:
        return status
    return replace(status, tasks={**status.tasks, **{task.id: await _whole_task(task, store) for task in large}})


async def _whole_task(task: TaskStatus, store: ArtifactStore) -> TaskStatus:
    try:
        return replace(task, result=await resolved(task.result, store))
    except ArtifactMissing:
        # Where a task stands is true without its result, too.
        return task


async def whole_approvals(approvals: Sequence[Approval], artifacts: ArtifactStore) -> list[Approval]:
    """Pending approvals with what is decided upon; raises as `whole_result`."""
    return [replace(one, upstream=await resolved(one.upstream, artifacts)) for one in approvals]
