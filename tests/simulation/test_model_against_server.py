"""The model of the server against the server: random operations are answered alike by both."""

from random import Random

import pytest
from infinity_matrix_bus.server import EmbeddedServer
from infinity_matrix_bus.session import Endpoint, Session

from .conformance import Driver, Operation, random_operations, without_times
from .substitutes import entered
from .world import ENDPOINT, World

OPERATIONS = 250


async def _do_all(session: Session, operations: list[Operation]) -> list[str]:
    driver = Driver(session)
    await driver.prepare()
    for operation in operations:
        await driver.do(operation)
    return without_times(driver.answers)


def answers_of_the_model(operations: list[Operation], seed: int) -> list[str]:
    """What the model answers, in simulated time."""
    world = World(seed)
    answers: list[str] = []

    async def life() -> None:
        session = await Session.connect(ENDPOINT)
        answers.extend(await _do_all(session, operations))

    with entered(world.loop, Random(seed)):
        process = world.start("driver", life)
        world.run(3600.0, lambda: bool(answers) or bool(world.loop.errors))
        world.loop.kill(process)
    assert not world.loop.errors
    return answers


@pytest.mark.parametrize("seed", range(4))
async def test_the_model_answers_as_the_server_does(server: EmbeddedServer, seed: int) -> None:
    operations = random_operations(seed, OPERATIONS)
    session = await Session.connect(Endpoint(server.connect_url))
    try:
        real = await _do_all(session, operations)
    finally:
        await session.close()
    kinds = {operation.kind for operation in operations}
    assert len(kinds) >= 10
    for number, (theirs, ours) in enumerate(zip(real, answers_of_the_model(operations, seed), strict=True)):
        assert theirs == ours, f"seed {seed}, operation {number}: {operations[number]}"
