"""Commands on dead letters: the work that could not be done, and what becomes of it."""

from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected
from infinity_matrix.cli.failure import UsageProblem, report
from infinity_matrix.cli.groups import LISTING, ListingGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infinity_matrix_coordinator.dead_operations import DeadLetter

    from infinity_matrix.client import Client

dead_app = typer.Typer(cls=ListingGroup, rich_markup_mode=None, help="List work that could not be done; replay it.")

LIST_LIMIT = 20

Id = Annotated[str, typer.Argument(metavar="ID", help="As listed; or less of it: EXECUTION, or EXECUTION/TASK.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As listed; or less of it.")]
OfAgent = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Instead of ids: all of this agent.")]
All = Annotated[bool, typer.Option("--all", help="Instead of ids: all there are.")]


@command(dead_app, LISTING)
async def ls(
    settings: Settings,
    agent: Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Only those of this agent.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = LIST_LIMIT,
) -> None:
    """List dead letters, newest first."""
    async with connected(settings) as client:
        found = await client.dead_letters(agent)
    if settings.as_json:
        output.write_json(found[:limit])
        return
    if not found:
        output.note("there are no dead letters")
        return
    rows = [
        (letter.agent, letter.workflow, letter.id, output.date(letter.failed_at), output.error_text(letter.error))
        for letter in found[:limit]
    ]
    output.console().print(output.table(("agent", "workflow", "id", "failed", "why"), rows))
    if len(found) > limit:
        output.note(f"{limit} of {len(found):,}; --limit shows more")


@command(dead_app, "show")
async def show(settings: Settings, id: Id) -> None:
    """Show dead letters with the work that was to be done, as JSON."""
    async with connected(settings) as client:
        found = await client.dead_letter(id)
    if settings.as_json:
        output.write_json(found)
        return
    for letter in found:
        output.write_line(output.printable(output.to_json(letter, indent=2)))


@command(dead_app, "replay")
async def replay(
    settings: Settings,
    ids: Ids = None,
    agent: OfAgent = None,
    everything: All = False,
    reason: Annotated[str, typer.Option("--reason", help="Kept in the log.")] = "",
) -> int:
    """Take their executions up again.

    What failed of an execution runs once more, the results of what completed are kept. One that
    has not ended is refused.
    """
    return await _each(settings, "replay", ids, agent, everything, reason)


@command(dead_app, "discard")
async def discard(settings: Settings, ids: Ids = None, agent: OfAgent = None, everything: All = False) -> int:
    """Take them away. Their executions stay as they are."""
    return await _each(settings, "discard", ids, agent, everything, "")


async def _each(
    settings: Settings, name: str, ids: list[str] | None, agent: str | None, everything: bool, reason: str
) -> int:
    """Does it with each; the exit code is that of the first that was refused."""
    from infinity_matrix_actors.errors import InfinityMatrixError

    if bool(ids) + (agent is not None) + everything != 1:
        raise UsageProblem(f"which dead letters shall {name} be given?", "give ids, or --agent, or --all")
    code = 0
    async with connected(settings) as client:
        done: set[str] = set()
        for id in ids or [letter.id for letter in await client.dead_letters(agent)]:
            if id in done:
                continue
            try:
                letters = await _do(client, name, id, reason)
            except InfinityMatrixError as error:
                if ids is not None and len(ids) == 1:
                    raise
                refusal = report(error, as_json=settings.as_json)
                code = code or refusal
                continue
            for letter in letters:
                done.add(letter.id)
                if settings.as_json:
                    output.write_json({"id": letter.id, name: "done"})
                else:
                    output.write_line(f"{'replayed' if name == 'replay' else 'discarded'} {letter.id}")
    return code


async def _do(client: "Client", name: str, id: str, reason: str) -> "Sequence[DeadLetter]":
    return await (client.replay_dead_letter(id, reason) if name == "replay" else client.discard_dead_letter(id))
