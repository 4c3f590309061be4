"""Services as agents: a bare responder and a NATS micro service do tasks, knowing nothing of workflows."""

import asyncio
import json

import infinity_matrix
import nats
import nats.micro
from infinity_matrix.workflow import Task, Workflow
from nats.aio.msg import Msg
from nats.micro.request import Request

PRICES = {"tea": 3.5, "coffee": 5.0}


async def look_up(message: Msg) -> None:
    """A responder: the work's JSON is the request, the reply is the result."""
    work = json.loads(message.data)
    await message.respond(json.dumps({"price": PRICES[work["config"]["item"]]}).encode())


async def stock(request: Request) -> None:
    """A handler of a micro service; its error is the attempt's failure."""
    item = json.loads(request.data)["config"]["item"]
    if item not in PRICES:
        await request.respond_error("404", f"no {item} here")
        return
    await request.respond(b'{"in_stock": 12}')


def order(item: str) -> Workflow:
    workflow = Workflow(name=f"order-{item}", version="1")
    workflow.add_tasks(
        [
            Task(id="stock", agent="service:shop.stock", config={"item": item}, retry_config={"max_attempts": 5}),
            Task(id="price", agent="service:shop.price", config={"item": item}, depends_on=["stock"]),
        ]
    )
    return workflow


async def main() -> None:
    async with infinity_matrix.local() as client:
        services = await nats.connect(client.url)
        await services.subscribe("shop.price", cb=look_up)
        micro = await nats.micro.add_service(services, name="shop", version="1.0.0")
        await micro.add_endpoint(name="stock", subject="shop.stock", handler=stock)
        await services.flush()

        result = await order("tea").execute()
        assert result.status == "completed", result
        assert result.outputs["price"] == {"price": 3.5}

        # 4xx is final: the other four attempts are not made.
        missing = await order("cocoa").execute()
        assert missing.status == "failed"
        assert missing.error["type"] == "ServiceError"
        assert "404" in missing.error["message"]
        assert (await client.get_status(missing.execution_id)).tasks["stock"].attempt == 1
        print(f"tea costs {result.outputs['price']['price']}; cocoa: {missing.error['message']}")
        await micro.stop()
        await services.close()


asyncio.run(main())
