"""The functions of a workflow, asked about failures by a real system: what they are told, and what their answers do."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import infinity_matrix
import pytest
from harness import until
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.client import Client
from infinity_matrix.host import ErrorReport
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.definition import host_agent
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_bus.api import JetStreamApi

TIMEOUT_S = 30.0


@pytest.fixture
async def im() -> AsyncIterator[Client]:
    """A whole system in this process, with an agent that fails as often as its task's config says."""
    agent = Agent("shaky")

    @agent.handler
    async def handle(work: Work) -> str:
        if work.attempt <= work.config.get("fails", 1):
            raise Failure("Shaky", f"attempt {work.attempt} failed")
        return f"done at attempt {work.attempt}"

    async with infinity_matrix.local([agent], sync="lazy") as client:
        yield client


def shaky(name: str, fails: int = 100, **fields: Any) -> Workflow:
    """One task that fails so many times, and one after it."""
    tasks = [
        Task("load", "shaky", config={"fails": fails}),
        Task("report", "shaky", config={"fails": 0}, depends_on=["load"]),
    ]
    return Workflow(name, tasks=tasks, **fields)


async def test_a_function_has_the_task_tried_again(im: Client) -> None:
    workflow = shaky("again", fails=2)
    asked: list[tuple[Task, ErrorReport]] = []

    def on_task_failure(task: Task, error: ErrorReport) -> dict[str, Any]:
        asked.append((task, error))
        return {"action": "retry", "max_attempts": 3, "delay": 0.01}

    workflow.on_task_failure = on_task_failure
    result = await workflow.execute(timeout=TIMEOUT_S)
    assert result.outputs["report"] == "done at attempt 1"
    assert (await im.get_status(result.execution_id)).tasks["load"].attempt == 3
    assert [(task.id, error.task_id, error.attempt) for task, error in asked] == [
        ("load", "load", 1),
        ("load", "load", 2),
    ]
    error = asked[0][1]
    assert (error.type, error.message, error.retryable) == ("Shaky", "attempt 1 failed", True)
    assert (error.execution_id, error.workflow) == (result.execution_id, "again")
    assert error["type"] == error.get("type") == "Shaky"
    assert (error["task"], error["execution"], error.get("nothing", 7)) == ("load", result.execution_id, 7)
    with pytest.raises(KeyError):
        error["nothing"]


async def test_the_lambdas_of_the_guide_work_as_they_are_written(im: Client) -> None:
    workflow = shaky("guide", fails=2)
    workflow.on_error = lambda error: {"action": "notify", "recipients": ["ops-team@example.com"]}
    workflow.on_task_failure = lambda task, error: {"action": "retry", "max_attempts": 3}
    result = await workflow.execute(timeout=TIMEOUT_S)
    assert result.status == "completed"


