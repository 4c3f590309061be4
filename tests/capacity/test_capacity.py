"""The small one of `python -m tests.capacity`."""

from . import cold_start

OPEN = 1000


async def test_a_thousand_open_executions_go_on_after_a_cold_start() -> None:
    figures = await cold_start.run(OPEN, is_quick=True)
    assert [figure.line() for figure in figures if not figure.is_met] == []
