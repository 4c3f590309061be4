"""A workflow that fails and says whom to tell, from its definition to the mail."""

import asyncio
import time

import infinity_matrix
from infinity_matrix.agents import Agent, Failure, Work
from infinity_matrix.workflow import Task, Workflow
from smtp_mailbox import Mailbox

TEAM = "ops-team@example.com"


async def test_a_failed_execution_tells_the_team_once_also_when_it_fails_again(mailbox: Mailbox) -> None:
    agent = Agent("out-of-stock")

    @agent.handler
    async def handle(work: Work) -> None:
        raise Failure("NoStock", "sold out", retryable=False)

    workflow = Workflow("shop", tasks=[Task("order", "out-of-stock")])
    workflow.on_task_failure = {"action": "notify", "recipients": [TEAM], "title": "order failed"}
    workflow.on_error = {"action": "notify", "recipients": [TEAM], "message": "Please look."}
    async with infinity_matrix.local([agent], sync="lazy"):
        result = await workflow.execute(timeout=20.0)
        await mails(mailbox, 2)
        await workflow.retry(result.execution_id)
        again = await workflow.wait(result.execution_id, timeout=20.0)
        other = await workflow.execute(timeout=20.0)
        await mails(mailbox, 4)
    assert [result.status, again.status, other.status] == ["failed"] * 3
    assert mailbox.recipients == [TEAM] * 4
    texts = {str(mail["Subject"]): mail.get_content() for mail in mailbox.mails[:2]}
    assert texts.keys() == {"order failed", "shop: task order failed"}
    assert "Please look." in texts["shop: task order failed"]
    assert all("NoStock: sold out" in text and result.execution_id in text for text in texts.values())
    # What failed again was told already: the other two mails are of the other execution.
    assert all(other.execution_id in mail.get_content() for mail in mailbox.mails[2:])


async def mails(mailbox: Mailbox, count: int) -> None:
    """Waits until so many mails were taken."""
    deadline = time.monotonic() + 15.0
    while len(mailbox.mails) < count:
        assert time.monotonic() < deadline, f"{len(mailbox.mails)} of {count} mails within 15 s"
        await asyncio.sleep(0.02)
