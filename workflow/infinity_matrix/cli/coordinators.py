"""The command that shows how the coordinators stand."""

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, connected

app = typer.Typer()


@command(app, "coordinators")
async def coordinators(settings: Settings) -> None:
    """List the coordinators and their shards, and what stands still.

    What is counted is since a coordinator took its shards over.
    """
    async with connected(settings) as client:
        found = await client.coordinators()
    if settings.as_json:
        output.write_json(found)
        return
    if not found:
        output.note("no coordinator answers; 'imx coordinator' runs one")
        return
    rows = [
        (
            standing.instance,
            ", ".join(f"{shard.number}" if shard.is_live else f"{shard.number} (reading)" for shard in standing.shards),
            f"{sum(shard.open for shard in standing.shards):,}",
            f"{sum(shard.waiting for shard in standing.shards):,}",
            f"{sum(shard.held_back for shard in standing.shards):,}",
            f"{sum(shard.garbage for shard in standing.shards):,}",
            f"{max((shard.filled for shard in standing.shards), default=0.0):.0%}",
            f"{len(standing.quarantined):,}",
        )
        for standing in found
    ]
    counts = ("open", "waiting", "held back", "garbage", "fullest log", "quarantined")
    output.console().print(output.table(("coordinator", "shards", *counts), rows, right=counts))
    for standing in found:
        for one in standing.quarantined:
            output.note(output.printable(f"quarantined: {one.execution_id} at {one.sequence}: {one.reason}"))
