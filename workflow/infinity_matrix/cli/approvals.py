"""Commands on approvals: what waits for a decision, and deciding."""

import getpass
from typing import Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected
from infinity_matrix.cli.groups import LISTING, ListingGroup
from infinity_matrix.cli.source import read_json

approvals_app = typer.Typer(cls=ListingGroup, rich_markup_mode=None, help="List what waits for a decision; decide.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The execution's id.")]
TaskId = Annotated[str | None, typer.Argument(metavar="[TASK]", help="The task; may be left out where only one waits.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides; your user name if not given.", show_default=False)]
Comment = Annotated[str, typer.Option("--comment", help="Kept with the decision.")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="JSON", help="Edited data that goes on: JSON, @file, or -.")
]


@command(approvals_app, LISTING)
async def ls(
    settings: Settings,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only those of this workflow.")] = None,
) -> None:
    """List what waits for a decision, the longest first."""
    async with connected(settings) as client:
        found = await client.approvals(workflow)
    if settings.as_json:
        output.write_json(found)
        return
    if not found:
        output.note("nothing waits for a decision")
        return
    rows = [
        (
            each.workflow,
            each.execution_id,
            each.task_id,
            ", ".join(each.assignees) or "anyone",
            output.date(each.asked_at),
            output.date(each.due_at),
        )
        for each in found
    ]
    output.console().print(output.table(("workflow", "execution", "task", "who", "since", "until"), rows))


@command(approvals_app, "approve")
async def approve(
    settings: Settings, id: Id, task: TaskId = None, by: By = None, comment: Comment = "", data: Data = None
) -> None:
    """Approve what a task waits for."""
    await _decide(settings, "approve", id, task, by, comment, data)


@command(approvals_app, "reject")
async def reject(
    settings: Settings, id: Id, task: TaskId = None, by: By = None, comment: Comment = "", data: Data = None
) -> None:
    """Reject what a task waits for."""
    await _decide(settings, "reject", id, task, by, comment, data)


async def _decide(
    settings: Settings, decision: str, id: str, task: str | None, by: str | None, comment: str, data: str | None
) -> None:
    value = read_json(data, "--data")
    who = by if by is not None else _user()
    async with connected(settings) as client:
        decide = client.approve if decision == "approve" else client.reject
        await decide(id, task, by=who, comment=comment, data=value)
    if settings.as_json:
        output.write_json({"execution_id": id, "task_id": task, "decision": decision, "by": who})
    else:
        output.write_line(f"{'approved' if decision == 'approve' else 'rejected'} by {who or 'nobody named'}")


def _user() -> str:
    """The name of the user; empty where there is none, as in many containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