async def test_a_function_that_ends_the_retries_fails_the_task_and_the_error_is_told(
    im: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IM_SMTP_URL", raising=False)
    workflow = shaky("told")
    errors: list[ErrorReport] = []

    def on_error(error: ErrorReport) -> dict[str, Any]:
        errors.append(error)
        return {"action": "notify", "recipients": ["ops-team@example.com"]}

    workflow.on_error = on_error
    workflow.on_task_failure = lambda task, error: {"action": "retry", "max_attempts": 2, "delay": 0}
    result = await workflow.execute(timeout=TIMEOUT_S)
    assert result.status == "failed"
    assert result.error["type"] == "Shaky"
    [error] = errors
    assert (error.type, error.task_id, error.attempt) == ("Shaky", "load", None)

    async def is_logged() -> bool:
        lines = await im.get_logs(result.execution_id)
        return any(line.event == "not_configured" and line.fields["about"] == "on_error" for line in lines)

    await until(is_logged, 10.0, "the notification")


async def test_an_async_function_is_awaited_and_a_plain_one_may_block(im: Client) -> None:
    threads: list[int] = []

    async def skip(task: Task, error: ErrorReport) -> list[dict[str, str]]:
        threads.append(threading.get_ident())
        await asyncio.sleep(0)
        return [{"action": "skip"}]

    result = await shaky("async", on_task_failure=skip).execute(timeout=TIMEOUT_S)
    assert (await im.get_status(result.execution_id)).tasks["load"].state == "skipped"
    result = await shaky("wrapped", on_task_failure=lambda task, error: skip(task, error)).execute(timeout=TIMEOUT_S)
    assert (await im.get_status(result.execution_id)).tasks["load"].state == "skipped"

    def plain(task: Task, error: ErrorReport) -> dict[str, str]:
        threads.append(threading.get_ident())
        return {"action": "skip"}

    await shaky("plain", on_task_failure=plain).execute(timeout=TIMEOUT_S)
    result = await shaky("empty", on_task_failure=lambda task, error: next(iter(()))).execute(timeout=TIMEOUT_S)
    assert result.status == "failed"
    assert [thread == threading.get_ident() for thread in threads] == [True, True, False]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"action": "rety"}, "retry"),
        ({"action": "retry", "max_attempt": 3}, "max_attempts"),
        ("retry", "neither an action nor a list"),
        ([{"action": "ask"}], "'ask' is no answer"),
        ([{"action": "notify", "recipients": ["a@b.c"], "message": "x" * 70_000}, {"action": "skip"}], "65536 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_told_and_the_default_applies(im: Client, answer: Any, reason: str) -> None:
    result = await shaky("wrong", on_task_failure=lambda task, error: answer).execute(timeout=TIMEOUT_S)
    assert result.status == "failed"

    lines = [line async for line in failures_of_questions(im, result.execution_id)]
    [line] = lines
    assert line["type"] == "InvalidAnswer"
    assert reason in line["message"]


async def failures_of_questions(im: Client, execution_id: str) -> AsyncIterator[dict[str, Any]]:
    """The errors of the questions asked, from the facts."""
    import json

    from infinity_matrix_bus.history import read_all

    subjects = im.operations.subjects
    for shard in range(4):
        entries = await read_all(
            await im.operations.session(), subjects.facts_stream(shard), (subjects.facts_of(shard, execution_id),)
        )
        for entry in entries:
            if ".outcome.im-host-" in entry.subject:
                yield json.loads(entry.data)["error"]


async def test_a_function_that_raises_leaves_the_default_and_its_traceback_in_the_logs(im: Client) -> None:
    def broken(task: Task, error: ErrorReport) -> None:
        raise ZeroDivisionError("oh")

    result = await shaky("raises", on_task_failure=broken).execute(timeout=TIMEOUT_S)
    assert result.status == "failed"
    assert result.error["type"] == "Shaky"

    async def is_logged() -> bool:
        return any("ZeroDivisionError" in str(line.fields) for line in await im.get_logs(result.execution_id))

    await until(is_logged, 10.0, "the traceback")


async def test_a_function_that_answers_nothing_leaves_the_default(im: Client) -> None:
    asked: list[str] = []
    result = await shaky("nothing", on_error=lambda error: asked.append(error.type)).execute(timeout=TIMEOUT_S)
    assert (result.status, asked) == ("failed", ["Shaky"])


async def test_without_a_host_the_default_applies_after_the_callback_timeout(im: Client) -> None:
    workflow = shaky("unheard", on_task_failure=lambda task, error: {"action": "skip"}, callback_timeout=0.3)
    execution = await workflow.start()
    result = await im.wait(execution, timeout=TIMEOUT_S)
    assert result.status == "failed"


async def test_waiting_answers_the_questions_of_an_execution_started_before(im: Client) -> None:
    workflow = shaky("later", on_task_failure=lambda task, error: {"action": "skip"})
    execution = await workflow.start()
    result = await workflow.wait(execution, timeout=TIMEOUT_S)
    assert (await im.get_status(execution)).tasks["load"].state == "skipped"
    assert result.status in ("completed", "failed")


async def test_serving_answers_for_executions_that_others_wait_for(im: Client) -> None:
    workflow = shaky(
        "served", fails=1, on_task_failure=lambda task, error: {"action": "retry", "max_attempts": 2, "delay": 0}
    )
    serving = asyncio.create_task(workflow.serve())
    try:
        execution = await workflow.start()
        result = await im.wait(execution, timeout=TIMEOUT_S)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert result.status == "completed"


async def test_executions_that_overlap_share_a_host_and_the_last_one_closes_it(im: Client) -> None:
    workflow = shaky(
        "shared", fails=1, on_task_failure=lambda task, error: {"action": "retry", "max_attempts": 2, "delay": 0}
    )
    results = await asyncio.gather(*(workflow.execute(timeout=TIMEOUT_S) for _ in range(8)))
    assert {result.status for result in results} == {"completed"}
    agent = host_agent(workflow.definition().digest())
    info = await JetStreamApi(await im.operations.session()).consumer_info("IM_WORK", agent)
    assert info is not None
    assert info["num_waiting"] == 0
    # Nobody's definition is for ever: nor is the consumer of its host.
    assert info["config"]["inactive_threshold"] > 0


async def test_a_later_object_of_the_same_definition_is_the_one_that_is_asked(im: Client) -> None:
    asked: list[str] = []

    def workflow(who: str) -> Workflow:
        return shaky("same", on_error=lambda error: asked.append(who))

    await workflow("first").execute(timeout=TIMEOUT_S)
    await workflow("second").execute(timeout=TIMEOUT_S)
    assert asked == ["first", "second"]


async def test_data_needs_no_host(im: Client) -> None:
    workflow = shaky("data", fails=1, on_task_failure={"action": "retry", "max_attempts": 2, "delay": "10ms"})
    assert not workflow.definition().asks_host
    execution = await workflow.start()
    assert (await im.wait(execution, timeout=TIMEOUT_S)).status == "completed"


def test_a_policy_is_checked_when_the_workflow_is() -> None:
    workflow = shaky("checked")
    workflow.on_error = {"action": "notfy"}
    with pytest.raises(InvalidDefinition, match=r"on_error.*notify"):
        workflow.validate()
    workflow.on_error = [{"action": "notify", "recipients": ["a@b"]}, {"action": "compensate"}]
    assert workflow.definition().on_error == (
        {"action": "notify", "recipients": ["a@b"]},
        {"action": "compensate"},
    )
    workflow.on_error = 7  # type: ignore[assignment]
    with pytest.raises(InvalidDefinition, match="neither an action nor a list"):
        workflow.validate()


def test_a_function_makes_another_definition_and_its_text_does_not() -> None:
    plain = shaky("digest").definition().digest()
    first = shaky("digest", on_error=lambda error: None).definition().digest()
    second = shaky("digest", on_error=lambda error: {"action": "fail"}).definition().digest()
    assert first == second != plain


def test_a_policy_of_a_document_stays_what_it_is() -> None:
    task = {"id": "a", "agent": "x"}
    document = {"name": "w", "tasks": [task], "on_error": {"action": "notify", "recipients": ["a@b"]}}
    workflow = Workflow.from_document(document)
    assert workflow.on_error == [{"action": "notify", "recipients": ["a@b"]}]
    assert workflow.definition().on_error == ({"action": "notify", "recipients": ["a@b"]},)


HOST_MODULE = """
from infinity_matrix.workflow import Task, Workflow

workflow = Workflow("elsewhere", tasks=[Task("load", "shaky", config={"fails": 1})])
workflow.on_task_failure = lambda task, error: {"action": "retry", "max_attempts": 2, "delay": 0}
plain = Workflow("plain", tasks=[Task("load", "shaky")])
"""


async def test_a_workflow_that_is_run_from_the_command_line_has_its_functions_asked(im: Client, tmp_path: Path) -> None:
    (tmp_path / "run_module.py").write_text(HOST_MODULE)
    command = [str(Path(sys.executable).with_name("imx")), "run", "run_module:workflow", "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env={**os.environ, "IM_URL": im.url}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 0
    assert b"done at attempt 2" in output


async def test_a_process_of_its_own_answers(im: Client, tmp_path: Path) -> None:
    (tmp_path / "hosted_module.py").write_text(HOST_MODULE)
    workflow = Workflow("elsewhere", tasks=[Task("load", "shaky", config={"fails": 1})])
    workflow.on_task_failure = lambda task, error: {"action": "fail"}
    command = [str(Path(sys.executable).with_name("imx")), "host", "hosted_module", "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env={**os.environ, "IM_URL": im.url}, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)
        assert b'"elsewhere"' in line
        assert b'"plain"' not in line
        execution = await workflow.start()
        result = await im.wait(execution, timeout=TIMEOUT_S)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), TIMEOUT_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert result.outputs == {"load": "done at attempt 2"}
