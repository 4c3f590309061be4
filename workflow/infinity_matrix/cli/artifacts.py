"""Commands on artifacts: the values too large for a message, listed and fetched."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected
from infinity_matrix.cli.failure import UsageProblem

if TYPE_CHECKING:
    from infinity_matrix_bus.artifacts import ArtifactStore

app = typer.Typer(no_args_is_help=True, help="Values too large for a message: list and fetch them.")

LIST_LIMIT = 20
#: So many of a name's 64 digits are enough, if no other begins so.
NAME_DIGITS_MIN = 8
NAME_DIGITS = 64


@command(app, "ls")
async def ls(
    settings: Settings,
    execution: Annotated[
        str | None,
        typer.Option("--execution", metavar="ID", help="Only what its log names, and for what."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = LIST_LIMIT,
) -> None:
    """List artifacts, newest first."""
    from infinity_matrix_coordinator.artifact_listing import artifacts_of

    async with connected(settings) as client:
        if execution is not None:
            found: list[Any] = (await artifacts_of(client.operations, execution))[::-1]
        else:
            found = list(await client.operations.artifacts.list())
    shown = found[:limit]
    if settings.as_json:
        output.write_json(shown)
        return
    columns: tuple[str, ...] = ("bytes", "stored", "name")
    rows = [[f"{item.bytes:,}", output.date(getattr(item, "stored_at", None)), item.name] for item in shown]
    if execution is not None:
        columns = ("bytes", "of", "named", "name")
        rows = [[f"{item.bytes:,}", output.printable(item.of), output.date(item.named_at), item.name] for item in shown]
    output.console().print(output.table(columns, rows, right=("bytes",)))
    if len(found) > limit:
        output.note(f"{limit} of {len(found):,}; --limit shows more")


@command(app, "get")
async def get(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, or the first digits of it.")],
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there, not to stdout.")
    ] = None,
) -> None:
    """Fetch an artifact. It is JSON."""
    from infinity_matrix_bus.artifacts import reference_to

    async with connected(settings) as client:
        store = client.operations.artifacts
        data = await store.get(reference_to(await _whole_name(store, name), 0))
    if file is None:
        sys.stdout.buffer.write(data + b"\n")
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        raise UsageProblem(f"{file} cannot be written: {error.strerror}") from error
    output.note(f"{len(data):,} bytes written to {file}")


async def _whole_name(store: "ArtifactStore", digits: str) -> str:
    """The name that begins with these digits; raises UsageProblem, ArtifactMissing."""
    from infinity_matrix_actors.errors import ArtifactMissing

    digits = digits.lower()
    if not NAME_DIGITS_MIN <= len(digits) <= NAME_DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise UsageProblem(
            f"{digits!r} is no name of an artifact", f"{NAME_DIGITS} hex digits, or the first {NAME_DIGITS_MIN} or more"
        )
    if len(digits) == NAME_DIGITS:
        return digits
    names = [artifact.name for artifact in await store.list() if artifact.name.startswith(digits)]
    if len(names) > 1:
        raise UsageProblem(f"{len(names)} artifacts begin with {digits}", "give more of its digits")
    if not names:
        raise ArtifactMissing(digits, "none begins so")
    return names[0]
