"""The kinds of work a run may have beside its small graphs, and what they make of its definitions.

Each seed has some of them, and each of them often enough meets each other. What is drawn here is drawn from a source of
its own, so that a seed without any of them is the run it always was.
"""

from collections.abc import Collection
from dataclasses import replace
from random import Random

from infinity_matrix_actors.definition import (
    CHILD_AGENT,
    ChildDefinition,
    ClosePolicy,
    LoopDefinition,
    MapDefinition,
    RetryDefinition,
    SlotsDefinition,
    TaskDefinition,
    WorkflowDefinition,
)

from .workload import ASKING, random_workflow

#: Each with how often it is chosen, beside the others.
KINDS_OF_WORK = {
    "children": 4,
    "maps": 3,
    "loops": 2,
    "pauses": 3,
    "retries": 5,
    "checkpoints": 4,
    "aged-log": 1,
    "schedules": 3,
    "slots": 2,
    "priorities": 2,
}
#: Of a run with an aged log, in seconds: what is older is gone from it, what sleeps sleeps longer than that, and what
#: is open for so long is stored.
LOG_AGE_S = 90.0
NAP_S = 115.0
AGED_CHECKPOINT_AFTER_S = 3.0
CHECKPOINT_AFTER_S = (0.5, 1.0, 3.0)
CHILD_TASKS_MAX = 2
#: Of a run with children, so that it is no more work than others.
EXECUTIONS_MAX = 4


def kinds_of(seed: int) -> frozenset[str]:
    """The kinds of work a seed has."""
    random = Random(f"kinds/{seed}")
    names = list(KINDS_OF_WORK)
    return frozenset(random.choices(names, list(KINDS_OF_WORK.values()), k=random.choice((0, 1, 1, 2, 2, 3))))


class Definitions:
    """The workflows of a run: those that are started, and all that must be deployed for it, children first."""

    def __init__(self, random: Random, plain: list[WorkflowDefinition], kinds: Collection[str]) -> None:
        self._random = random
        self._kinds = kinds
        self.deployed: list[WorkflowDefinition] = []
        self.started = [self._made(definition, depth=0) for definition in plain]

    def _made(self, definition: WorkflowDefinition, depth: int) -> WorkflowDefinition:
        random = self._random
        if self._kinds and depth == 0:
            tasks = tuple(self._task(definition.name, task, depth) for task in definition.tasks)
            if "slots" in self._kinds:
                definition = replace(definition, slots=SlotsDefinition(random.choice((1, 2))))
            if "aged-log" in self._kinds:
                tasks = self._napping(tasks)
                definition = replace(definition, timeout=None)
            if "retries" in self._kinds:
                # Undone at one go, or left to be undone further.
                undoing = (
                    replace(undo, retry=RetryDefinition(random.choice((1, 1, 3)))) for undo in definition.on_failure
                )
                definition = replace(definition, on_failure=tuple(undoing))
            definition = replace(definition, tasks=tasks)
        elif self._kinds:
            tasks = tuple(self._task(definition.name, task, depth) for task in definition.tasks)
            definition = replace(definition, tasks=tasks)
        self.deployed.append(definition)
        return definition

    def _task(self, workflow: str, task: TaskDefinition, depth: int) -> TaskDefinition:
        random = self._random
        if not task.agent:
            return task
        if "children" in self._kinds and depth < 2 and random.random() < (0.4 if depth == 0 else 0.15):
            task = self._with_child(workflow, task, depth)
        if "maps" in self._kinds and random.random() < 0.35:
            items = random.choice(("[0, 1, 2]", "[0, 1]", "[0, 1, 2, 3]", "[]"))
            task = replace(
                task, map=MapDefinition((items,), random.choice((1, 2, 100)), tolerated=random.choice((0, 0, 1, 4)))
            )
        if "loops" in self._kinds and random.random() < 0.35:
            until = "iteration >= 1" if task.child is not None else random.choice(("iteration >= 1", "result.n == 2"))
            task = replace(task, loop=LoopDefinition(until, max_iterations=random.choice((2, 3))))
        return task

    def _with_child(self, workflow: str, task: TaskDefinition, depth: int) -> TaskDefinition:
        random = self._random
        while True:
            child = random_workflow(random, 0, plain=False)
            if len(child.tasks) <= CHILD_TASKS_MAX:
                break
        child = self._made(replace(child, name=f"{workflow}-{task.id}"), depth + 1)
        close = random.choice((ClosePolicy.CANCEL, ClosePolicy.CANCEL, ClosePolicy.ABANDON))
        return replace(
            task,
            agent=CHILD_AGENT,
            child=ChildDefinition(child.name, {"n": 1}, close),
            queue_timeout=None,
            timeout=random.choice((None, None, 3.0, 20.0)),
        )

    def _napping(self, tasks: tuple[TaskDefinition, ...]) -> tuple[TaskDefinition, ...]:
        """With a sleep that is longer than the log keeps facts, and a task after it."""
        above = (self._random.choice(tasks).id,)
        return (
            *tasks,
            TaskDefinition("nap", sleep=NAP_S, depends_on=above),
            TaskDefinition("late", self._random.choice(ASKING), depends_on=("nap",), total_timeout=60.0),
        )
