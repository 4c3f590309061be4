"""Commands on deployed workflows: their versions, how two differ, and pausing them."""

from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected
from infinity_matrix.cli.groups import LISTING, ListingGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infinity_matrix_coordinator.controls import Asked
    from infinity_matrix_coordinator.versions import VersionSummary

workflows_app = typer.Typer(
    cls=ListingGroup, rich_markup_mode=None, help="List workflows and versions; compare, pause, disarm."
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A deployed workflow.")]
HASH_DIGITS = 12


@command(workflows_app, LISTING)
async def ls(
    settings: Settings,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this workflow.")] = None,
) -> None:
    """List workflows with their versions, and how many open executions run on each."""
    async with connected(settings) as client:
        found = await client.versions(name)
    if settings.as_json:
        output.write_json(found)
        return
    if not found:
        output.note("no workflow is deployed; 'imx deploy FILE' stores one under its name")
        return
    rows = [
        (
            each.workflow,
            each.version,
            each.definition[:HASH_DIGITS],
            _mode(each),
            f"{each.open:,}",
            output.date(each.stored_at),
        )
        for each in found
    ]
    columns = ("workflow", "version", "definition", "", "open", "stored")
    output.console().print(output.table(columns, rows, right=("open",)))


@command(workflows_app, "diff")
async def diff(
    settings: Settings,
    name: Name,
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="A version, the beginning of a hash, or 'deployed'.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Another.")],
) -> None:
    """Print what differs between two versions of a workflow."""
    async with connected(settings) as client:
        found = await client.diff(name, before, after)
    if settings.as_json:
        output.write_json(found)
        return
    if not found:
        output.note("they are the same")
    for each in found:
        if each.before is None:
            output.write_line(f"+ {each.path}  {output.to_json(each.after)}")
        elif each.after is None:
            output.write_line(f"- {each.path}  {output.to_json(each.before)}")
        else:
            output.write_line(f"~ {each.path}  {output.to_json(each.before)} -> {output.to_json(each.after)}")


@command(workflows_app, "undeploy")
async def undeploy(settings: Settings, name: Name) -> None:
    """Disarm a workflow's triggers. It can still be started by its name, and its schedules go on."""
    async with connected(settings) as client:
        await client.undeploy(name)
    if settings.as_json:
        output.write_json({"workflow": name, "armed": False})
    else:
        output.write_line(f"no event starts {name} any more")


@command(workflows_app, "pause")
async def pause(
    settings: Settings,
    name: Name,
    running: Annotated[bool, typer.Option("--running", help="Pause its open executions, too.")] = False,
) -> None:
    """Let nothing start a workflow: no event, no schedule, nobody. What runs goes on."""
    async with connected(settings) as client:
        asked = await client.pause_workflow(name, running=running)
    _show(settings, name, asked, is_paused=True)


@command(workflows_app, "resume")
async def resume(
    settings: Settings,
    name: Name,
    running: Annotated[bool, typer.Option("--running", help="Let its paused executions go on, too.")] = False,
) -> None:
    """Let a workflow be started again."""
    async with connected(settings) as client:
        asked = await client.resume_workflow(name, running=running)
    _show(settings, name, asked, is_paused=False)


def _show(settings: Settings, name: str, asked: "Sequence[Asked]", *, is_paused: bool) -> None:
    if settings.as_json:
        ids = [each.execution_id for each in asked if each.problem is None]
        output.write_json({"workflow": name, "paused": is_paused, "executions": ids})
        return
    told = f", with {len(asked):,} of its executions" if asked else ""
    output.write_line(f"{name} is paused{told}" if is_paused else f"{name} can be started again{told}")


def _mode(version: "VersionSummary") -> str:
    if not version.is_deployed:
        return ""
    words = ["deployed", *(["armed"] if version.is_armed else []), *(["paused"] if version.is_paused else [])]
    return ", ".join(words)
