"""The entry of `infinity-matrix` and `imx`: its commands in their order, and the options that may stand before them."""

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from infinity_matrix.cli import (
    agents,
    approvals,
    artifacts,
    backup,
    controls,
    coordinators,
    dead,
    executions,
    forks,
    host,
    purge,
    schedule,
    system,
    verify,
    versions,
    workflows,
)
from infinity_matrix.cli.command import AsJson, Context, Credentials, Prefix, Settings, Url, set_root

SECTIONS = {
    "Workflows": ("run", "validate", "graph", "deploy", "workflows", "start", "trigger", "schedule"),
    "Executions": (
        "status",
        "watch",
        "ls",
        "logs",
        "metrics",
        "cancel",
        "pause",
        "resume",
        "retry",
        "fork",
        "compensate",
        "signal",
        "approvals",
        "tail",
        "artifacts",
    ),
    "Agents": ("agents", "agent", "host", "dead"),
    "System": ("dev", "env", "coordinator", "coordinators", "purge", "verify", "backup", "restore", "demo"),
}


class SectionedGroup(TyperGroup):
    """A help page with a section for each noun."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for section, names in SECTIONS.items():
            with formatter.section(section):
                limit = formatter.width - width - 6
                formatter.write_dl(
                    [(name.ljust(width), self.commands[name].get_short_help_str(limit)) for name in names]
                )


# Without markup: drawing the help page with rich would take longer than all the rest of it, 230 against 100 ms.
app = typer.Typer(
    cls=SectionedGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Durable agent workflows with nothing but NATS.",
    epilog="Exit codes: 0 ok, 1 the workflow failed, 2 usage, 3 no server, 4 unknown id or name.",
)
for part in (
    workflows.app,
    executions.app,
    host.app,
    controls.app,
    forks.app,
    system.app,
    coordinators.app,
    purge.app,
    verify.app,
    backup.app,
):
    app.add_typer(part)
app.add_typer(versions.workflows_app, name="workflows")
app.add_typer(approvals.approvals_app, name="approvals")
app.add_typer(agents.agents_app, name="agents")
app.add_typer(agents.agent_app, name="agent")
app.add_typer(dead.dead_app, name="dead")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(schedule.app, name="schedule")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"infinity-matrix {version('infinity-matrix')}")
        raise typer.Exit()


@app.callback()
def options(
    url: Url = None,
    context: Context = None,
    credentials: Credentials = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    set_root(Settings(url, context, credentials, prefix, as_json))


def main() -> None:
    """Runs the command line; ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows ASCII only gets the marks spelled out, not an error.
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
