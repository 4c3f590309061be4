"""The API service: `im.api.<verb>` for any NATS client that can send JSON. A NATS micro service, so it can be found.

Replies `{"ok": ...}` or `{"error": {"type", "message"}}`; any coordinator answers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import nats.micro
from infinity_matrix_actors.document import define, parse_document
from infinity_matrix_actors.errors import InfinityMatrixError, PayloadTooLarge
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import Undecodable, decode, encode
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import RequestTimeout, Session
from infinity_matrix_bus.subjects import Subjects, is_name, is_task_name, shard_of
from nats.errors import Error as NatsError
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, Service, ServiceConfig

from infinity_matrix_coordinator.agent_verbs import AgentVerbs
from infinity_matrix_coordinator.begun_again import begun_again
from infinity_matrix_coordinator.control_verbs import ControlVerbs
from infinity_matrix_coordinator.dead_verbs import DeadVerbs
from infinity_matrix_coordinator.operations import Operations
from infinity_matrix_coordinator.reading_verbs import ReadingVerbs
from infinity_matrix_coordinator.requests import (
    BadRequest,
    Verb,
    taking,
    text,
)
from infinity_matrix_coordinator.schedule_operations import ScheduleOperations
from infinity_matrix_coordinator.schedule_verbs import ScheduleVerbs

SERVICE_NAME = "im-api"
SERVICE_VERSION = "1.0.0"
#: Requests answered at once; more wait.
REQUESTS_MAX = 256
REPLY_TIMEOUT_S = 10.0
log = get_logger("infinity_matrix.coordinator")


class ApiService:
    """The service on one session."""

    def __init__(self, session: Session, operations: Operations, subjects: Subjects, instance: str) -> None:
        self._session = session
        self._operations = operations
        self._subjects = subjects
        self._instance = instance
        self._service: Service | None = None
        self._room = asyncio.Semaphore(REQUESTS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._verbs: dict[str, Verb] = {
            # Agents of another version may say more than this one knows, and their works wait for the answer.
            "attempt": self._attempt,
            "deploy": self._deploy,
            "undeploy": taking(self._undeploy, "workflow"),
            "ping": taking(self._ping),
            "coordinators": taking(self._coordinators),
            "signal": taking(self._signal, "execution", "name", "data", "id"),
            **AgentVerbs(operations).verbs(),
            **ControlVerbs(operations).verbs(),
            **DeadVerbs(operations).verbs(),
            **ReadingVerbs(operations).verbs(),
            **ScheduleVerbs(operations).verbs(),
        }

    async def open(self) -> "ApiService":
        config = ServiceConfig(
            name=SERVICE_NAME,
            version=SERVICE_VERSION,
            description="Infinity Matrix coordinator",
            metadata={"instance": self._instance, "prefix": self._subjects.prefix},
            queue_group=SERVICE_NAME,
        )
        try:
            self._service = await nats.micro.add_service(self._session.client, config)
            for verb in self._verbs:
                await self._service.add_endpoint(
                    # The name of an endpoint has no dots.
                    EndpointConfig(
                        name=verb.replace(".", "-"), subject=self._subjects.api(verb), handler=self._handler(verb)
                    )
                )
        except NatsError as error:
            # A server that does not answer is no fault of ours: the coordinator begins again.
            raise RequestTimeout(f"the service could not be opened: {error}") from error
        self._session._flush()
        return self

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        service, self._service = self._service, None
        if service is not None and not self._session.is_lost:
            try:
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    await service.stop()
            except (NatsError, TimeoutError) as error:
                log.debug("service_not_stopped", reason=str(error))

    def _handler(self, verb: str) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            # A request must not wait for the one before it: after a crash thousands of agents ask at once.
            task = asyncio.create_task(self._answer(verb, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _answer(self, verb: str, request: Request) -> None:
        async with self._room:
            try:
                body = decode(request.data) if request.data else {}
                if not isinstance(body, dict):
                    raise BadRequest("the request must be a JSON object")
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    reply = {"ok": await self._verbs[verb](body)}
            except InfinityMatrixError as error:
                reply = {"error": {"type": type(error).__name__, "message": str(error)}}
            except (Undecodable, TimeoutError) as error:
                reply = {"error": {"type": "BadRequest", "message": str(error) or "took too long"}}
            except Exception:
                log.exception("request_failed", verb=verb)
                reply = {"error": {"type": "InternalError", "message": f"{verb} failed; see the coordinator's log"}}
            try:
                data = encode(reply, "the answer")
            except PayloadTooLarge as error:
                data = encode({"error": {"type": "PayloadTooLarge", "message": str(error)}})
            if not self._session.is_lost and _may_be_answered(request._msg.reply, self._subjects.prefix):
                self._session.publish(request._msg.reply, data)

    async def _ping(self, body: dict[str, Any]) -> Any:
        return {"instance": self._instance, "shards": self._operations.installation.shards}

    async def _coordinators(self, body: dict[str, Any]) -> Any:
        """How every coordinator stands, not this one alone."""
        return [asdict(standing) for standing in await self._operations.standings()]

    async def _attempt(self, body: dict[str, Any]) -> Any:
        """Whether an attempt is settled, by a leader read of its outcome's subject and never from a fold."""
        execution, task, agent = (text(body, key) for key in ("execution", "task", "agent"))
        attempt = body.get("attempt")
        if not isinstance(attempt, int) or not is_name(execution) or not is_task_name(task) or not is_name(agent):
            raise BadRequest("attempt takes execution, task, agent and attempt (a number)")
        shard = shard_of(execution, self._operations.installation.shards)
        subject = self._subjects.outcome(shard, execution, agent, task, attempt)
        stored = await JetStreamApi(self._session).last_message(self._subjects.facts_stream(shard), subject)
        answer: dict[str, Any] = {"settled": stored is not None}
        workflow = body.get("workflow")
        if isinstance(workflow, str) and is_name(workflow):
            answer["begun"] = await begun_again(self._session, self._subjects, workflow, execution, task, attempt)
        return answer

    async def _deploy(self, body: dict[str, Any]) -> Any:
        definition = define(parse_document(body))
        return {
            "workflow": definition.name,
            "definition": await ScheduleOperations(self._operations).deploy(definition),
        }

    async def _undeploy(self, body: dict[str, Any]) -> Any:
        workflow = text(body, "workflow")
        await self._operations.undeploy(workflow)
        return {"workflow": workflow}

    async def _signal(self, body: dict[str, Any]) -> Any:
        execution = text(body, "execution")
        signal_id = body.get("id")
        if signal_id is not None and not isinstance(signal_id, str):
            raise BadRequest("id must be a string")
        await self._operations.signal(execution, text(body, "name"), body.get("data"), signal_id)
        return {"execution": execution}


def _may_be_answered(reply: str, prefix: str) -> bool:
    """Whether an answer may go there. A request without a place for one is done all the same; and who may ask may not
    have this process say something where it may not say it itself."""
    return bool(reply) and not reply.startswith(("$", f"{prefix}."))
