"""`imx purge`: executions that ended, taken out of the log before it is too old or too full to keep them."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, duration
from infinity_matrix.cli.failure import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infinity_matrix_coordinator.controls import Asked

app = typer.Typer()

#: Executions that are kept and shown with why; the rest is counted.
SHOWN_MAX = 20


@command(app, "purge")
async def purge(
    settings: Settings,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="The executions' ids.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Instead of ids: those of this workflow.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="Instead of ids: those that ended as completed, failed, cancelled.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="DURATION", help="Instead of ids: ended so long ago, as 1d.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Instead of ids: all that ended.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which; purge none.")] = False,
    is_agreed: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Take executions that ended out of the log. Open ones stay."""
    is_filtered = any(each is not None for each in (workflow, state, older_than, everything or None))
    if bool(ids) == is_filtered:
        raise UsageProblem("which executions shall be purged?", "give ids, or --workflow, --state, --older-than, --all")
    async with connected(settings) as client:

        async def found(*, dry_run: bool) -> "Sequence[Asked]":
            return await client.purge(
                ids or None, workflow=workflow, state=state, older_than=duration(older_than), dry_run=dry_run
            )

        if not dry_run and not is_agreed:
            _confirm(settings, await found(dry_run=True))
        answers = await found(dry_run=dry_run)
    _show(settings, answers, dry_run=dry_run)
    return 0


def _confirm(settings: Settings, going: "Sequence[Asked]") -> None:
    """Asks a person; raises UsageProblem where there is none, or the answer is no."""
    count = _count(sum(one.problem is None for one in going))
    if settings.as_json or not sys.stdin.isatty():
        raise UsageProblem(
            f"{count} would be purged, and there is nobody to ask", "add --yes, or --dry-run to see which"
        )
    if not typer.confirm(f"purge {count}? They cannot be brought back", err=True):
        raise UsageProblem("nothing was purged", "--dry-run shows which executions are meant")


def _show(settings: Settings, answers: "Sequence[Asked]", *, dry_run: bool) -> None:
    if settings.as_json:
        for one in answers:
            record = {"execution_id": one.execution_id, "workflow": one.workflow, "state": one.state}
            problem = {} if one.problem is None else {"problem": one.problem}
            output.write_json({**record, **problem, "purged": not dry_run and one.problem is None})
        return
    console = output.console()
    kept = [one for one in answers if one.problem is not None]
    gone = [one for one in answers if one.problem is None]
    shown = (gone if dry_run else []) + kept[:SHOWN_MAX]
    if shown:
        rows = [
            (
                output.state_text(one.state, is_marked=console.is_terminal),
                one.workflow,
                one.execution_id,
                one.problem or "",
            )
            for one in shown
        ]
        console.print(output.table(("ended as", "workflow", "execution", "kept because"), rows))
    note = f"{_count(len(gone))} would be purged" if dry_run else f"purged {_count(len(gone))}"
    output.note(note + (f", kept {len(kept):,}" if kept else ""))


def _count(number: int) -> str:
    return f"{number:,} execution" + ("" if number == 1 else "s")
