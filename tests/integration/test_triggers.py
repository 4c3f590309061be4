"""Events that start executions: filters, wildcards, arming, and an event that comes twice."""

import json
from collections.abc import AsyncIterator
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix.agents import Agent, Work
from infinity_matrix.client import Client
from infinity_matrix.workflow import Task, Trigger, Workflow
from plain import connected


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    agent = Agent("echo")

    @agent.handler
    async def handle(work: Work) -> Any:
        return work.input

    async with infinity_matrix.local(agents=[agent], sync="lazy") as client:
        yield client


def armed(name: str, *triggers: Trigger, version: str = "1") -> Workflow:
    return Workflow(name, version=version, triggers=triggers, tasks=[Task("only", "echo")])


async def inputs(im: Client, workflow: str) -> list[Any]:
    """The inputs of a workflow's executions that completed, oldest first."""
    found = []
    for summary in reversed(await im.list(workflow, "completed")):
        found.append((await im.get_status(summary.execution_id)).tasks["only"].result)
    return found


async def seen(im: Client, workflow: str, expected: list[Any]) -> None:
    async def is_seen() -> bool:
        return len(await inputs(im, workflow)) >= len(expected)

    await until(is_seen, 10.0, f"{len(expected)} executions of {workflow}")
    assert sorted(await inputs(im, workflow), key=repr) == sorted(expected, key=repr)


async def test_an_event_starts_what_its_filter_lets_through(im: Client) -> None:
    await armed("orders", Trigger("orders.created", filter="event.total > 100")).deploy()
    for total in (50, 101, 100, 500):
        await im.trigger("orders.created", {"total": total})
    # The filter has no answer for these; they start nothing, and disturb nothing.
    await im.trigger("orders.created", {"no": "total"})
    await im.trigger("orders.created", "text")
    await im.trigger("orders.created", {"total": 999})
    await seen(im, "orders", [{"total": 101}, {"total": 500}, {"total": 999}])


async def test_plain_json_on_the_subject_starts_it_and_a_message_id_counts_once(im: Client) -> None:
    await armed("orders", Trigger("orders.created")).deploy()
    async with connected(im.url) as nats:
        for _ in range(3):
            headers = {"Nats-Msg-Id": "order-17"}
            await nats.jetstream().publish("im.trigger.orders.created", b'{"n": 17}', headers=headers)
        await nats.publish("im.trigger.orders.created", b"\xff no JSON")
        await nats.publish("im.trigger.orders.created", json.dumps({"n": 18}).encode())
        await nats.flush()
        await seen(im, "orders", [{"n": 17}, {"n": 18}])
    for _ in range(2):
        await im.trigger("orders.created", {"n": 19}, event_id="order-19")
    await im.trigger("orders.created", {"n": 20})
    await seen(im, "orders", [{"n": number} for number in range(17, 21)])


async def test_wildcards_match_as_nats_subjects_do(im: Client) -> None:
    await armed("star", Trigger("orders.*.paid")).deploy()
    await armed("rest", Trigger("orders.>")).deploy()
    await armed("exact", Trigger("orders.eu")).deploy()
    for event in ("orders.eu", "orders.eu.paid", "orders.eu.de.paid", "invoices.eu.paid", "orders.us.paid"):
        await im.trigger(event, event)
    await seen(im, "rest", ["orders.eu", "orders.eu.paid", "orders.eu.de.paid", "orders.us.paid"])
    await seen(im, "star", ["orders.eu.paid", "orders.us.paid"])
    await seen(im, "exact", ["orders.eu"])


async def test_what_is_deployed_is_armed_at_once_and_replaces_what_was(im: Client) -> None:
    await armed("marker", Trigger("marker")).deploy()
    marks: list[Any] = []

    async def send(event: str, number: int) -> None:
        """Publishes an event, and returns when it has been looked at: events are taken one after another."""
        await im.trigger(event, number)
        await im.trigger("marker", number)
        marks.append(number)
        await seen(im, "marker", marks)

    await armed("changing", Trigger("old")).deploy()
    await send("old", 1)
    await armed("changing", Trigger("new"), version="2").deploy()
    await send("old", 2)
    await send("new", 3)
    await armed("changing", version="3").deploy()
    await send("new", 4)
    await armed("changing", Trigger("new"), version="4").deploy()
    await send("new", 5)
    await armed("changing", Trigger("new"), version="4").undeploy()
    await send("new", 6)
    await seen(im, "changing", [1, 3, 5])


async def test_a_workflow_that_only_runs_arms_nothing(im: Client) -> None:
    workflow = armed("not-deployed", Trigger("orders.created"))
    await workflow.execute("by hand", timeout=10.0)
    await armed("deployed", Trigger("orders.created")).deploy()
    await im.trigger("orders.created", "by event")
    await seen(im, "deployed", ["by event"])
    await seen(im, "not-deployed", ["by hand"])


async def test_undeploying_what_never_was_is_an_error(im: Client) -> None:
    with pytest.raises(infinity_matrix.UnknownWorkflow):
        await armed("never").undeploy()


async def test_many_events_start_many_executions(im: Client) -> None:
    await armed("many", Trigger("tick")).deploy()
    async with connected(im.url) as nats:
        for number in range(600):
            await nats.publish("im.trigger.tick", str(number).encode())
        await nats.flush()
    await until(lambda: has_many(im), 15.0, "600 executions")
    assert sorted(await inputs(im, "many")) == list(range(600))


async def has_many(im: Client) -> bool:
    return len(await im.list("many", "completed")) >= 600
