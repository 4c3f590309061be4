"""An agent in plain nats-py, no SDK: it answers the longest word of a text, and what the tasks upstream found.

Run: IM_URL=nats://TOKEN@127.0.0.1:4222 python agent_plain.py AGENT [--count WORKS]
It serves until it is stopped, or has done WORKS works.
"""

import asyncio
import json
import os
import sys

import nats


def outcome(work: dict) -> dict:
    words = str((work["input"] or {}).get("text", "")).split()
    if not words:
        return {"error": {"type": "NoText", "message": "the work has no text", "retryable": False}}
    return {"result": {"longest": max(words, key=len), "upstream": work["upstream"]}}


async def serve(agent: str, works: int) -> None:
    client = await nats.connect(os.environ["IM_URL"], name=agent, max_reconnect_attempts=-1)
    stream = client.jetstream()
    queue = await stream.pull_subscribe_bind(agent, stream="IM_WORK")
    while works:
        try:
            [message] = await queue.fetch(1, timeout=5)
        except (nats.errors.TimeoutError, nats.js.errors.ServiceUnavailableError):  # idle, or no workflow names it yet
            await asyncio.sleep(0.1)
            continue
        work = json.loads(message.data)
        try:
            await stream.publish(work["reply_to"], json.dumps(outcome(work)).encode())
        except nats.js.errors.APIError as refused:
            if refused.description != "maximum messages per subject exceeded":  # that one means: already there
                await message.nak(delay=5)
                continue
        await message.ack_sync()
        works -= 1
    await client.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[3]) if sys.argv[2:] else -1))
