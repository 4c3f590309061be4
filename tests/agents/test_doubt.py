"""What an agent believes of work that comes for the first time by its count."""

import time

from infinity_matrix_agents.delivery import Delivery
from infinity_matrix_agents.doubt import Doubt
from infinity_matrix_agents.stream_time import StreamTime
from infinity_matrix_bus.codec import rfc3339
from infinity_matrix_bus.connection import Connection
from infinity_matrix_bus.endpoint import Endpoint
from infinity_matrix_bus.subjects import Subjects

LEASE_INTERVAL_S = 10.0
#: Far less than a lease: a consumer can be deleted, made again and worked off in it.
STOOD_STILL_S = 0.7


def delivered_now(consumer_sequence: int) -> Delivery:
    now = time.time()
    return Delivery({"ready_at": rfc3339(now)}, "", 1, consumer_sequence, now)


def test_a_repair_is_asked_about_however_fresh_it_is() -> None:
    # Its owner read the head before: an outcome that landed since then is not known to it.
    plain, repair = delivered_now(1), delivered_now(2)
    repair.record["repair"] = True
    assert not plain.is_doubtful(0.0, time.time())
    assert repair.is_doubtful(0.0, time.time())


async def test_work_that_came_while_the_process_stood_still_is_asked_about_though_its_lease_is_not_over() -> None:
    stream_time = StreamTime()
    doubt = Doubt(Connection(Endpoint("nats://127.0.0.1:1")), Subjects("im"), stream_time)
    doubt.know({"ts": rfc3339(time.time())}, LEASE_INTERVAL_S)
    before, while_away = delivered_now(1), delivered_now(2)
    doubt.see(before, None)
    assert not doubt.is_about(before)
    # The whole process stands still, as it does under SIGSTOP.
    time.sleep(STOOD_STILL_S)  # noqa: ASYNC251
    doubt.see(while_away, None)
    assert doubt.is_about(while_away)
    doubt.tick()
    after = delivered_now(3)
    doubt.see(after, None)
    assert not doubt.is_about(after)


async def test_work_that_was_taken_before_the_process_stood_still_is_asked_about_before_it_begins() -> None:
    stream_time = StreamTime()
    doubt = Doubt(Connection(Endpoint("nats://127.0.0.1:1")), Subjects("im"), stream_time)
    doubt.know({"ts": rfc3339(time.time())}, LEASE_INTERVAL_S)
    taken = delivered_now(1)
    doubt.see(taken, None)
    # Nothing else of this process runs between the end of this and the beginning of the work.
    time.sleep(STOOD_STILL_S)  # noqa: ASYNC251
    assert doubt.is_about(taken)
