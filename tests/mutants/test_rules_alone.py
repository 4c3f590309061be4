"""Rules that stand behind others, each where no other would do in its place: what finds their mutants."""

import time
from random import Random

import infinity_matrix
import pytest
from infinity_matrix.agents import Agent, Work
from infinity_matrix.workflow import Task, Workflow
from infinity_matrix_actors.definition import TaskDefinition
from infinity_matrix_actors.errors import PayloadTooLarge
from infinity_matrix_agents.delivery import DELIVERIES_MAX, Delivery
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.codec import rfc3339
from infinity_matrix_bus.installation import install
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session
from infinity_matrix_coordinator import large_works
from infinity_matrix_coordinator.log_identity import Likeness, LogIdentity, compare
from infinity_matrix_coordinator.shard import Shard

from tests.simulation.trace import AGENT, PLAIN, traced

#: Longer than what makes an owner a new one, and shorter than what costs it its connection.
AWAY_S = 40.0
LARGE = "x" * 200_000


def test_an_owner_that_stood_still_for_long_reads_its_log_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[Shard] = []
    run = Shard.run

    async def counted(self: Shard) -> None:
        owners.append(self)
        await run(self)

    monkeypatch.setattr(Shard, "run", counted)
    with traced() as trace:
        process = trace.coordinator(owns_all=True)
        definition = trace.deploy(TaskDefinition("a", AGENT))
        trace.agent()
        before = len(owners)
        trace.stop(process, AWAY_S)
        trace.run(AWAY_S + 10.0)
        assert len(owners) > before
        trace.start(definition)
        assert trace.ended().state == "completed"


def test_what_was_done_while_a_new_owner_read_its_log_is_not_published_by_it_and_run_again() -> None:
    # The outcome lands after the new owner has asked for the head, and the server has forgotten the work's Msg-Id.
    with traced({("a", 1): [("slow", 6.0)]}) as trace:
        first = trace.coordinator(owns_all=True)
        definition = trace.deploy(TaskDefinition("a", PLAIN))
        trace.plain_agent()
        trace.start(definition)
        trace.run(1.0)
        trace.kill(first)
        trace.stream("IM_WORK").ids.clear()
        trace.hold("IM_FACTS_0", 9.0)
        trace.coordinator(owns_all=True)
        trace.run(4.0)
        assert trace.outcome("a") is not None
        assert trace.work() == []
        assert trace.end() is None
        assert trace.ended().state == "completed"
        trace.run(60.0)
        assert trace.began() == [("a", 1)]


def test_work_whose_deadline_has_passed_is_asked_about() -> None:
    now = time.time()
    record = {"ready_at": rfc3339(now), "deadline": rfc3339(now + 10.0)}
    delivery = Delivery(record, "", 1, 1, now)
    assert not delivery.is_doubtful(0.0, now)
    assert delivery.is_doubtful(0.0, now + 11.0)


def test_work_that_was_begun_as_often_as_it_was_given_out_is_poison() -> None:
    # A coordinator finds it too, but only once its server has told it.
    now = time.time()
    record = {"ready_at": rfc3339(now)}
    assert Delivery(record, "", DELIVERIES_MAX + 1, 1, now).is_poisonous(DELIVERIES_MAX - 1)
    assert not Delivery(record, "", DELIVERIES_MAX, 1, now).is_poisonous(DELIVERIES_MAX - 1)
    assert not Delivery(record, "", DELIVERIES_MAX + 1, 1, now).is_poisonous(DELIVERIES_MAX - 2)


async def test_a_log_that_was_made_anew_is_another_though_nothing_stands_where_it_was_known(
    server: EmbeddedServer,
) -> None:
    session = await Session.connect(Endpoint(server.connect_url))
    try:
        api = JetStreamApi(session)
        subjects = (await install(session, shards=1)).subjects()
        log = subjects.facts_stream(0)
        info = await api.call(f"STREAM.INFO.{log}")
        known = LogIdentity(info["created"])
        known.note(1, subjects.started(0, "old"), time.time())
        await api.call(f"STREAM.DELETE.{log}")
        await api.create_stream(info["config"])
        for execution in ("one", "two"):
            await session.request(subjects.started(0, execution), b"{}")
        # As where what was at its beginning has expired: no fact is left to compare.
        await api.purge(log, subjects.facts_of(0, "one"))
        assert await compare(api, log, known) is Likeness.OTHER
        known.created = (await api.call(f"STREAM.INFO.{log}"))["created"]
        assert await compare(api, log, known) is Likeness.UNKNOWN
    finally:
        await session.close()


def test_whether_work_is_done_is_asked_of_the_leader_though_a_replica_lags() -> None:
    with traced() as trace:
        trace.coordinator()
        definition = trace.deploy(TaskDefinition("a", AGENT), TaskDefinition("b", AGENT, depends_on=("a",)))
        trace.agent()
        trace.agent()
        trace.on("ack", "IM_WORK.agent-a.1", lambda: trace.world.crash_server(0.3, Random(1)))
        # Longer than it takes until the work comes again.
        trace.world.faults.read_lag_ns = 60_000_000_000
        trace.start(definition)
        trace.run(50.0)
        trace.world.faults.read_lag_ns = 0
        assert trace.ended().state == "completed"
        assert trace.world.faults.counts["forgotten ack"] > 0
        assert sorted(trace.began()) == [("a", 1), ("b", 1)]


async def test_work_that_can_be_sent_in_no_way_ends_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def store(*arguments: object) -> None:
        raise PayloadTooLarge("the work", 2, 1)

    monkeypatch.setattr(large_works.LargeWorks, "store", store)
    gives = Agent("gives")

    @gives.handler
    async def give(work: Work) -> str:
        return LARGE

    parts = [f"part-{number}" for number in range(6)]
    tasks = [*(Task(part, "gives") for part in parts), Task("join", "gives", depends_on=parts)]
    async with infinity_matrix.local(sync="lazy", agents=[gives]):
        result = await Workflow("wide", tasks=tasks).execute(timeout=20.0)
    assert result.status == "failed"
    assert result.error is not None
    assert result.error["type"] == "undeliverable"
