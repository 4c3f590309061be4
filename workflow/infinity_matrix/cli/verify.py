"""`imx verify`: holds the log of a live installation against the rules it must keep. Reads only."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected
from infinity_matrix.cli.failure import WORKFLOW_FAILED

if TYPE_CHECKING:
    from infinity_matrix_coordinator.verification.reading import Report

app = typer.Typer()

#: Rows of the table; whoever needs all takes --json.
SHOWN_MAX = 100


@command(app, "verify")
async def verify(
    settings: Settings,
    execution: Annotated[
        str | None, typer.Option("--execution", metavar="ID", help="Only this one; all in the log if not given.")
    ] = None,
) -> int:
    """Check that the log kept every rule. The exit code is 1 if it did not."""
    from infinity_matrix_coordinator.verification.reading import verify_installation

    def tell(shard: int) -> None:
        if sys.stderr.isatty():
            output.note(f"reading log {shard}")

    async with connected(settings) as client:
        session = await client.operations.session()
        report = await verify_installation(session, client.operations.installation, execution, tell)
    if settings.as_json:
        output.write_json(report)
    else:
        _show(report)
    return WORKFLOW_FAILED if report.violations else 0


def _show(report: "Report") -> None:
    from infinity_matrix_coordinator.verification import INVARIANTS

    if report.violations:
        rows = [
            (found.invariant, found.execution, found.task or "", str(found.sequence or ""), found.sentence)
            for found in report.violations[:SHOWN_MAX]
        ]
        columns = ("rule", "execution", "task", "sequence", "what is wrong")
        output.console().print(output.table(columns, rows, right=("sequence",)))
        for name in sorted({found.invariant for found in report.violations}, key=lambda name: int(name[1:])):
            output.note(f"{name}: {INVARIANTS[name]}")
        if len(report.violations) > SHOWN_MAX:
            output.note(f"{SHOWN_MAX} of {len(report.violations):,}; --json shows all")
    else:
        output.write_line("every rule was kept")
    parts = [f"{report.executions:,} executions", f"{report.open:,} of them open", f"{report.facts:,} facts"]
    if report.partly:
        parts.append(f"{report.partly:,} executions checked without their graph")
    if report.garbage:
        parts.append(f"{report.garbage:,} messages that are no facts or works")
    output.note(", ".join(parts))
