"""Commands on agents: who takes work here; serving agents written in Python, and programs as agents."""

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, find_target, opened
from infinity_matrix.cli.failure import UsageProblem
from infinity_matrix.cli.source import load_agents

if TYPE_CHECKING:
    from infinity_matrix_agents import Agent
    from infinity_matrix_bus.session import Session

    from infinity_matrix.client import Client

app = typer.Typer()
agent_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Serve agents from here.")

#: How long instances have to answer; nobody knows how many there are.
DISCOVERY_S = 0.5
DISCOVERY_SUBJECT = "$SRV.INFO"
PROGRAM_CONCURRENCY = 1


@command(app, "agents")
async def agents(settings: Settings) -> None:
    """List agents, their queues and their instances.

    Queued: nobody has it yet. In work: given out, no outcome yet. Asking: requests for work that wait.
    """
    import asyncio

    async with connected(settings) as client:
        session = await client.operations.session()
        instances, consumers = await asyncio.gather(_instances(session, client.prefix), _consumers(client))
    found = list(_merged(consumers, instances))
    if settings.as_json:
        output.write_json(found)
        return
    rows = [
        (
            record["agent"],
            f"{record['queued']:,}",
            f"{record['in_work']:,}",
            f"{record['asking']:,}",
            str(len(record["instances"]) or ("?" if record["asking"] else "none")),
            ", ".join(instance["instance"] for instance in record["instances"]),
        )
        for record in found
    ]
    counts = ("queued", "in work", "asking", "instances")
    if found:
        output.console().print(output.table(("agent", *counts, ""), rows, right=counts))
    else:
        output.note("no workflow here names an agent yet, and none is running")


@command(agent_app, "serve")
async def serve(
    settings: Settings,
    source: Annotated[str, typer.Argument(metavar="MODULE[:AGENT]", help="An Agent, or all that a module defines.")],
) -> None:
    """Serve the agents of a Python module.

    At SIGTERM or Ctrl-C it takes no more, and what runs has 10 s to finish. Without a system
    it starts the local runtime.
    """
    await _serve(settings, load_agents(source))


@command(agent_app, "exec")
async def execute(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.")],
    program: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGS]", help="The program, after two dashes.")],
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="How many works at once.")
    ] = PROGRAM_CONCURRENCY,
) -> None:
    """Serve a program as an agent, run once for each work.

    Work comes as JSON on its stdin, its result is what it writes to stdout. Its stderr
    goes to the logs. An exit code that is not 0 fails the attempt. A cancelled one gets SIGTERM.
    """
    from infinity_matrix_agents.command import command_agent

    if shutil.which(program[0]) is None:
        raise UsageProblem(f"there is no program {program[0]!r}", "give a path, or a name that PATH leads to")
    await _serve(settings, [command_agent(name, program, concurrency=concurrency)])


async def _serve(settings: Settings, agents: list["Agent"]) -> None:
    from infinity_matrix.agents import serve_agents

    target = await find_target(settings, starts_runtime=True)
    async with opened(target) as client:
        names = [agent.name for agent in agents]
        url = client.url.rpartition("@")[2].removeprefix("nats://")
        if settings.as_json:
            output.write_json({"serving": names, "url": f"nats://{url}"})
        else:
            output.note(f"serving {', '.join(names)} at nats://{url}; Ctrl-C stops")
        await serve_agents(agents)


async def _instances(session: "Session", prefix: str) -> list[dict[str, str]]:
    """The instances that answer NATS service discovery as agents of this installation."""
    import asyncio

    from infinity_matrix_bus.codec import Undecodable, decode_record

    found: list[dict[str, str]] = []

    def take(subject: str, reply: str, data: bytes, headers: bytes | None) -> None:
        try:
            record = decode_record(data) if data else {}
        except Undecodable:
            return
        metadata = record.get("metadata") or {}
        if metadata.get("kind") == "im-agent" and metadata.get("prefix", prefix) == prefix:
            found.append(
                {
                    "agent": str(record.get("name", "")),
                    "instance": str(metadata.get("instance") or record.get("id", "")),
                    "concurrency": str(metadata.get("concurrency", "")),
                }
            )

    inbox = session.client.new_inbox()
    subscription = await session.subscribe(inbox, take)
    try:
        session.publish(DISCOVERY_SUBJECT, b"", inbox)
        await asyncio.sleep(DISCOVERY_S)
    finally:
        await subscription.close()
    return found


async def _consumers(client: "Client") -> list[dict[str, Any]]:
    """The durable consumers of the work stream: one for each agent that a definition named, or that ever ran."""
    from infinity_matrix_bus.api import JetStreamApi

    api = JetStreamApi(await client.operations.session())
    stream = client.operations.subjects.work_stream
    return [info async for info in api.paged(f"CONSUMER.LIST.{stream}", "consumers")]


def _merged(consumers: Iterable[dict[str, Any]], instances: list[dict[str, str]]) -> Iterable[dict[str, Any]]:
    by_agent: dict[str, dict[str, Any]] = {}

    def record_of(agent: str) -> dict[str, Any]:
        empty = {"agent": agent, "queued": 0, "in_work": 0, "asking": 0, "instances": []}
        return by_agent.setdefault(agent, empty)

    for info in consumers:
        record_of(str(info.get("name"))).update(
            queued=int(info.get("num_pending", 0)),
            in_work=int(info.get("num_ack_pending", 0)),
            asking=int(info.get("num_waiting", 0)),
        )
    for instance in instances:
        place = {"instance": instance["instance"], "concurrency": instance["concurrency"]}
        record_of(instance["agent"])["instances"].append(place)
    return [by_agent[agent] for agent in sorted(by_agent)]
