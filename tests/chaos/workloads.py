"""What is run while things break: one workflow of every kind, each small, each with its own way to go wrong."""

from typing import Any

from infinity_matrix.workflow import Task, Workflow

SDK, PLAIN = "chaos-sdk", "chaos-plain"
CANARY = "canary"
RETRY = {"max_attempts": 6, "backoff": "exponential", "initial_delay": 0.2, "max_delay": 2.0}
GRACE_S = 3
SHARDS = 4
#: More than stands in a message.
LARGE_BYTES = 300_000
SIGNAL = "go"


def _task(id: str, *above: str, agent: str = SDK, **fields: Any) -> Task:
    config = {"seconds": 0.8, **fields.pop("config", {})}
    return Task(id, agent, depends_on=list(above), config=config, retry_config=fields.pop("retry", RETRY), **fields)


def _step(id: str, *above: str, **config: Any) -> Task:
    """A step of a saga: it has an effect outside, and is undone by another agent."""
    undo = Task(f"undo-{id}", PLAIN, config={"seconds": 0.1, "effect": True}, retry_config=RETRY, timeout=20)
    return Task(
        id,
        SDK,
        depends_on=list(above),
        compensation=undo,
        config={"seconds": 0.3, "effect": True, **config},
        retry_config={"max_attempts": 2, "initial_delay": 0.2},
        timeout=6,
    )


def _trip(name: str, **config: Any) -> Workflow:
    steps = [
        _step("flight", **config),
        _step("hotel", "flight", **config),
        _step("car", "flight", **config),
        _step("pay", "hotel", "car", **config),
        _step("ticket", "pay", **config),
    ]
    return Workflow(name, tasks=steps, grace=GRACE_S)


def workflows() -> dict[str, Workflow]:
    """Every kind, by name."""
    fan = [_task(f"part-{number}", "split", agent=SDK if number % 2 else PLAIN) for number in range(5)]
    made = [
        Workflow(CANARY, tasks=[Task("sing", CANARY)]),
        Workflow("chain", tasks=[_task("a"), _task("b", "a", agent=PLAIN), _task("c", "b"), _task("d", "c")]),
        Workflow("fan", tasks=[_task("split"), *fan, _task("join", *(task.id for task in fan))]),
        Workflow("retries", tasks=[_task("a", config={"errors": 0.5}), _task("b", "a", config={"errors": 0.5})]),
        Workflow(
            "timeouts",
            tasks=[_task("a", config={"hangs": 0.4}, timeout=2.0), _task("b", "a", config={"hangs": 0.3}, timeout=2.0)],
            grace=GRACE_S,
        ),
        _trip("saga", errors=0.15, hangs=0.03),
        _trip("cancelled", seconds=1.0),
        Workflow(
            "signals",
            tasks=[_task("a"), Task("wait", wait_for=SIGNAL, depends_on=["a"], timeout=30), _task("b", "wait")],
        ),
        Workflow("sleeps", tasks=[_task("a"), Task("sleep", sleep=4, depends_on=["a"]), _task("b", "sleep")]),
        Workflow(
            "maps",
            tasks=[
                _task("a"),
                Task(
                    "each",
                    SDK,
                    depends_on=["a"],
                    for_each="input.items",
                    max_parallel=3,
                    tolerate_failures=1,
                    config={"seconds": 0.2, "errors": 0.1},
                    retry_config=RETRY,
                ),
                _task("b", "each"),
            ],
        ),
        Workflow("child", tasks=[_task("x"), _task("y", "x", agent=PLAIN, config={"errors": 0.1})]),
        # Its results are artifacts, and so is what the last task is given.
        Workflow("large", tasks=[_task("a", config={"bytes": LARGE_BYTES}), _task("b", "a"), _task("c", "a", "b")]),
        Workflow("parent", tasks=[_task("a"), Task("run", workflow="child", depends_on=["a"]), _task("b", "run")]),
    ]
    return {workflow.name: workflow for workflow in made}


#: How often each kind is started.
WEIGHTS = {
    "chain": 4,
    "fan": 2,
    "retries": 2,
    "timeouts": 1,
    "saga": 4,
    "cancelled": 2,
    "signals": 2,
    "sleeps": 2,
    "maps": 1,
    "parent": 1,
    "large": 0.2,
}
