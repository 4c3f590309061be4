"""A saga agent of bare nats-py: what it is told of the work it undoes, and how it says that it did something late."""

import json
import time
from typing import Any

import pytest
from harness import World, consumer_is_there, until
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_coordinator.saga import LEASE_S
from nats.js.errors import APIError
from plain import connected, one_work

WAIT_S = 10.0


async def test_a_plain_agent_that_says_it_was_late_is_undone_without_waiting_for_its_lease(world: World) -> None:
    await world.coordinator()
    flight = Task(
        "flight", "plain", config={"seat": "12A"}, timeout="500ms", compensation=Task("cancel-flight", "plain")
    )
    workflow = Workflow("trip", tasks=[flight])
    async with world.client(), connected(world.server.connect_url) as nats:
        stream = nats.jetstream()
        execution = await workflow.start({"to": "Oslo"})
        await consumer_is_there(nats, "plain")
        message = await one_work(stream, "plain", WAIT_S)
        work: dict[str, Any] = json.loads(message.data)
        await stream.publish(work["taken_to"], b"{}")

        async def is_closed() -> bool:
            return (await workflow.get_status(execution)).tasks["flight"].state == "failed"

        await until(is_closed, WAIT_S, "the closing of the attempt")
        closed_at = time.monotonic()
        # It did the work all the same, and learns from the refusal that it was too late.
        with pytest.raises(APIError, match="maximum messages per subject exceeded"):
            await stream.publish(work["reply_to"], json.dumps({"result": {"ticket": "T-17"}}).encode())
        await message.ack()
        shard = work["reply_to"].split(".")[2]
        released = {"task": work["task"], "attempt": work["attempt"], "late": True}
        subject = f"im.fact.{shard}.{execution}.signal.im-released.{work['task']}-{work['attempt']}"
        await stream.publish(subject, json.dumps(released).encode())

        message = await one_work(stream, "plain", WAIT_S)
        assert time.monotonic() - closed_at < LEASE_S / 2
        undoing: dict[str, Any] = json.loads(message.data)
        assert undoing.keys() == work.keys() | {"cause", "compensates"}
        assert (undoing["task"], undoing["input"], undoing["upstream"]) == (
            "cancel-flight",
            {"to": "Oslo"},
            {"flight": None},
        )
        assert undoing["compensates"] == {
            "task": "flight",
            "attempt": 1,
            "state": "failed",
            "result": None,
            "forward": "unknown",
            "config": {"seat": "12A"},
            "upstream": {},
            "idempotency_key": f"{execution}/flight",
        }
        assert undoing["cause"].keys() == {"type", "message", "retryable", "task"}
        assert (undoing["cause"]["type"], undoing["cause"]["task"]) == ("timed_out", "flight")
        await stream.publish(undoing["reply_to"], b'{"result": null}')
        await message.ack()
        result = await workflow.wait(execution, WAIT_S)
        assert (result.status, result.compensated) == ("failed", ("flight",))
        task = (await workflow.get_status(execution)).tasks["flight"]
        assert (task.released, task.late) == (True, True)
