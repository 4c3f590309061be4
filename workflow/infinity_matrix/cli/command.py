"""What every command shares: the options of the connection, `--json`, and how an error ends the process.

Nothing heavy is imported before a command runs: `--help` must answer at once.
"""

import functools
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinity_matrix.cli.failure import report, wants_traceback
from infinity_matrix.entry import INTERRUPTED

if TYPE_CHECKING:
    from infinity_matrix.client import Client
    from infinity_matrix.resolution import Target

#: A function of the command line: takes its settings first, answers an exit code or None for 0.
Function = Callable[..., Any]

Url = Annotated[str | None, typer.Option("--url", help="The NATS server, or IM_URL.", show_default=False)]
Context = Annotated[str | None, typer.Option("--context", help="A nats CLI context instead.", show_default=False)]
Credentials = Annotated[
    str | None, typer.Option("--credentials", help="A .creds file, or IM_CREDENTIALS.", show_default=False)
]
Prefix = Annotated[
    str | None, typer.Option("--prefix", help="Of all subjects, or IM_PREFIX; im if not given.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs; a line an item where it streams.")]


@dataclass(frozen=True, slots=True)
class Settings:
    """Which system a command is for, and whether it answers in JSON."""

    url: str | None = None
    context: str | None = None
    credentials: str | None = None
    prefix: str | None = None
    as_json: bool = False

    def over(self, other: "Settings") -> "Settings":
        """These settings, with those of `other` where these say nothing."""
        return Settings(*(getattr(self, field.name) or getattr(other, field.name) for field in fields(self)))


_JSON_OPTION: dict[str, tuple[Any, Any]] = {"as_json": (AsJson, False)}
_CONNECTION_OPTIONS: dict[str, tuple[Any, Any]] = {
    "url": (Url, None),
    "context": (Context, None),
    "credentials": (Credentials, None),
    "prefix": (Prefix, None),
}
_root = Settings()


def set_root(settings: Settings) -> None:
    """Notes the options that stood before the command's name."""
    global _root
    _root = settings


def command(app: typer.Typer, name: str, *, connects: bool = True) -> Callable[[Function], Function]:
    """Makes `function(settings, ...)` the command `name`, with the shared options beside its own."""

    def register(function: Function) -> Function:
        shared = {**(_CONNECTION_OPTIONS if connects else {}), **_JSON_OPTION}
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        added = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for key, (annotation, default) in shared.items()
        ]

        def run(**arguments: Any) -> None:
            settings = replace(Settings(), **{key: arguments.pop(key) for key in shared}).over(_root)
            raise typer.Exit(_outcome(function, settings, arguments))

        functools.update_wrapper(run, function)
        # typer reads both; the wrapped function's own would hide the options added here.
        del run.__wrapped__  # type: ignore[attr-defined]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name)(run)
        return function

    return register


def _outcome(function: Function, settings: Settings, arguments: dict[str, Any]) -> int:
    """Runs a command; answers its exit code, after saying on stderr what went wrong."""
    try:
        answer = function(settings, **arguments)
        if inspect.iscoroutine(answer):
            answer = run_in_loop(answer)
        sys.stdout.flush()
        return int(answer or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `imx tail | head -1`: the reader has what it wanted. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if wants_traceback():
            raise
        return report(error, as_json=settings.as_json)


def duration(text: str | None) -> float | str | None:
    """A duration as it was typed: seconds where it is only a number, else the text, for who takes it to check."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def run_in_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs in an event loop of uvloop where that is installed."""
    from infinity_matrix_bus.own_process import run_in_own_process

    return run_in_own_process(work)


async def find_target(settings: Settings, *, starts_runtime: bool = False) -> "Target":
    """The system the settings name; raises Unreachable when there is none."""
    from infinity_matrix.resolution import resolve

    return await resolve(
        settings.url,
        credentials=settings.credentials,
        prefix=settings.prefix,
        context=settings.context,
        starts_runtime=starts_runtime,
    )


@asynccontextmanager
async def opened(target: "Target") -> AsyncIterator["Client"]:
    """A client of that system; what is called in the block finds it. Raises Unreachable, NotInstalled."""
    from infinity_matrix.client import Client
    from infinity_matrix.resolution import surrounding

    client = Client(target.endpoint, target.prefix)
    await client.open()
    token = surrounding.set(client)
    try:
        yield client
    finally:
        surrounding.reset(token)
        await client.close()


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator["Client"]:
    """A client of the system the settings name, which must be there."""
    async with opened(await find_target(settings)) as client:
        yield client
