"""The command profile: a program does an agent's work, one process an attempt.

The work goes to its stdin as JSON; its result is what it writes to stdout; its stderr becomes log lines. The process
leads a group of its own, so that whatever it starts ends with it.
"""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from infinity_matrix_bus.artifacts import ARTIFACT_BYTES_MAX

from infinity_matrix_agents.agent import Agent
from infinity_matrix_agents.cancels import own_time_s
from infinity_matrix_agents.failure import Failure
from infinity_matrix_agents.work import Work

#: Between SIGTERM and SIGKILL where no grace is given: the attempt is closed already, or the agent itself ends.
TERMINATE_S = 5.0
#: What still holds the program's pipes after it ended has this long.
PIPES_S = 1.0
CHUNK_BYTES = 64 * 1024
LINE_BYTES_MAX = 8 * 1024
LOG_LINES_MAX = 10_000
#: Of the end of stderr, in the failure's message.
MESSAGE_LINES = 5
#: What is only needed to answer.
_NOT_SHOWN = frozenset(("reply_to", "taken_to", "ready_at", "repair"))
OUTPUT_BYTES_MAX = ARTIFACT_BYTES_MAX


def command_agent(
    name: str,
    program: Sequence[str],
    *,
    concurrency: int = 1,
    rate: str | float | None = None,
    versions: Sequence[str] | None = None,
) -> Agent:
    """An agent whose work `program` (and its arguments) does; raises InvalidAgent, InvalidName."""
    agent = Agent(name, concurrency=concurrency, rate=rate, versions=versions)
    # SIGTERM comes at once; the program has the grace after that.
    agent.keeps_grace = True

    @agent.handler
    async def run(work: Work) -> Any:
        return await _Program(work, program).run()

    return agent


def work_record(work: Work) -> dict[str, Any]:
    """The work as a program reads it: that of the wire, without what is needed to answer."""
    return {key: value for key, value in work.whole_record.items() if key not in _NOT_SHOWN}


def read_result(text: str) -> Any:
    """The result in a program's stdout: JSON, or JSON in its last line (an object or a list), or else the text itself.

    Nothing at all is None.
    """
    text = text.strip()
    if not text:
        return None
    is_json, value = _parse(text)
    if is_json:
        return value
    is_json, value = _parse(text.rpartition("\n")[2])
    return value if is_json and isinstance(value, dict | list) else text


def failure_of(code: int, text: str, error_lines: Sequence[str]) -> Failure:
    """The failure of a program that ended with `code`; `{"error": {...}}` on stdout, as on the wire, says more."""
    value = read_result(text)
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and isinstance(error.get("type"), str):
        retry_after = error.get("retry_after")
        return Failure(
            error["type"],
            str(error.get("message", "")),
            retryable=error.get("retryable") is not False,
            retry_after=retry_after if isinstance(retry_after, int | float) else None,
        )
    kind = f"exit_{code}" if code >= 0 else f"signal_{-code}"
    return Failure(kind, "\n".join(error_lines[-MESSAGE_LINES:]) or f"the program ended with {kind}")


class _Program:
    """One run of the program."""

    def __init__(self, work: Work, program: Sequence[str]) -> None:
        self._work = work
        self._program = program
        self._output = bytearray()
        self._error_lines: list[str] = []

    async def run(self) -> Any:
        """The program's result; raises Failure. When cancelled, the whole group is told to end, then made to."""
        process = await self._spawn()
        pipes = asyncio.gather(self._feed(process), self._collect(process), self._log(process))
        try:
            code = await process.wait()
            await asyncio.wait([pipes], timeout=PIPES_S)
        except asyncio.CancelledError:
            await self._terminate(process)
            raise
        finally:
            # Whatever the program started and left behind; nothing to do when its pipes are closed: then it is gone.
            if process.returncode is None or not pipes.done():
                _signal_group(process.pid, signal.SIGKILL)
            await asyncio.wait([pipes], timeout=PIPES_S)
            pipes.cancel()
            await asyncio.gather(pipes, return_exceptions=True)
        if len(self._output) > OUTPUT_BYTES_MAX:
            raise Failure("PayloadTooLarge", f"stdout is above {OUTPUT_BYTES_MAX} bytes", retryable=False)
        text = self._output.decode(errors="replace")
        if code != 0:
            raise failure_of(code, text, self._error_lines)
        return read_result(text)

    async def _spawn(self) -> asyncio.subprocess.Process:
        work = self._work
        # So that a shell script needs no JSON for the commonest facts.
        facts = {
            "IM_EXECUTION": work.execution,
            "IM_WORKFLOW": work.workflow,
            "IM_TASK": work.task,
            "IM_ATTEMPT": str(work.attempt),
            "IM_IDEMPOTENCY_KEY": work.idempotency_key,
        }
        try:
            return await asyncio.create_subprocess_exec(
                *self._program,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **facts},
                start_new_session=True,
            )
        except OSError as error:
            raise Failure("not_started", f"{self._program[0]}: {error.strerror}") from error

    async def _terminate(self, process: asyncio.subprocess.Process) -> None:
        _signal_group(process.pid, signal.SIGTERM)
        grace_s = self._work.cancel_grace
        with suppress(TimeoutError):
            async with asyncio.timeout(own_time_s(grace_s) if grace_s else TERMINATE_S):
                await process.wait()

    async def _feed(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        # A program need not read its work.
        with suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(json.dumps(work_record(self._work), ensure_ascii=False).encode() + b"\n")
            await process.stdin.drain()
        process.stdin.close()

    async def _collect(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while chunk := await process.stdout.read(CHUNK_BYTES):
            # Read on beyond the limit, or the program would wait for ever to write.
            if len(self._output) <= OUTPUT_BYTES_MAX:
                self._output += chunk

    async def _log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        rest = b""
        count = 0
        while chunk := await process.stderr.read(CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                count += 1
                self._log_line(line, count)
        if rest:
            self._log_line(rest, count + 1)

    def _log_line(self, line: bytes, number: int) -> None:
        text = line[:LINE_BYTES_MAX].decode(errors="replace").rstrip()
        if not text:
            return
        self._error_lines = [*self._error_lines[-MESSAGE_LINES:], text]
        if number <= LOG_LINES_MAX:
            self._work.log.info(text)
        elif number == LOG_LINES_MAX + 1:
            self._work.log.warning("lines_dropped", lines_max=LOG_LINES_MAX)


def _parse(text: str) -> tuple[bool, Any]:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return True, json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False, None


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
