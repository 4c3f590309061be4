"""`imx backup` and `imx restore`: what is precious of an installation, in a folder and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected, find_target
from infinity_matrix.cli.failure import UsageProblem

if TYPE_CHECKING:
    from infinity_matrix_bus.backup import Manifest
    from infinity_matrix_bus.snapshot import Snapshot

app = typer.Typer()

Folder = Annotated[str, typer.Argument(metavar="DIR", help="A folder of its own; it holds the installation's secret.")]


@command(app, "backup")
async def backup(settings: Settings, folder: Folder) -> None:
    """Save the installation into a folder, while it runs."""
    from infinity_matrix_bus.backup import back_up

    async with connected(settings) as client:
        session = await client.operations.session()
        manifest = await back_up(session, client.operations.installation, Path(folder), _tell)
    _report(manifest, folder, "saved", as_json=settings.as_json)


@command(app, "restore")
async def restore(
    settings: Settings,
    folder: Folder,
    force: Annotated[
        bool, typer.Option("--force", help="Delete what is there of the installation first, coordinators or not.")
    ] = False,
) -> None:
    """Make a saved installation again. Stop its coordinators and agents before."""
    from infinity_matrix_bus.backup import Manifest
    from infinity_matrix_bus.backup import restore as restore_from
    from infinity_matrix_bus.connection import Connection

    prefix = Manifest.read(Path(folder)).prefix
    if settings.prefix not in (None, prefix):
        raise UsageProblem(f"the backup {folder} is of the prefix {prefix!r}", "it can be restored under its own only")
    # Not by a client: that would miss the installation.
    connection = await Connection((await find_target(settings)).endpoint).open()
    try:
        manifest = await restore_from(connection.session, Path(folder), overwrites=force, on_stream=_tell)
    finally:
        await connection.close()
    _report(manifest, folder, "restored", as_json=settings.as_json)


def _tell(snapshot: "Snapshot") -> None:
    output.note(f"{snapshot.stream}: {int(snapshot.state['messages']):,} messages, {snapshot.bytes:,} bytes")


def _report(manifest: "Manifest", folder: str, what: str, *, as_json: bool) -> None:
    if as_json:
        record = {"folder": folder, "prefix": manifest.prefix, "taken_at": manifest.taken_at}
        output.write_json({**record, "messages": manifest.messages, "bytes": manifest.bytes})
    else:
        counts = f"{manifest.messages:,} messages, {manifest.bytes:,} bytes"
        output.write_line(f"{what}: {manifest.prefix} of {output.date(manifest.taken_at)}, {counts}, {folder}")
