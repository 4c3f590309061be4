"""`imx host`: answers for the functions of workflows, for executions that others start."""

from typing import Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, find_target, opened
from infinity_matrix.cli.failure import UsageProblem
from infinity_matrix.cli.source import load_workflows

app = typer.Typer()


@command(app, "host")
async def host(
    settings: Settings,
    source: Annotated[
        str, typer.Argument(metavar="MODULE[:WORKFLOW]", help="A Workflow, or all that a module defines.")
    ],
) -> None:
    """Answer for the callbacks of a module's workflows.

    Until SIGTERM or Ctrl-C. For executions that are started elsewhere; a program that waits for
    its own executions answers by itself.
    """
    from infinity_matrix.agents import until_told_to_stop
    from infinity_matrix.host import all_hosted, has_functions

    workflows = [workflow for workflow in load_workflows(source) if has_functions(workflow)]
    if not workflows:
        raise UsageProblem(
            f"no workflow of {source!r} has a function", "set workflow.on_error or workflow.on_task_failure to one"
        )
    target = await find_target(settings, starts_runtime=True)
    async with opened(target) as client, all_hosted(workflows, client):
        names = [workflow.name for workflow in workflows]
        url = client.url.rpartition("@")[2].removeprefix("nats://")
        if settings.as_json:
            output.write_json({"hosting": names, "url": f"nats://{url}"})
        else:
            output.note(f"answering for {', '.join(names)} at nats://{url}; Ctrl-C stops")
        await until_told_to_stop()
