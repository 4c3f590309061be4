"""Commands on agents: who takes work here, holding it back; serving agents written in Python, and programs."""

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, duration, find_target, opened
from infinity_matrix.cli.failure import UsageProblem
from infinity_matrix.cli.groups import LISTING, ListingGroup
from infinity_matrix.cli.source import load_agents

if TYPE_CHECKING:
    from infinity_matrix_agents import Agent
    from infinity_matrix_bus.session import Session

    from infinity_matrix.client import Client

agents_app = typer.Typer(cls=ListingGroup, rich_markup_mode=None, help="List agents, pause and resume them.")
agent_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Serve agents from here.")

#: How long instances have to answer; nobody knows how many there are.
DISCOVERY_S = 0.5
DISCOVERY_SUBJECT = "$SRV.INFO"
#: What an instance tells of itself.
_TOLD = ("concurrency", "rate", "versions")
PROGRAM_CONCURRENCY = 1


@command(agents_app, LISTING)
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
            ", ".join([*_pause_of(record), *map(_place, record["instances"])]),
        )
        for record in found
    ]
    counts = ("queued", "in work", "asking", "instances")
    if found:
        output.console().print(output.table(("agent", *counts, ""), rows, right=counts))
    else:
        output.note("no workflow here names an agent yet, and none is running")


@command(agents_app, "pause")
async def pause(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.")],
    how_long: Annotated[
        str | None,
        typer.Option("--for", metavar="DURATION", help="How long, e.g. 90s or 1h; until resumed if not given."),
    ] = None,
) -> None:
    """Give an agent no more work, in whichever process.

    What it has it finishes. What comes meanwhile waits, and fails when its queue_timeout is over.
    """
    from infinity_matrix_actors.duration import parse_duration
    from infinity_matrix_bus.codec import rfc3339
    from infinity_matrix_coordinator.agent_pauses import pause_agent

    for_s = None if how_long is None else parse_duration(duration(how_long), "--for")
    async with connected(settings) as client:
        until = await pause_agent(await client.operations.session(), client.operations.subjects, name, for_s)
    if settings.as_json:
        record = {"agent": name, "paused": True, "paused_until": None if until is None else rfc3339(until)}
        output.write_json(record)
    else:
        end = "until it is resumed" if until is None else f"until {rfc3339(until)}"
        output.note(f"{name} is given no more work {end}")


@command(agents_app, "resume")
async def resume(
    settings: Settings, name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.")]
) -> None:
    """Give an agent work again."""
    from infinity_matrix_coordinator.agent_pauses import resume_agent

    async with connected(settings) as client:
        await resume_agent(await client.operations.session(), client.operations.subjects, name)
    if settings.as_json:
        output.write_json({"agent": name, "paused": False})
    else:
        output.note(f"{name} is given work again")


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
    rate: Annotated[
        str | None, typer.Option("--rate", help="How fast works are begun: 10/s, 600/m, 5000/h.", show_default=False)
    ] = None,
    versions: Annotated[
        list[str] | None,
        typer.Option(
            "--serves", metavar="VERSION", help="A workflow's version it works for; repeatable. All if not given."
        ),
    ] = None,
) -> None:
    """Serve a program as an agent, run once for each work.

    Work comes as JSON on its stdin, its result is what it writes to stdout. Its stderr
    goes to the logs. An exit code that is not 0 fails the attempt. A cancelled one gets SIGTERM,
    and SIGKILL when its grace is over.
    """
    from infinity_matrix_agents.command import command_agent

    if shutil.which(program[0]) is None:
        raise UsageProblem(f"there is no program {program[0]!r}", "give a path, or a name that PATH leads to")
    agent = command_agent(name, program, concurrency=concurrency, rate=rate, versions=versions or None)
    await _serve(settings, [agent])


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
                    **{key: str(metadata[key]) for key in _TOLD if key in metadata},
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
        empty = {"agent": agent, "queued": 0, "in_work": 0, "asking": 0, "paused": False, "instances": []}
        return by_agent.setdefault(agent, empty)

    for info in consumers:
        record_of(str(info.get("name"))).update(
            queued=int(info.get("num_pending", 0)),
            in_work=int(info.get("num_ack_pending", 0)),
            asking=int(info.get("num_waiting", 0)),
            **_pause_fields(info),
        )
    for instance in instances:
        record_of(instance.pop("agent"))["instances"].append(instance)
    return [by_agent[agent] for agent in sorted(by_agent)]


def _pause_fields(consumer: dict[str, Any]) -> dict[str, Any]:
    from infinity_matrix_bus.codec import rfc3339
    from infinity_matrix_coordinator.agent_pauses import is_paused, paused_until

    if not is_paused(consumer):
        return {}
    until = paused_until(consumer)
    return {"paused": True, "paused_until": None if until is None else rfc3339(until)}


def _pause_of(record: dict[str, Any]) -> list[str]:
    if not record["paused"]:
        return []
    until = record["paused_until"]
    return ["paused" if until is None else f"paused until {until}"]


def _place(instance: dict[str, str]) -> str:
    """An instance, and what is not usual of it."""
    told = [f"{key} {instance[key]}" for key in ("rate", "versions") if key in instance]
    return f"{instance['instance']} ({'; '.join(told)})" if told else instance["instance"]
