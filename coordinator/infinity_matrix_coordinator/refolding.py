"""Refolding: an execution whose actor raised is folded again, once somebody has put right why.

Where a checkpoint is, from there, else from its first fact. What comes meanwhile is kept, as of one that is reopened.
"""

from collections.abc import Awaitable, Callable

from infinity_matrix_actors.errors import InfinityMatrixError
from infinity_matrix_actors.fact import Started
from infinity_matrix_actors.plan import Plan
from infinity_matrix_bus.api import JetStreamApi
from infinity_matrix_bus.artifacts import ArtifactStore
from infinity_matrix_bus.gathered_reads import GatheredReads
from infinity_matrix_bus.history import read_facts
from infinity_matrix_bus.log import get_logger
from infinity_matrix_bus.session import Session
from infinity_matrix_bus.subjects import Subjects, shard_of

from infinity_matrix_coordinator.checkpoints import Checkpoints
from infinity_matrix_coordinator.contents import with_content
from infinity_matrix_coordinator.mailbox import Mailbox, Quarantine, Reopening

log = get_logger("infinity_matrix.coordinator")


class Refolding:
    """Folds the quarantined executions of one shard again; `resume` derives what is outstanding of one."""

    def __init__(
        self,
        session: Session,
        subjects: Subjects,
        shards: int,
        artifacts: ArtifactStore,
        mailbox: Mailbox,
        checkpoints: Checkpoints,
        load_plan: Callable[[str], Awaitable[Plan | None]],
        resume: Callable[[str], None],
    ) -> None:
        self._session = session
        self._subjects = subjects
        self._shards = shards
        self._artifacts = artifacts
        self._mailbox = mailbox
        self._checkpoints = checkpoints
        self._load_plan = load_plan
        self._resume = resume

    async def refold(self, execution: str) -> Quarantine | None:
        """Folds one again; answers why it stays where it is, or None when it goes on."""
        mailbox = self._mailbox
        quarantine = mailbox.quarantined.pop(execution)
        mailbox.reopening[execution] = Reopening(quarantine.sequence)
        try:
            problem = await self._fold(execution)
        except InfinityMatrixError as error:
            problem = str(error)
        if problem:
            mailbox.reopening.pop(execution, None)
            mailbox.quarantined[execution] = Quarantine(quarantine.sequence, problem)
        else:
            self._resume(execution)
            log.info("execution_refolded", execution=execution, goes_on=execution in mailbox.executions)
        return mailbox.quarantined.get(execution)

    async def _fold(self, execution: str) -> str:
        """Answers what is missing; nothing when it was folded, whatever came of that."""
        mailbox = self._mailbox
        reads = GatheredReads(self._session)
        try:
            # What came while it stood still was not kept; the leader knows the last of it.
            shard = shard_of(execution, self._shards)
            stream, pattern = self._subjects.facts_stream(shard), self._subjects.facts_of(shard, execution)
            last = await JetStreamApi(self._session).last_message(stream, pattern)
            newest = 0 if last is None else last.sequence
            facts = await read_facts(reads, self._subjects, self._shards, execution, newest=newest)
        finally:
            reads.close()
        if execution in self._checkpoints:
            if not await self._checkpoints.activate(execution):
                return "its checkpoint cannot be read"
            actor = mailbox.executions[execution]
            whole = [(at, await with_content(fact, actor.plan, self._artifacts)) for at, fact in facts]
            later = mailbox.reopening.pop(execution).facts
            # What is folded already is passed over.
            for sequence, fact in sorted([*whole, *later], key=lambda item: item[0]):
                mailbox.deliver(fact, sequence)
            return ""
        started = next((fact for _, fact in facts if isinstance(fact, Started)), None)
        plan = await self._load_plan(started.definition) if started is not None else None
        if plan is None:
            return "its start or its definition cannot be read"
        whole = [(at, await with_content(fact, plan, self._artifacts)) for at, fact in facts]
        mailbox.reopen(execution, whole, plan)
        return ""
