"""Commands on the system itself: dev, env, coordinator, demo."""

import os
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infinity_matrix.cli import output
from infinity_matrix.cli.command import Settings, command, find_target

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer()

CONTEXT_NAME = "infinity-matrix"


@command(app, "dev", connects=False)
async def dev(
    settings: Settings,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="4222 if not given, or a free one when that is taken."),
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="DIR", help="The local runtime's own store if not given.")
    ] = None,
    sync: Annotated[
        Literal["always", "lazy"],
        typer.Option("--sync", help="always: on disk before it counts; lazy: every 2 minutes, faster."),
    ] = "always",
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everyone on this machine in.")] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End the background local runtime now, and do nothing else.")
    ] = False,
) -> int:
    """Run a NATS server and a coordinator until Ctrl-C."""
    if stop:
        return await _stop(settings)
    from infinity_matrix.cli.dev import run_dev

    return await run_dev(port=port, store=store, sync=sync, no_auth=no_auth, as_json=settings.as_json)


async def _stop(settings: Settings) -> int:
    from infinity_matrix.runtime import stop_runtime

    was_running = await stop_runtime()
    if settings.as_json:
        output.write_json({"stopped": was_running})
    else:
        output.note("the local runtime is stopped" if was_running else "no local runtime is running")
    return 0


@command(app, "env", connects=False)
async def env(settings: Settings) -> None:
    """Print shell exports for the running local system.

    It makes a context for the nats CLI, too. In a shell: eval "$(imx env)"
    """
    from infinity_matrix_bus.subjects import Subjects

    from infinity_matrix.runtime import running_runtime

    runtime = await running_runtime()
    path = _write_context(runtime.url, runtime.token)
    if settings.as_json:
        output.write_json({"IM_URL": runtime.connect_url, "context": CONTEXT_NAME, "context_path": str(path)})
        return
    output.write_line(f"export IM_URL='{runtime.connect_url}'")
    output.note(f"# the nats CLI finds it too: nats --context {CONTEXT_NAME} sub '{Subjects().all_status}'  ({path})")


@command(app, "coordinator")
async def coordinator(
    settings: Settings,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, max=1024, help="For the first installation only, 4 if not given.")
    ] = None,
) -> int:
    """Run a coordinator until Ctrl-C.

    It waits for a server that is not there yet. SIGTERM stops it in order, too.
    """
    from infinity_matrix.cli.coordinator import run_coordinator

    return await run_coordinator(await find_target(settings), shards=shards, as_json=settings.as_json)


@command(app, "demo", connects=False)
async def demo(settings: Settings) -> int:
    """Watch a real workflow run."""
    from infinity_matrix.demo.main import run

    return await run(json=settings.as_json)


def _write_context(url: str, token: str) -> "Path":
    """A nats CLI context, readable for this user only: it holds the token."""
    from infinity_matrix.nats_context import context_folder

    record = {"description": "the local Infinity Matrix", "url": url, **({"token": token} if token else {})}
    folder = context_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{CONTEXT_NAME}.json"
    draft = folder / f".{CONTEXT_NAME}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(output.to_json(record, indent=2) + "\n")
    draft.replace(path)
    return path
