"""What a simulated world has to do: random workflows, and agents that behave in every way.

How an attempt goes is drawn from (seed, execution, task, attempt, run), so that it does not depend on who runs it.
"""

import asyncio
from random import Random
from typing import Any

from infinity_matrix_actors.definition import RetryDefinition, TaskDefinition, WorkflowDefinition
from infinity_matrix_agents.agent import Agent
from infinity_matrix_agents.failure import Failure
from infinity_matrix_agents.work import Work

from .world import Line, World

#: Agents of the SDK, which ask when in doubt; and one that speaks the bare protocol and never asks.
ASKING = ("agent-a", "agent-b")
PLAIN = "agent-plain"
SIGNAL = "go"
#: Tasks whose names begin so have no limit of their own: what is lost of them must come back, or they never end.
FREE = "f"
#: And tasks whose names begin so undo another.
UNDO = "u"
#: What goes wrong without an outcome goes wrong so often: faults end.
DEATHS_MAX = 2
HANGS_LOOK_S = 3.0


def random_workflow(random: Random, number: int, *, plain: bool) -> WorkflowDefinition:
    """A small graph with retries, timeouts, waits and compensations."""
    agents = (*ASKING, PLAIN) if plain else ASKING
    tasks: list[TaskDefinition] = []
    undo: list[TaskDefinition] = []
    for index in range(random.choice((1, 2, 3, 3, 4, 6))):
        earlier = [task.id for task in tasks]
        upstream = tuple(sorted(random.sample(earlier, min(len(earlier), random.choice((0, 1, 1, 2))))))
        if random.random() < 0.1:
            timing: dict[str, Any] = random.choice(({"sleep": 3.0}, {"wait_for": SIGNAL, "timeout": 20.0}))
            tasks.append(TaskDefinition(f"t{index}", depends_on=upstream, **timing))
            continue
        if random.random() < 0.4:
            tasks.append(TaskDefinition(f"{FREE}{index}", random.choice(agents), depends_on=upstream))
            continue
        tasks.append(_task(random, f"t{index}", random.choice(agents), upstream))
        if random.random() < 0.3:
            undo.append(
                TaskDefinition(
                    f"{UNDO}{index}",
                    random.choice(ASKING),
                    compensates=f"t{index}",
                    retry=RetryDefinition(3, initial_delay=0.2),
                    timeout=15.0,
                )
            )
    if undo and random.random() < 0.3:
        undo.append(TaskDefinition("last", ASKING[0], timeout=15.0))
    return WorkflowDefinition(
        f"w{number}",
        tuple(tasks),
        timeout=random.choice((None, None, None, 15.0)),
        grace=random.choice((0.5, 3.0, 10.0)),
        on_failure=tuple(undo),
    )


def _task(random: Random, name: str, agent: str, upstream: tuple[str, ...]) -> TaskDefinition:
    retry = RetryDefinition(random.choice((1, 2, 3)), initial_delay=random.choice((0.1, 1.0, 4.0)))
    timeout = random.choice((None, None, 2.0, 8.0))
    queue_timeout = random.choice((None, None, None, 3.0, 20.0))
    return TaskDefinition(
        name,
        agent,
        depends_on=upstream,
        retry=retry,
        timeout=timeout,
        queue_timeout=queue_timeout,
        total_timeout=random.choice((60.0, 120.0)),
    )


class Behaviour:
    """How agents behave in one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._runs: dict[tuple[str, str, int], int] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        #: Works an agent of the SDK takes at once.
        self.concurrency = Random(f"concurrency/{world.seed}").choice((1, 2, 6))
        #: What undoes fails in one case of two.
        self.fails_to_undo = False
        #: No more deaths and hangs.
        self.is_calm = False

    def draw(self, execution: str, task: str, attempt: int) -> tuple[str, float]:
        """How a run goes, and how many seconds it takes."""
        key = (execution, task, attempt)
        run = self._runs[key] = self._runs.get(key, 0) + 1
        random = Random(f"{self._world.seed}/{execution}/{task}/{attempt}/{run}")
        took_s = random.choice((0.0, 0.0, 0.01, 0.05, 0.2, 1.0, 3.0))
        way = random.choices(
            ("ok", "fails", "fatal", "later", "dies", "hangs", "slow", "acks early"), (64, 12, 3, 3, 6, 3, 3, 6)
        )[0]
        if self.fails_to_undo and task.startswith(UNDO) and random.random() < 0.5:
            way = "fails"
        if way in ("dies", "hangs", "acks early"):
            deaths = self._deaths[execution, task] = self._deaths.get((execution, task), 0) + 1
            if self.is_calm or deaths > DEATHS_MAX or (way == "hangs" and task.startswith(FREE)):
                way = "ok"
        if way == "slow":
            # Who extends no lease is not that slow, or the next has its work.
            took_s = random.uniform(5.0, 20.0 if task.startswith(FREE) else 40.0)
        return way, took_s

    def agent(self, name: str) -> Agent:
        """An agent of the SDK. Call it in its process."""
        world = self._world
        agent = Agent(name, concurrency=self.concurrency)

        async def handle(work: Work) -> Any:
            process = world.loop.current

            def note(event: str) -> None:
                world.journal.append(Line(event, work.execution, work.task, work.attempt, world.loop.now, process))

            note("began")
            way, took_s = self.draw(work.execution, work.task, work.attempt)
            if took_s:
                await asyncio.sleep(took_s)
            match way:
                case "fails":
                    raise RuntimeError("it broke")
                case "fatal":
                    raise Failure("bad-input", "it never will", retryable=False)
                case "later":
                    raise Failure("busy", "come back", retry_after=2.0)
                case "dies":
                    world.faults.count("agent dies of its work")
                    world.loop.post(world.server_process, world.loop.now, self._kill, process)
                    await asyncio.Event().wait()
                case "hangs":
                    # Until all that is wrong has ended: whoever was to be told to stop may not have heard it.
                    await self._calm()
            note("done")
            return {"n": 1}

        agent.handler(handle)
        return agent

    async def _calm(self) -> None:
        """Waits until all that is wrong has ended. Looks, because an event would wake who lives in another process."""
        while True:
            await asyncio.sleep(HANGS_LOOK_S)
            if self.is_calm:
                return

    def _kill(self, process: Any) -> None:
        if process.is_alive:
            self._world.loop.kill(process)
